"""Under ``max_memory``: the float64 run of a model whose parameters are cast where they are used.

A copy of all parameters in float64, and their gradients, would take four times the model. Here a
module that asks for a parameter gets a cast of it, which lives as long as the layer computes; the
backward pass casts again, and each gradient goes to the values of the run as it arrives.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from crosscheck.adapters.torch.taps import to_host
from crosscheck.memory import new_values

__all__ = ["Widened", "widened"]


class Widened:
    """The casts of one run.

    Attributes:
        names: of the parameters that are cast where they are used.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._first = {id(p): name for name, p in model.named_parameters()}
        floats = (n for n, p in model.named_parameters() if p.is_floating_point())
        self.names = frozenset(floats)
        self._arrived = new_values()
        self._casts: dict[int, tuple[weakref.ref[torch.Tensor], torch.nn.Parameter]] = {}

    def cast(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The parameter in float64, in the graph of the run."""
        wide: torch.Tensor = _Widen.apply(parameter, self)  # type: ignore[no-untyped-call]
        self._casts[wide.untyped_storage().data_ptr()] = weakref.ref(wide), parameter
        return wide

    def cast_of(self, tensor: torch.Tensor) -> torch.nn.Parameter | None:
        """The parameter of which ``tensor`` is (a view of) a cast."""
        known = self._casts.get(tensor.untyped_storage().data_ptr())
        return None if known is None or known[0]() is None else known[1]

    def arrived(self, parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
        """One use of a parameter sends back its share of the gradient."""
        name, share = self._first[id(parameter)], to_host(gradient)
        before = self._arrived.get(name)
        self._arrived[name] = np.array(share, order="C") if before is None else before + share

    def gradients(self, others: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Those that arrived, zeros for what was never used, and ``others`` as they are."""
        found = new_values()
        for name, value in others.items():
            if name in self._arrived:
                found[name] = self._arrived.pop(name)
            else:
                found[name] = np.zeros(value.shape) if name in self.names else value
        return found


class _Widen(torch.autograd.Function):
    """Forward: the cast. Backward: the gradient is put aside in float64, and goes no further."""

    @staticmethod
    def forward(ctx: Any, parameter: torch.nn.Parameter, run: Widened) -> torch.Tensor:
        ctx.parameter, ctx.run = parameter, run
        return parameter.detach().double()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        ctx.run.arrived(ctx.parameter, grads[0])
        return None, None


class _Casting(dict[str, Any]):
    """The parameters of one module: what it asks for by name is a cast."""

    def __init__(self, own: dict[str, Any], run: Widened) -> None:
        super().__init__(own)
        self._run = run

    def __getitem__(self, name: str) -> Any:
        parameter = super().__getitem__(name)
        if parameter is None or not parameter.is_floating_point():
            return parameter
        return self._run.cast(parameter)


@contextmanager
def widened(model: torch.nn.Module) -> Iterator[Widened]:
    """Within it, every module computes with casts of its parameters."""
    run = Widened(model)
    modules = [(module, module._parameters) for module in model.modules() if module._parameters]
    try:
        for module, own in modules:
            module.__dict__["_parameters"] = _Casting(own, run)
        yield run
    finally:
        for module, own in modules:
            module.__dict__["_parameters"] = own
