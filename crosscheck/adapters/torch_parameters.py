"""Names, roles and axes of a PyTorch module's parameters (no hooks, no runs)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from crosscheck.adapters.base import Parameter

__all__ = ["describe"]

_SPATIAL = {1: ("w",), 2: ("h", "w"), 3: ("d", "h", "w")}
_ROLES = {
    "weight": "weight",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "variance",
}
_NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "dense"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    if isinstance(module, _NORMS):
        return "norm"
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "other"


def _axes(module: nn.Module, leaf: str, ndim: int) -> tuple[str, ...] | None:
    kind = _kind(module)
    if kind in ("dense", "conv") and leaf == "bias":
        return ("out",)
    if kind == "dense":
        return ("out", "in")
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return ("in", "out", *_SPATIAL[ndim - 2])
    if kind == "conv":
        return ("out", "in", *_SPATIAL[ndim - 2])
    if kind == "embedding":
        return ("row", "dim")
    if kind == "norm" and ndim == 1:
        return ("channel",)
    return ("channel",) if ndim == 1 else None


def describe(
    model: nn.Module, to_host: Callable[[torch.Tensor], np.ndarray]
) -> tuple[Parameter, ...]:
    """All parameters and floating-point buffers, in definition order.

    Integer buffers (counters such as ``num_batches_tracked``) carry no weights and are left out.
    """
    modules = dict(model.named_modules())
    found: list[tuple[str, torch.Tensor, bool]]
    found = [(name, tensor, False) for name, tensor in model.named_parameters()]
    found += [(n, b, True) for n, b in model.named_buffers() if _is_state(modules, n, b)]
    order = {name: i for i, name in enumerate(modules)}
    described = []
    for name, tensor, buffer in found:
        layer, _, leaf = name.rpartition(".")
        module = modules[layer]
        described.append(
            Parameter(
                name=name,
                value=to_host(tensor),
                layer=layer,
                role=_ROLES.get(leaf, "other"),
                kind=_kind(module),
                axes=_axes(module, leaf, tensor.ndim),
                trainable=tensor.requires_grad and not buffer,
                buffer=buffer,
            )
        )
    return tuple(sorted(described, key=lambda p: order[p.layer]))


def _is_state(modules: dict[str, nn.Module], name: str, buffer: torch.Tensor) -> bool:
    """Whether a buffer holds running statistics; masks and tables are the model's own constants."""
    layer, _, leaf = name.rpartition(".")
    return leaf in ("running_mean", "running_var") and buffer.is_floating_point()
