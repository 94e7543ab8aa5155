"""ONNX: a file or a proto, run by ONNX Runtime; a PyTorch module by way of its exporter.

There is no float64, and no backward pass but that of a module exported here
(`crosscheck.adapters.onnx_export`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from crosscheck.adapters.base import (
    Adapter,
    Capabilities,
    CotangentSource,
    Parameter,
    input_site,
)
from crosscheck.errors import InvalidArgument, MissingFramework, capped
from crosscheck.observers import Key
from crosscheck.quantised import Steps
from crosscheck.taps import Observer
from crosscheck.trace import RunInfo

try:
    import onnx
except ImportError as missing:
    raise MissingFramework("onnx", needed_for="reading an ONNX model") from missing

from crosscheck.adapters.onnx_feeds import check_inputs, numpy_type
from crosscheck.adapters.onnx_forcing import OnnxSession, run_forced
from crosscheck.adapters.onnx_options import Options, Placed, runtime
from crosscheck.adapters.onnx_parameters import anonymous, describe, to_array
from crosscheck.adapters.onnx_providers import CPU
from crosscheck.adapters.onnx_quantised import dequantised, steps_of
from crosscheck.adapters.onnx_scopes import exporter_notes
from crosscheck.adapters.onnx_sessions import LIMIT, Sessions
from crosscheck.adapters.onnx_structure import Structure, graph_inputs

__all__ = ["OnnxAdapter", "find", "refuse"]


class OnnxAdapter(Placed, Adapter):
    """An ONNX model in ONNX Runtime.

    Args:
        proto: the model. `load` writes into it.
        options: how sessions are made.
        limit: bytes of weights above which a model goes through files (see `LIMIT`).
    """

    framework = "onnx"
    capabilities = Capabilities(cotangents=False, float64=False, train=False, cuda=True)

    def __init__(
        self, proto: onnx.ModelProto, options: Options | None = None, *, limit: int = LIMIT
    ) -> None:
        self.pin(options or Options())
        self.version = runtime().__version__
        self.structure = Structure.of(proto.graph)
        self._sessions = Sessions(proto, self.structure, self._options, limit)
        self._tensors = {t.name: t for t in proto.graph.initializer}
        elsewhere = [t.name for t in self._tensors.values() if t.data_location == t.EXTERNAL]
        if elsewhere:
            raise InvalidArgument(
                f"the values of {capped(elsewhere)} are in another file, which this ModelProto was "
                "loaded without.\n  Fix: give the path of the .onnx file, or onnx.load(path)"
            )
        self._arrays: dict[str, np.ndarray] = {}
        self._watching: str | None = None  # what watching changes; "" for nothing

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader of a report should know: how the file was exported, and what watching
        it changes. Complete after the first run."""
        found = exporter_notes(self.structure.graph, annotated=self.structure.annotated)
        lost = anonymous(self.structure)
        if lost:
            found.append(
                f"{len(lost)} weights ({capped(lost, 2)}) lost their parameters' names when the "
                "exporter optimised; optimize=False keeps them"
            )
        if self._options.session_options is not None:
            found.append(
                "session_options are the caller's: deterministic kernels are not asked for"
            )
        hidden = sorted({t for t in self._sessions.types.values() if numpy_type(t) is None})
        if hidden:
            found.append(f"values of type {', '.join(hidden)} cannot be shown")
        return (*found, self._watching) if self._watching else tuple(found)

    # -- parameters ----------------------------------------------------------------------------

    def parameters(self) -> tuple[Parameter, ...]:
        return describe(self._plain[0], self._value)

    @property
    def steps(self) -> Steps:
        return steps_of(self.structure, self._all_arrays, self._plain[1])

    @cached_property
    def _plain(self) -> tuple[Structure, dict[str, float]]:
        """The structure with quantised weights as what they stand for, and their steps."""
        graph, steps = dequantised(self.structure.graph, self._all_arrays)
        return (Structure.of(graph) if steps else self.structure), steps

    @property
    def _all_arrays(self) -> Mapping[str, np.ndarray]:
        return {name: self._array(name) for name in self._quantised()}

    def _quantised(self) -> list[str]:
        """The initializers that quantisation is made of."""
        used = [
            name
            for node in self.structure.graph.node
            if node.op_type in ("QuantizeLinear", "DequantizeLinear")
            for name in node.input
        ]
        return [name for name in dict.fromkeys(used) if name in self._tensors]

    def _value(self, name: str) -> np.ndarray:
        if name in self._tensors:
            return self._array(name)
        tensors = self._plain[0].graph.initializer
        return to_array(next(t for t in tensors if t.name == name))

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        held = [name for name in values if name in self._plain[1]]
        if held:
            raise InvalidArgument(
                f"`{held[0]}` of the ONNX model is quantised: weights are not written into "
                'integers.\n  Fix: weights="keep" compares what it holds with the reference\'s'
            )
        unknown = set(values) - {p.name for p in self.parameters()}
        if unknown:
            raise KeyError(sorted(unknown)[0])
        self.write(values)

    def write(self, values: Mapping[str, np.ndarray]) -> None:
        """Replace initializers, parameters or not."""
        for name, tensor in self._as_tensors(values).items():
            self._tensors[name].CopyFrom(tensor)
            self._arrays.pop(name, None)
        self._sessions.forget()
        self._watching = None

    @property
    def initializers(self) -> frozenset[str]:
        """The names of all of them."""
        return frozenset(self._tensors)

    def initializer(self, name: str) -> np.ndarray:
        """The value of one; not to be written to."""
        return self._array(name)

    def _array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            self._arrays[name] = to_array(self._tensors[name])
        return self._arrays[name]

    def _as_tensors(self, values: Mapping[str, np.ndarray]) -> dict[str, onnx.TensorProto]:
        made = {}
        for name, value in values.items():
            shape, array = tuple(self._tensors[name].dims), np.asarray(value)
            if array.shape != shape:
                raise ValueError(f"{name}: shape {array.shape}, expected {shape}")
            dtype = onnx.helper.tensor_dtype_to_np_dtype(self._tensors[name].data_type)
            made[name] = onnx.numpy_helper.from_array(np.array(array, dtype, order="C"), name)
        return made

    # -- run -----------------------------------------------------------------------------------

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        observer: Observer,
        *,
        cotangents: CotangentSource | None = None,
        float64: bool = False,
        overrides: Mapping[str, np.ndarray] | None = None,
        train: bool = False,
        seed: int = 0,
        passive: bool = False,
    ) -> RunInfo:
        refuse(cotangents=cotangents, float64=float64, train=train)
        self._sessions.use(self.options)
        given = check_inputs(graph_inputs(self.structure.graph), inputs)
        feeds = {graph: np.array(inputs[name], order="C") for graph, name in given.items()}
        overridden = self._as_tensors(overrides or {})
        self._sessions.learn_types([e.value for e in self.structure.events if e.value not in feeds])
        run = _Run(self._sessions, self.structure, feeds, overridden)
        session = OnnxSession(self.structure, given, observer, passive=passive)
        if passive:
            values = run.values({})
            session.show({**values, **self._unwatched(run, values)})
        else:
            run_forced(session, run)
        return RunInfo.of(
            session,
            inputs=tuple(input_site(name) for name in inputs),
            outputs=tuple(e.site for e in run.events if e.call == 0),
        )

    def _unwatched(self, run: _Run, watched: Mapping[Key, np.ndarray]) -> dict[Key, np.ndarray]:
        """The outputs of the model as it is: showing values costs it fusions.

        Compared bit for bit once for these weights; if watching changes nothing, nothing is run.
        """
        if self._watching == "":
            return {}
        bare = run.bare()
        changed = [k for k, v in bare.items() if v.tobytes() != watched[k].tobytes()]
        self._watching = ""
        if changed:
            worst = max(_relative(watched[key], bare[key]) for key in changed)
            self._watching = (
                f"ONNX Runtime fuses less when every layer is watched: the outputs differ by "
                f"{worst:.1e} (relative) from the unwatched model's. Layers are judged as watched; "
                "the free run's outputs are the unwatched model's"
            )
        return bare


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        wide = a.astype(np.float64), b.astype(np.float64)
        return float(np.linalg.norm(wide[0] - wide[1]) / np.linalg.norm(wide[1]))


class _Run:
    """One run's feeds and weights; `values` executes it with given replacements.

    Attributes:
        events: what can be shown (values of types that NumPy has), without the model's inputs.
    """

    def __init__(
        self,
        sessions: Sessions,
        structure: Structure,
        feeds: Mapping[str, np.ndarray],
        overridden: Mapping[str, onnx.TensorProto],
    ) -> None:
        self.sessions, self.structure = sessions, structure
        self.feeds, self.overridden = feeds, overridden
        self.events = [e for e in structure.events if self._type(e.value) is not None]

    @cached_property
    def keys(self) -> dict[Key, str]:
        """Everything that can be shown and replaced -> the value in the graph, in order."""
        inputs: dict[Key, str] = {("activation", input_site(name)): name for name in self.feeds}
        return inputs | {event.key: event.value for event in self.events}

    def _type(self, value: str) -> np.dtype | None:
        if value in self.feeds:
            return self.feeds[value].dtype
        return numpy_type(self.sessions.types[value])

    def values(self, plan: Mapping[Key, np.ndarray]) -> dict[Key, np.ndarray]:
        """Key -> value as produced, with the replacements of ``plan`` in effect behind it."""
        passed: dict[Key, Key | None] = {}
        for event in self.events:
            earlier = [key for key in self.structure.before(event) if key in plan]
            passed[event.key] = earlier[-1] if earlier else None
        wanted = [e.value for e in self.events if passed[e.key] is None]
        names = list(dict.fromkeys(v for v in wanted if v not in self.feeds))
        fed = {key: self._prepared(key, value) for key, value in plan.items()}
        found = self.sessions.run(names, self.feeds, fed, self.overridden)
        produced = {**found, **self.feeds}
        shown = {}
        for key, value in self.keys.items():
            source = passed.get(key)
            shown[key] = produced[value] if source is None else fed[source]
        return shown

    def _prepared(self, key: Key, replacement: np.ndarray) -> np.ndarray:
        dtype = self._type(self.keys[key])
        return np.array(replacement, dtype, order="C")

    def bare(self) -> dict[Key, np.ndarray]:
        """The outputs of the model as it is, nothing shown."""
        outputs = [e for e in self.events if e.call == 0]
        names = list(dict.fromkeys(e.value for e in outputs))
        found = self.sessions.run_bare(names, self.feeds, self.overridden)
        return {e.key: found[e.value] for e in outputs}


def refuse(*, cotangents: object, float64: bool, train: bool) -> None:
    """What an ONNX model cannot do.

    Raises:
        InvalidArgument: one of them is asked for.
    """
    for asked, what in (
        (cotangents is not None, "has no backward pass"),
        (float64, "does not run in float64"),
        (train, "has no train mode: what training does was decided when it was exported"),
    ):
        if asked:
            raise InvalidArgument(f"an ONNX model {what}")


def find(
    model: Any,
    *,
    session_options: Any = None,
    optimization: str | None = None,
    export: str | None = None,
    gradients: bool = False,
    transform: Any = None,
    providers: str | Sequence[str] = CPU,
) -> Adapter | None:
    """An adapter for the path of an ``.onnx`` file, a ModelProto, or a module to export.

    Args:
        session_options: an ``onnxruntime.SessionOptions``, used as it is.
        optimization: ``"none"``, ``"basic"``, ``"extended"`` or ``"all"``; ONNX Runtime's own
            default is all.
        export: ``"onnx"``: export a PyTorch module at the shapes of its inputs.
        gradients: of such a module: export its backward pass as well.
        transform: of such a module: a function of the exported ModelProto, which may change it or
            return another one (a graph optimiser, a quantiser).
        providers: execution providers, first choice first; default: that of ``device=``. Whatever
            runs on another one is an error.

    Raises:
        InvalidArgument, DeviceUnavailable, MissingFramework.
    """
    chosen = (providers,) if isinstance(providers, str) else tuple(providers)
    options = Options(session_options, optimization, chosen)
    if export is not None:
        from crosscheck.adapters.onnx_export import ExportedAdapter

        return ExportedAdapter.of(model, export, options, gradients=gradients, transform=transform)
    if gradients:
        raise InvalidArgument(
            'gradients=True: an ONNX file has no backward pass. It takes export="onnx" and the '
            "PyTorch module that the file was made from"
        )
    if transform is not None:
        raise InvalidArgument('transform= takes export="onnx"; change a file before it is given')
    if isinstance(model, onnx.ModelProto):
        return OnnxAdapter(model, options)
    if isinstance(model, (str, os.PathLike)) and Path(model).suffix.lower() == ".onnx":
        return OnnxAdapter(_read(Path(model)), options)
    return None


def _read(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise InvalidArgument(f"{path}: there is no such file")
    try:
        proto = onnx.load(path)
    except FileNotFoundError as error:
        raise InvalidArgument(f"{path}: its weights are in another file: {error}") from error
    except Exception as error:  # the parser's, and the checker's, of classes that are not public
        raise InvalidArgument(f"{path} is not a readable ONNX file: {error}") from error
    if not proto.graph.node:
        raise InvalidArgument(f"{path} is not an ONNX model: its graph is empty")
    return proto
