"""Names, roles and axes of a PyTorch module's parameters (no hooks, no runs)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from crosscheck.adapters.base import Parameter

__all__ = ["Described", "layer_axes", "layer_kind", "named_modules", "named_tensors"]

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


def layer_kind(module: nn.Module) -> str:
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


def layer_axes(module: nn.Module, leaf: str, ndim: int) -> tuple[str, ...] | None:
    kind, gates = layer_kind(module), _recurrent(module)[1]
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


class Described:
    """The parameters and floating-point buffers of a module, in definition order.

    Integer buffers (counters such as ``num_batches_tracked``) carry no weights and are left out.
    A check asks many times: what is known of a tensor is kept while the tensor is the same.

    Args:
        to_host: gives a tensor as an array, which is its own memory where that is possible.
    """

    def __init__(self, model: nn.Module, to_host: Callable[[torch.Tensor], np.ndarray]) -> None:
        self._model, self._to_host = model, to_host
        self._held: list[_Held] = []  # and so no other tensor takes the place of one of these
        self._marks: list[Hashable] = []
        self._known: tuple[Parameter, ...] = ()

    def now(self) -> tuple[Parameter, ...]:
        """With the values of now."""
        held = _held(self._model)
        marks = [_mark(one) for one in held]
        if None in marks or marks != self._marks:
            arrays = [self._to_host(one.tensor) for one in held]
            self._known = _described(held, arrays)
            self._held = held
            self._marks = marks if all(map(_is_view, arrays, held)) else []
        return self._known


class _Held(NamedTuple):
    """A tensor of a module, under one of its names."""

    layer: str
    leaf: str
    module: nn.Module
    tensor: torch.Tensor
    buffer: bool


def _held(model: nn.Module) -> list[_Held]:
    """What is to be described, in definition order."""
    found = []
    for layer, module in named_modules(model):
        for leaf, tensor in module._parameters.items():
            if tensor is not None:
                found.append(_Held(layer, leaf, module, tensor, False))
        for leaf, buffer in module._buffers.items():
            if buffer is not None and _is_state(leaf, buffer):
                found.append(_Held(layer, leaf, module, buffer, True))
    return found


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """As PyTorch's own gives them, which takes one generator for each level."""
    found: dict[nn.Module, str] = {}
    todo: list[tuple[str, nn.Module]] = [("", model)]
    while todo:
        path, module = todo.pop()
        if module in found:
            continue
        found[module] = path
        if module._modules:
            before = f"{path}." if path else ""
            inside = [(before + n, m) for n, m in module._modules.items() if m is not None]
            todo += inside[::-1]
    return [(path, module) for module, path in found.items()]


def named_tensors(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, torch.Tensor]]:
    """Parameters and buffers, each under its first name, as PyTorch's own; in one walk."""
    walk = named_modules(model)
    parameters: Any = _members((path, module._parameters) for path, module in walk)
    buffers: Any = _members((path, module._buffers) for path, module in walk)
    return parameters, buffers


def _members(held: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for path, own in held:
        for leaf, tensor in own.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{path}.{leaf}" if path else leaf] = tensor
    return found


def _mark(one: _Held) -> Hashable:
    """What a description hangs on; None where nothing says whether it still holds."""
    tensor = one.tensor
    if tensor.layout is not torch.strided:
        return None
    memory = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
    return one.layer, one.leaf, type(one.module), id(tensor), tensor.requires_grad, memory


def _is_view(array: np.ndarray, one: _Held) -> bool:
    """Whether an array shows what the tensor will hold as well."""
    return array.size == 0 or array.__array_interface__["data"][0] == one.tensor.data_ptr()


def _described(held: list[_Held], arrays: list[np.ndarray]) -> tuple[Parameter, ...]:
    """Each tensor once, under its first name. (A module that is reached by several paths is one
    layer, not several.)"""
    natures: Natures = {}
    first: dict[int, Parameter] = {}
    others: defaultdict[int, list[Parameter]] = defaultdict(list)
    for one, array in zip(held, arrays, strict=True):
        tied = id(one.tensor)
        if tied not in first:
            first[tied] = _describe(one, natures, array)
        elif not one.buffer:
            others[tied].append(_describe(one, natures, first[tied].value))
    return tuple(
        replace(one, also=tuple(others[tied])) if tied in others else one
        for tied, one in first.items()
    )


def _describe(one: _Held, natures: Natures, value: np.ndarray) -> Parameter:
    alike = type(one.module), one.leaf, value.ndim
    if alike not in natures:
        natures[alike] = (
            _role(one.leaf),
            layer_kind(one.module),
            layer_axes(one.module, one.leaf, value.ndim),
        )
    role, kind, axes = natures[alike]
    return Parameter(
        name=f"{one.layer}.{one.leaf}" if one.layer else one.leaf,
        value=value,
        layer=one.layer,
        role=role,
        kind=kind,
        axes=axes,
        trainable=one.tensor.requires_grad and not one.buffer,
        buffer=one.buffer,
    )


def _is_state(leaf: str, buffer: torch.Tensor) -> bool:
    """Whether a buffer holds running statistics; masks and tables are the model's own constants."""
    return leaf in ("running_mean", "running_var") and buffer.is_floating_point()
