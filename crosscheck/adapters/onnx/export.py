"""A PyTorch module as ONNX: exported when it is first run, at the shapes that it is run with.

The exporter knows which call of a module an operation belongs to, though it does not write it into
the file: `crosscheck.adapters.onnx.scopes.CALLS` is added here. Nothing is optimised on the way, so
that every layer keeps its output and every parameter its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from crosscheck.adapters.base import (
    Adapter,
    CotangentSource,
    ModelRaised,
    Parameter,
    call_arguments,
)
from crosscheck.adapters.onnx.adapter import OnnxAdapter, refuse
from crosscheck.adapters.onnx.backward import FORMULAS, Argument, BackwardRun, BackwardSession
from crosscheck.adapters.onnx.forcing import OnnxSession, run_forced
from crosscheck.adapters.onnx.options import Options, Placed, runtime
from crosscheck.adapters.onnx.scopes import CALLS, scopes
from crosscheck.adapters.onnx.weights import Weights
from crosscheck.errors import InvalidArgument, MissingFramework
from crosscheck.kernels.on_device import held
from crosscheck.observers import Key, Recorder
from crosscheck.taps import Kind, Observer
from crosscheck.trace import RunInfo

__all__ = ["ExportedAdapter", "Transformation", "export"]

Transformation = Callable[[onnx.ModelProto], "onnx.ModelProto | None"]


class ExportedAdapter(Placed, Adapter):
    """A PyTorch module that ONNX Runtime runs. Inputs of other shapes export it again.

    Parameters are the module's own, with the values that the graph holds once there is one (what
    changed the graph may have changed them); `load` writes into both.

    Args:
        gradients: export its backward pass too (see `crosscheck.adapters.onnx.vjp`).
        transform: called with the exported proto before it is run (an optimiser, a quantiser);
            what it returns, unless None, is run instead. The backward pass is not given to it.
    """

    framework = "onnx"

    def __init__(
        self,
        model: Any,
        options: Options,
        *,
        gradients: bool = False,
        transform: Transformation | None = None,
    ) -> None:
        from crosscheck.adapters.torch.adapter import TorchAdapter

        self.pin(options)
        self.model = model
        self.transform = transform
        self.version = runtime().__version__
        self.capabilities = replace(
            OnnxAdapter.capabilities, cotangents=gradients, float64=not gradients
        )
        self._torch = TorchAdapter(model)
        self._exported: OnnxAdapter | None = None
        self._backward: BackwardSession | None = None
        self._shapes: Any = None
        self._traced_with: Mapping[str, np.ndarray] = {}

    @classmethod
    def of(
        cls,
        model: Any,
        export: str,
        options: Options,
        *,
        gradients: bool = False,
        transform: Transformation | None = None,
    ) -> ExportedAdapter | None:
        """The adapter, or None for what is no PyTorch module."""
        if export != "onnx":
            raise InvalidArgument(f'export={export!r}: must be "onnx"')
        try:
            import torch
        except ImportError as error:
            raise MissingFramework("torch", needed_for='export="onnx"') from error
        if not isinstance(model, torch.nn.Module):
            return None
        return cls(model, options, gradients=gradients, transform=transform)

    @property
    def notes(self) -> tuple[str, ...]:
        """See `OnnxAdapter.notes`."""
        found = () if self._exported is None else self._exported.notes
        return found if self._backward is None else (*found, FORMULAS)

    def parameters(self) -> tuple[Parameter, ...]:
        backward = self.capabilities.cotangents
        return tuple(
            replace(p, value=self._as_run(p), trainable=p.trainable and backward)
            for p in self._torch.parameters()
        )

    def _as_run(self, parameter: Parameter) -> np.ndarray:
        """A parameter's value in the graph; the module's where the graph has no such tensor (not
        exported yet, or folded into another and quantised)."""
        if self._exported is None or parameter.name not in self._exported.initializers:
            return parameter.value
        held = self._exported.initializer(parameter.name)
        same = (held.shape, held.dtype) == (parameter.value.shape, parameter.value.dtype)
        return held if same else parameter.value

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        self._torch.load(values)
        if self._exported is not None:
            state = self.model.state_dict()
            shared = self._exported.initializers & state.keys()
            self._exported.write({name: state[name].cpu().numpy() for name in sorted(shared)})

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
        backward = cotangents if self.capabilities.cotangents else None
        wide = float64 and backward is not None
        refuse(cotangents=cotangents if backward is None else None, wide=wide, train=train)
        exported = self._for_shapes(inputs)
        keeper = _keeping(observer)
        info = exported.run(
            inputs,
            keeper,
            float64=float64,
            overrides=self._in_file(overrides or {}),
            seed=seed,
            passive=passive,
        )
        if backward is None:
            return info
        if self._backward is None or self._has_branched(self._backward, inputs):
            self._backward = self._traced(exported, inputs)
        given = backward({site: keeper.values["activation", site] for site in info.outputs})
        arguments: dict[Argument, np.ndarray] = {("input", n): a for n, a in inputs.items()}
        arguments |= {("forward", key): value for key, value in keeper.values.items()}
        arguments |= {("given", site): value for site, value in given.items()}
        arguments |= {("parameter", n): a for n, a in self._state(overrides or {}).items()}
        run = BackwardRun(self._backward, arguments, passive=passive)
        session = OnnxSession(exported.structure, {}, observer, passive=passive)
        if passive:
            session.show(run.values({}))
        else:
            run_forced(session, run)
        hidden = info.unobservable | self._backward.graph.unobservable
        return replace(info, parameter_gradients=run.gradients, unobservable=hidden)

    def _for_shapes(self, inputs: Mapping[str, np.ndarray]) -> OnnxAdapter:
        shapes = {name: (array.shape, array.dtype) for name, array in inputs.items()}
        if self._exported is None or self._shapes != shapes:
            proto = export(self.model, inputs)
            changed = None if self.transform is None else self.transform(proto)
            proto = proto if changed is None else changed
            self._exported = OnnxAdapter(Weights.of(proto), self._options)
            self._backward, self._shapes = None, shapes
        if self._exported.device != self.device:
            self._exported.use(self.device)
            self._backward = None
        return self._exported

    def _traced(self, exported: OnnxAdapter, inputs: Mapping[str, np.ndarray]) -> BackwardSession:
        from crosscheck.adapters.onnx.vjp import trace

        recorder = Recorder()
        exported.run(inputs, recorder)
        self._traced_with = {name: array.copy() for name, array in inputs.items()}
        graph = trace(self.model, exported.structure.root, inputs, recorder.values)
        return BackwardSession(graph, self.options)

    def _has_branched(self, backward: BackwardSession, inputs: Mapping[str, np.ndarray]) -> bool:
        """Whether the backward pass may take another way for these inputs."""
        known = self._traced_with
        return backward.graph.branches and any(
            not np.array_equal(known[name], array, equal_nan=array.dtype.kind == "f")
            for name, array in inputs.items()
        )

    def _state(self, overrides: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the module holds, under the names that it has there first."""
        tensors = (*self.model.named_parameters(), *self.model.named_buffers())
        return {name: tensor.detach().cpu().numpy() for name, tensor in tensors} | {**overrides}

    def _in_file(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A shared parameter may have the name of another of its places in the file."""
        assert self._exported is not None
        state = self.model.state_dict()
        return {
            alias: value
            for name, value in values.items()
            for alias, tensor in state.items()
            if alias in self._exported.initializers
            and (alias == name or tensor.data_ptr() == state[name].data_ptr() != 0)
        }


class _Keeper:
    """Passes everything on to an observer and keeps what goes on behind each place."""

    def __init__(self, observer: Observer) -> None:
        self.values: dict[Key, np.ndarray] = {}
        self._observer = observer

    def __call__(self, site: str, kind: Kind, value: np.ndarray) -> np.ndarray | None:
        replacement = self._observer(site, kind, value)
        value = value if replacement is None else replacement
        self.values[kind, site] = held(value, borrowed=True)
        return replacement


class _PlannedKeeper(_Keeper):
    """For an observer that knows beforehand what it replaces."""

    def planned(self, site: str, kind: Kind) -> np.ndarray | None:
        answer: np.ndarray | None = self._observer.planned(site, kind)  # type: ignore[attr-defined]
        return answer


def _keeping(observer: Observer) -> _Keeper:
    return (_PlannedKeeper if hasattr(observer, "planned") else _Keeper)(observer)


def export(model: Any, inputs: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A PyTorch module as an ONNX graph in which every node says which call of it it belongs to.

    Args:
        inputs: the model's, of the shapes that the graph is for.

    Raises:
        ModelRaised: the exporter, or the module under it, raised.
        MissingFramework: onnxscript is not installed.
    """
    import torch

    from crosscheck.adapters.onnx.vjp import exporting
    from crosscheck.adapters.torch.state import left_as_found

    tensors = {name: torch.tensor(np.ascontiguousarray(a)) for name, a in inputs.items()}
    args, kwargs = call_arguments(model.forward, tensors)
    with left_as_found(model, train=False, seed=0), exporting():
        try:
            program = torch.onnx.export(
                model, tuple(args), kwargs=kwargs, dynamo=True, optimize=False, verbose=False
            )
        except ImportError as error:
            raise MissingFramework("onnxscript", needed_for='export="onnx"') from error
        except Exception as error:  # the exporter runs the model, and has errors of its own
            raise ModelRaised(None, "export") from error
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    _number_calls(proto, program.exported_program)
    return proto


def _number_calls(proto: Any, program: Any) -> None:
    """Write into every node which call of each module around it it belongs to."""
    numbers = {
        node.name: [
            int(match[1]) if (match := re.search(r"@(\d+)$", key)) else 0
            for key in node.meta.get("nn_module_stack") or {}
        ]
        for node in program.graph.nodes
    }
    for node in proto.graph.node:
        known = scopes(node)
        found = numbers.get(known[-1], []) if known else []
        if found and len(found) == len(known) - 1:
            node.metadata_props.add(key=CALLS, value=repr(found))
