"""Names, roles and axes of a PyTorch module's parameters (no hooks, no runs)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

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
    "in_proj_weight": "weight",
    "in_proj_bias": "bias",
}
_RECURRENT = (
    ((nn.LSTM, nn.LSTMCell), "lstm", "ifgo"),
    ((nn.GRU, nn.GRUCell), "gru", "rzn"),
    ((nn.RNN, nn.RNNCell), "rnn", "h"),
)
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
    return _recurrent(module)[0]


def _recurrent(module: nn.Module) -> tuple[str, str]:
    """(kind, order of its gates) of a recurrent module; ``"other"`` and none for the rest."""
    for types, kind, gates in _RECURRENT:
        if isinstance(module, types):
            return kind, gates
    return "other", ""


def _role(leaf: str) -> str:
    """Of a parameter by its name, also among several layers of one module (``weight_hh_l0``)."""
    return _ROLES.get(leaf) or _ROLES.get(leaf.partition("_ih")[0].partition("_hh")[0], "other")


def _axes(module: nn.Module, leaf: str, ndim: int) -> tuple[str, ...] | None:
    kind, gates = _kind(module), _recurrent(module)[1]
    if gates and leaf.startswith(("weight_ih", "weight_hh", "bias_")):
        return (f"gates:{gates}", "in")[:ndim]
    if isinstance(module, nn.MultiheadAttention):
        return ("out", "in")[:ndim] if leaf.startswith("in_proj") else None
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


Natures = dict[tuple[type[nn.Module], str, int], tuple[str, str, "tuple[str, ...] | None"]]
"""Type of a module, name and dimensions of its parameter -> role, kind and axes."""


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
    shared = _other_names(modules, {id(tensor): name for name, tensor, _ in found})
    natures: Natures = {}
    described = []
    for name, tensor, buffer in found:
        value = to_host(tensor)
        one = _describe(modules, natures, name, tensor, value, buffer=buffer)
        names = shared.get(id(tensor))
        if names:
            also = [_describe(modules, natures, n, tensor, value, buffer=buffer) for n in names]
            one = replace(one, also=tuple(also))
        described.append(one)
    return tuple(sorted(described, key=lambda p: order[p.layer]))


def _describe(
    modules: dict[str, nn.Module],
    natures: Natures,
    name: str,
    tensor: torch.Tensor,
    value: np.ndarray,
    *,
    buffer: bool,
) -> Parameter:
    layer, _, leaf = name.rpartition(".")
    module = modules[layer]
    alike = type(module), leaf, value.ndim
    if alike not in natures:
        natures[alike] = _role(leaf), _kind(module), _axes(module, leaf, value.ndim)
    role, kind, axes = natures[alike]
    return Parameter(
        name=name,
        value=value,
        layer=layer,
        role=role,
        kind=kind,
        axes=axes,
        trainable=tensor.requires_grad and not buffer,
        buffer=buffer,
    )


def _other_names(modules: dict[str, nn.Module], first: dict[int, str]) -> dict[int, list[str]]:
    """Tensor -> the names, but for its first, under which modules share it (tied weights).

    A module that is reached by several paths is one layer, not several.
    """
    found: dict[int, list[str]] = {}
    for layer, module in modules.items():
        for leaf, tensor in module._parameters.items():
            name = f"{layer}.{leaf}" if layer else leaf
            if tensor is not None and first.get(id(tensor), name) != name:
                found.setdefault(id(tensor), []).append(name)
    return found


def _is_state(modules: dict[str, nn.Module], name: str, buffer: torch.Tensor) -> bool:
    """Whether a buffer holds running statistics; masks and tables are the model's own constants."""
    layer, _, leaf = name.rpartition(".")
    return leaf in ("running_mean", "running_var") and buffer.is_floating_point()
