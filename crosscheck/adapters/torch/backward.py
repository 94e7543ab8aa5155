"""The backward pass of a PyTorch model, from its outputs to its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from crosscheck.adapters.torch.state import unwatched
from crosscheck.adapters.torch.taps import from_host, to_host

__all__ = ["gradients_of"]


class _Start(torch.autograd.Function):
    """Forward: a scalar. Backward: each root receives its cotangent.

    Handed to ``torch.autograd.grad`` itself, cotangents would be looked at for symbolic shapes: the
    first time that imports SymPy, which takes as long as the check of a small model.
    """

    @staticmethod
    def forward(ctx: Any, cotangents: list[torch.Tensor], *roots: torch.Tensor) -> torch.Tensor:
        ctx.cotangents = cotangents
        return torch.zeros((), device=roots[0].device)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return None, *ctx.cotangents


def gradients_of(
    leaves: Mapping[str, torch.Tensor],
    outputs: Sequence[tuple[str, torch.Tensor]],
    cotangents: Mapping[str, np.ndarray],
    ends: Sequence[torch.Tensor],
) -> dict[str, np.ndarray]:
    """The gradient of each leaf; zeros where none arrives.

    Args:
        outputs: sites of the model's outputs, and their values.
        cotangents: site -> what the output there receives.
        ends: further tensors up to which the pass is to go.
    """
    roots = [(t, cotangents[s]) for s, t in outputs if s in cotangents and t.requires_grad]
    if not roots:
        return {n: np.zeros(tuple(p.shape), np.float32) for n, p in leaves.items()}
    with unwatched():
        given = [from_host(cotangent, tensor) for tensor, cotangent in roots]
        start = _Start.apply(given, *(tensor for tensor, _ in roots))  # type: ignore[no-untyped-call]
    gradients = torch.autograd.grad(start, [*leaves.values(), *ends], allow_unused=True)
    return {
        name: np.zeros_like(to_host(p)) if g is None else to_host(g)
        for (name, p), g in zip(leaves.items(), gradients[: len(leaves)], strict=True)
    }
