"""ONNX: a file or a proto, run by ONNX Runtime; a PyTorch module by way of its exporter.

In float64 it runs as far as ONNX Runtime has such kernels (`crosscheck.adapters.onnx.wide`); a
backward pass has only a module that was exported here (`crosscheck.adapters.onnx.export`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
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
from crosscheck.judging.quantised import Steps
from crosscheck.observers import Key
from crosscheck.taps import Observer, Wishes
from crosscheck.trace import RunInfo

try:
    import onnx
except ImportError as missing:
    raise MissingFramework("onnx", needed_for="reading an ONNX model") from missing

from crosscheck.adapters.onnx.feeds import check_inputs, declared, numpy_type
from crosscheck.adapters.onnx.forcing import OnnxSession, run_forced
from crosscheck.adapters.onnx.numbers import held_among
from crosscheck.adapters.onnx.options import Options, Placed, runtime
from crosscheck.adapters.onnx.parameters import FLOATS, anonymous, describe, merged, to_array
from crosscheck.adapters.onnx.providers import CPU
from crosscheck.adapters.onnx.quantised import dequantised, steps_of, without_steps
from crosscheck.adapters.onnx.run import GraphRun
from crosscheck.adapters.onnx.scopes import exporter_notes
from crosscheck.adapters.onnx.sessions import LIMIT, Sessions
from crosscheck.adapters.onnx.structure import Structure, graph_inputs
from crosscheck.adapters.onnx.weights import Weights, same_bits
from crosscheck.adapters.onnx.wide import wide_type

__all__ = ["OnnxAdapter", "find", "refuse"]


class OnnxAdapter(Placed, Adapter):
    """An ONNX model in ONNX Runtime.

    Args:
        model: it, or its parts. `load` writes into a ModelProto.
        options: how sessions are made.
        limit: bytes of weights above which a model goes through files (see `LIMIT`).
    """

    framework = "onnx"
    capabilities = Capabilities(cotangents=False, train=False, cuda=True, lends=True)

    def __init__(
        self,
        model: onnx.ModelProto | Weights,
        options: Options | None = None,
        *,
        limit: int = LIMIT,
    ) -> None:
        self.pin(options or Options())
        self.version = runtime().__version__
        self._given = None if isinstance(model, Weights) else model
        self._weights = model if isinstance(model, Weights) else _parts(model)
        self.structure = Structure.of(self._weights.proto.graph)
        self._sessions = Sessions(self._weights, self.structure, self._options, limit)
        self._tensors = self._weights.tensors
        self._watching: str | None = None  # what watching changes; "" for nothing
        self._described: tuple[Parameter, ...] | None = None

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
        coarse = without_steps(self.structure.graph)
        if coarse:
            found.append(
                f"{capped(coarse)} quantise by steps that are not read from the file: what they "
                "make differs by more than rounding, and diverges even where that is all"
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
        if self._described is None:
            self._described = describe(self._plain[0], self._value)
        return self._described

    def held(self, values: Mapping[str, np.ndarray]) -> frozenset[str]:
        names = [t.name for t in self.structure.graph.initializer if t.data_type in FLOATS]
        return held_among(values, names, self._array)

    def unnamed(self) -> tuple[str, ...]:
        return tuple(anonymous(self.structure))

    def merged(self) -> tuple[str, ...]:
        return merged(self.structure)

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
        made = self._as_arrays(values)
        other = {n: array for n, array in made.items() if not same_bits(array, self._array(n))}
        if not other:
            return
        self._weights.put({name: array.copy() for name, array in other.items()})
        for tensor in self._given.graph.initializer if self._given is not None else ():
            if tensor.name in other:
                tensor.CopyFrom(onnx.numpy_helper.from_array(other[tensor.name], tensor.name))
        self._sessions.forget()
        self._watching = self._described = None

    @property
    def initializers(self) -> frozenset[str]:
        """The names of all of them."""
        return frozenset(self._tensors)

    def initializer(self, name: str) -> np.ndarray:
        """The value of one; not to be written to."""
        return self._array(name)

    def _array(self, name: str) -> np.ndarray:
        return self._weights.array(name)

    def _as_arrays(
        self, values: Mapping[str, np.ndarray], *, wide: bool = False
    ) -> dict[str, np.ndarray]:
        """Of the types in the file, or of a run in float64; what is of its type is not copied."""
        made = {}
        for name, value in values.items():
            shape, array = tuple(self._tensors[name].dims), np.asarray(value)
            if array.shape != shape:
                raise ValueError(f"{name}: shape {array.shape}, expected {shape}")
            dtype = onnx.helper.tensor_dtype_to_np_dtype(self._tensors[name].data_type)
            made[name] = np.asarray(array, wide_type(dtype) if wide else dtype, order="C")
        return made

    def declared(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, tuple[int | None, ...]]:
        return declared(graph_inputs(self.structure.graph), inputs)

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
        refuse(cotangents=cotangents, train=train)
        self._sessions.use(self.options)
        given = check_inputs(graph_inputs(self.structure.graph), inputs)
        feeds = {graph: np.array(inputs[name], order="C") for graph, name in given.items()}
        overridden = self._as_arrays(overrides or {}, wide=float64)
        self._sessions.learn_types([e.value for e in self.structure.events if e.value not in feeds])
        wishes = Wishes.of(observer)
        run = GraphRun(
            self._sessions,
            self.structure,
            feeds,
            overridden,
            changes_only=bool(overridden) and wishes.changes_only,
            only=wishes.only,
            wide=float64,
        )
        session = OnnxSession(self.structure, given, observer, passive=passive)
        if passive:
            values = run.values({})
            bare = {} if float64 or wishes.only is not None else self._unwatched(run, values)
            session.show({**values, **bare})
        else:
            run_forced(session, run)
        return RunInfo.of(
            session,
            inputs=tuple(input_site(name) for name in inputs),
            outputs=tuple(e.site for e in run.events if e.call == 0),
        )

    def taken_by(
        self, wanted: Collection[Key], forced: Collection[Key]
    ) -> tuple[frozenset[Key], frozenset[str]]:
        """See `Adapter.taken_by`."""
        # Inputs may have other names in the file than the caller's.
        inputs = {key for key in forced if key[1].startswith(input_site(""))}
        before, needed = self._sessions.taken_by(wanted, forced)
        return frozenset(inputs | before), frozenset(needed & self._tensors.keys())

    def _unwatched(self, run: GraphRun, watched: Mapping[Key, np.ndarray]) -> dict[Key, np.ndarray]:
        """The outputs of the model as it is: showing values costs it fusions.

        Compared bit for bit once for these weights; if watching changes nothing, nothing is run. Of
        a model that is run as it is written, only a half precision that was shown may: between
        kernels that lack it, ONNX Runtime leaves out the casts to it.
        """
        halves = {"tensor(float16)", "tensor(bfloat16)"} & {*self._sessions.types.values()}
        if self.options.level == "none" and not halves:
            self._watching = ""
        if self._watching == "":
            return {}
        bare = run.bare()
        changed = [k for k, v in bare.items() if not same_bits(v, watched[k])]
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
        wide = np.result_type(a.dtype, np.float32)
        a, b = a.astype(wide, copy=False), b.astype(wide, copy=False)
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def refuse(*, cotangents: object, train: bool, wide: bool = False) -> None:
    """What an ONNX model cannot do. ``wide``: a backward pass in float64 is asked for.

    Raises:
        InvalidArgument: one of them is asked for.
    """
    for asked, what in (
        (cotangents is not None, "has no backward pass"),
        (wide, "has no backward pass in float64"),
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
        from crosscheck.adapters.onnx.export import ExportedAdapter

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


def _parts(proto: onnx.ModelProto) -> Weights:
    elsewhere = [t.name for t in proto.graph.initializer if t.data_location == t.EXTERNAL]
    if elsewhere:
        raise InvalidArgument(
            f"the values of {capped(elsewhere)} are in another file, which this ModelProto was "
            "loaded without.\n  Fix: give the path of the .onnx file, or onnx.load(path)"
        )
    return Weights.of(proto)


def _read(path: Path) -> Weights:
    if not path.is_file():
        raise InvalidArgument(f"{path}: there is no such file")
    try:
        weights = Weights.read(path)
    except FileNotFoundError as error:
        raise InvalidArgument(f"{path}: its weights are in another file: {error}") from error
    except Exception as error:  # the parser's, and the checker's, of classes that are not public
        raise InvalidArgument(f"{path} is not a readable ONNX file: {error}") from error
    if not weights.proto.graph.node:
        raise InvalidArgument(f"{path} is not an ONNX model: its graph is empty")
    return weights
