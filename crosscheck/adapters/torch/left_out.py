"""Layers whose values are known already are not computed (`crosscheck.observers.Forcer`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from crosscheck.adapters.torch.state import unwatched
from crosscheck.adapters.torch.taps import TorchSession, from_host, is_tensor
from crosscheck.arrays import is_float
from crosscheck.structure import leaves
from crosscheck.taps import Wishes

__all__ = ["LeftOut", "leave_out"]


class _Known(torch.autograd.Function):
    """Forward: a value that is known. Backward: zeros; what is sent back is known as well, and put
    in their place where it is seen."""

    @staticmethod
    def forward(ctx: Any, box: list[torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        ctx.sent = [one.new_zeros(()).expand(one.shape) for one in inputs]
        return box[0]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return None, *ctx.sent


class LeftOut(NamedTuple):
    """What a run goes without.

    Attributes:
        names: of the parameters and buffers that no other layer uses.
        ends: values that stand where a layer without differentiable inputs was. Autograd visits
            only what leads to a tensor that is asked for: without these, a backward pass would end
            before it came to the layers in front of them.
    """

    names: frozenset[str]
    ends: list[torch.Tensor]


@contextmanager
def leave_out(session: TorchSession, model: torch.nn.Module) -> Iterator[LeftOut]:
    """For the time of a run, replace the layers that the session's observer has no need of; not
    those that return their tensor in something that is not known how to make."""
    needless = Wishes.of(session.observer).needless
    if not needless:
        yield LeftOut(frozenset(), [])
        return
    unknown = {site.partition("#")[0] for site, made in session.returned.items() if made is None}
    modules = dict(model.named_modules(remove_duplicate=False))
    times = Counter(map(id, modules.values()))
    chosen = {
        path: modules[path]
        for path in ({site.partition("#")[0] for site in needless} - unknown) & set(modules)
        if times[id(modules[path])] == 1 and "forward" not in vars(modules[path])
    }
    left = LeftOut(_only_inside(model, set(chosen)) if chosen else frozenset(), [])
    try:
        for module in chosen.values():
            module.forward = _given(session, needless, module.forward, left.ends)
        yield left
    finally:
        for module in chosen.values():
            del module.forward


def _only_inside(model: torch.nn.Module, chosen: set[str]) -> frozenset[str]:
    named: list[tuple[str, torch.Tensor]] = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    outside = {id(tensor) for name, tensor in named if not _lies_in(name, chosen)}
    return frozenset(name for name, tensor in named if id(tensor) not in outside)


def _lies_in(name: str, paths: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:count]) in paths for count in range(1, len(parts)))


def _given(
    session: TorchSession, needless: frozenset[str], original: Any, ends: list[torch.Tensor]
) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        site = session.current
        if session.replaying or site is None or site not in needless:
            return original(*args, **kwargs)
        tensors = [tensor for _, tensor in leaves((args, kwargs), is_tensor)]
        known = session.observer.planned(site, "activation")  # type: ignore[attr-defined]
        session.given.add(("activation", site))
        with unwatched():
            value = _value(known, tensors, ends)
        wrapping = session.returned.get(site)
        return value if wrapping is None else wrapping.around(value)

    return forward


def _value(known: np.ndarray, inputs: list[torch.Tensor], ends: list[torch.Tensor]) -> torch.Tensor:
    """A known value, which hangs on the layer's inputs as far as autograd can tell."""
    floating = is_float(known)
    dtype = (
        torch.get_default_dtype() if floating else torch.from_numpy(np.empty(0, known.dtype)).dtype
    )
    device = inputs[0].device if inputs else None
    value = from_host(known, torch.empty(0, dtype=dtype, device=device))
    differentiable = [tensor for tensor in inputs if tensor.requires_grad]
    if differentiable:
        value = _Known.apply([value], *differentiable)  # type: ignore[no-untyped-call]
    elif floating and torch.is_grad_enabled():
        ends.append(value.requires_grad_())
    return value
