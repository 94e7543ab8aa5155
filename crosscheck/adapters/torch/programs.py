"""Adapters of PyTorch programs that no hook can be put on: exported, scripted, compiled ones."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch

from crosscheck.adapters.base import Capabilities, Operation, Parameter, call_arguments
from crosscheck.adapters.torch.adapter import Tensors, TorchAdapter
from crosscheck.adapters.torch.compiled import (
    kind_of,
    note_on,
    original,
    refusing_fallback,
    swapped,
)
from crosscheck.adapters.torch.graphs import GraphRun, constant_in, is_exported, layer_types
from crosscheck.adapters.torch.hooks import Boundaries
from crosscheck.adapters.torch.parameters import layer_axes, layer_kind
from crosscheck.adapters.torch.state import default_float64
from crosscheck.adapters.torch.taps import TorchSession, is_tensor
from crosscheck.errors import CannotCompare

__all__ = ["CompiledAdapter", "ProgramAdapter", "program"]


def program(model: Any) -> TorchAdapter | None:
    """The adapter of a compiled or exported program; None for anything else."""
    if isinstance(model, torch.export.ExportedProgram):
        return ProgramAdapter(model.module())
    if not isinstance(model, torch.nn.Module):
        return None
    if isinstance(model, torch.fx.GraphModule) and is_exported(model):
        return ProgramAdapter(model)
    kind = kind_of(model)
    return None if kind is None else CompiledAdapter(model, kind)


class ProgramAdapter(TorchAdapter):
    """An exported program (``torch.export``), run operation by operation; see `graphs`."""

    capabilities = Capabilities(cuda=True, train=False)
    model: torch.fx.GraphModule

    def __init__(self, model: torch.fx.GraphModule) -> None:
        super().__init__(model)
        self._types = layer_types(model.graph)

    @property
    def notes(self) -> tuple[str, ...]:
        return ("an exported program: its sites are what its operations say of their modules",)

    def parameters(self) -> tuple[Parameter, ...]:
        """Under the names of the original module, whose layer types the operations remember."""
        return tuple(self._typed(p) for p in super().parameters())

    def _typed(self, parameter: Parameter) -> Parameter:
        shell = _shell(self._types.get(parameter.layer, ""))
        leaf = parameter.name.rpartition(".")[2]
        if shell is None:
            return parameter
        axes = layer_axes(shell, leaf, parameter.value.ndim)
        return replace(parameter, kind=layer_kind(shell), axes=axes)

    def _prepare(self, stack: ExitStack, *, train: bool, seed: int, float64: bool) -> None:
        if train:
            raise CannotCompare(
                "an exported PyTorch program has no train mode: what training does was decided "
                "when it was exported.\n  Fix: leave train=True out, or check the module itself"
            )
        super()._prepare(stack, train=self.model.training, seed=seed, float64=float64)

    def _boundaries(self, session: TorchSession, replaced: Tensors, *, float64: bool) -> Boundaries:
        def fetch(name: str) -> Any:
            value = replaced[name] if name in replaced else constant_in(self.model, name)
            if not is_tensor(value):
                return value
            value = value.to(self.device)
            return value.double() if float64 and value.is_floating_point() else value

        run = GraphRun(session, self.model, fetch)
        run.float64 = float64
        return run

    def _forward(self, seen: Boundaries, tapped: dict[str, Any]) -> Any:
        assert isinstance(seen, GraphRun)
        return seen.call("GraphModule", seen.forward, seen.arguments(tapped), {})


class CompiledAdapter(TorchAdapter):
    """A TorchScript or ``torch.compile`` module: its ends are observed, and the whole is run."""

    def __init__(self, model: torch.nn.Module, kind: str) -> None:
        super().__init__(original(model))
        self._compiled, self._compiler = model, kind

    @property
    def notes(self) -> tuple[str, ...]:
        return (note_on(self._compiler),)

    def operations(self, *args: Any, **options: Any) -> tuple[Operation, ...]:
        """None: what would record them would be compiled as well."""
        return ()

    def _prepare(self, stack: ExitStack, *, train: bool, seed: int, float64: bool) -> None:
        super()._prepare(stack, train=train, seed=seed, float64=False)
        if float64:  # a mode that looks at every call would be compiled as well
            stack.enter_context(default_float64(casts=False))

    def _boundaries(self, session: TorchSession, replaced: Tensors, *, float64: bool) -> Boundaries:
        return Boundaries(session)

    def _in_place_of(self, stack: ExitStack, replaced: Tensors) -> Tensors:
        stack.enter_context(swapped(self.model, replaced))
        return {}

    def _forward(self, seen: Boundaries, tapped: dict[str, Any]) -> Any:
        args, kwargs = call_arguments(self.model.forward, tapped)
        with refusing_fallback() if self._compiler == "torch.compile" else nullcontext():
            return seen.call(type(self.model).__name__, self._compiled, args, kwargs)


def _shell(name: str) -> torch.nn.Module | None:
    """An empty instance of a PyTorch layer class, to ask for its kind; None for other classes."""
    module, _, cls = name.rpartition(".")
    if not module.startswith("torch.nn."):
        return None
    found: Any = getattr(import_module(module), cls, None)
    is_layer = isinstance(found, type) and issubclass(found, torch.nn.Module)
    return found.__new__(found) if is_layer else None
