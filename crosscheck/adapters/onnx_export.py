"""A PyTorch module as ONNX: exported when it is first run, at the shapes that it is run with.

The exporter knows which call of a module an operation belongs to, though it does not write it into
the file: `crosscheck.adapters.onnx_scopes.CALLS` is added here. Nothing is optimised on the way, so
that every layer keeps its output and every parameter its name.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from crosscheck.adapters.base import (
    Adapter,
    CotangentSource,
    ModelRaised,
    Parameter,
    call_arguments,
)
from crosscheck.adapters.onnx import OnnxAdapter, refuse
from crosscheck.adapters.onnx_scopes import CALLS, scopes
from crosscheck.adapters.onnx_sessions import Options, runtime
from crosscheck.errors import InvalidArgument, MissingFramework
from crosscheck.taps import Observer
from crosscheck.trace import RunInfo

__all__ = ["ExportedAdapter"]


class ExportedAdapter(Adapter):
    """A PyTorch module that ONNX Runtime runs. Inputs of other shapes export it again.

    Parameters are the module's own, and `load` writes into the module as well.
    """

    framework = "onnx"
    capabilities = OnnxAdapter.capabilities

    def __init__(self, model: Any, options: Options) -> None:
        from crosscheck.adapters.torch import TorchAdapter

        options.check()
        self.model = model
        self.version = runtime().__version__
        self._torch = TorchAdapter(model)
        self._options = options
        self._exported: OnnxAdapter | None = None
        self._shapes: Any = None

    @classmethod
    def of(cls, model: Any, export: str, options: Options) -> ExportedAdapter | None:
        """The adapter, or None for what is no PyTorch module."""
        if export != "onnx":
            raise InvalidArgument(f'export={export!r}: must be "onnx"')
        try:
            import torch
        except ImportError as error:
            raise MissingFramework("torch", needed_for='export="onnx"') from error
        return cls(model, options) if isinstance(model, torch.nn.Module) else None

    @property
    def notes(self) -> tuple[str, ...]:
        """See `OnnxAdapter.notes`."""
        return () if self._exported is None else self._exported.notes

    def parameters(self) -> tuple[Parameter, ...]:
        return tuple(replace(p, trainable=False) for p in self._torch.parameters())

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
        refuse(cotangents=cotangents, float64=float64, train=train)
        shapes = {name: (array.shape, array.dtype) for name, array in inputs.items()}
        if self._exported is None or self._shapes != shapes:
            self._exported = OnnxAdapter(_export(self.model, inputs), self._options)
            self._shapes = shapes
        return self._exported.run(
            inputs, observer, overrides=self._in_file(overrides or {}), seed=seed, passive=passive
        )

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


def _export(model: Any, inputs: Mapping[str, np.ndarray]) -> Any:
    import torch

    tensors = {name: torch.tensor(np.ascontiguousarray(a)) for name, a in inputs.items()}
    args, kwargs = call_arguments(model.forward, tensors)
    with _left_as_found(model):
        try:
            program = torch.onnx.export(
                model, tuple(args), kwargs=kwargs, dynamo=True, optimize=False, verbose=False
            )
        except ImportError as error:
            raise MissingFramework("onnxscript", needed_for='export="onnx"') from error
        except Exception as error:  # the exporter runs the model, and has errors of its own
            raise ModelRaised(None, "export") from error
    assert program is not None
    proto = program.model_proto
    _number_calls(proto, program.exported_program)
    return proto


@contextmanager
def _left_as_found(model: Any) -> Iterator[None]:
    """Eval mode, quietly; modes and random states are put back."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        model.eval()
        try:
            yield
        finally:
            logger.setLevel(level)
            for module, mode in modes:
                module.training = mode


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
