"""Rewrites of PyTorch's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from models.rewrites.any_layers import WITHOUT_STATISTICS, by_example, reversed_batch
from models.rewrites.base import Array, Rewrite, named, over

__all__ = ["REWRITES"]


def two_partial_sums(cls: type) -> Any:
    def forward(self: Any, x: Array) -> Array:
        k = x.shape[-1] // 2
        y = x[..., :k] @ self.weight[:, :k].T + x[..., k:] @ self.weight[:, k:].T
        return y if self.bias is None else y + self.bias

    return forward


def einsum(cls: type) -> Any:
    def forward(self: Any, x: Array) -> Array:
        y = torch.einsum("...i,oi->...o", x, self.weight)
        return y if self.bias is None else y + self.bias

    return forward


def in_float64(cls: type) -> Any:
    def forward(self: Any, x: Array) -> Array:
        state = {n: p.double() for n, p in self.named_parameters()}
        state |= {n: b.double() for n, b in self.named_buffers() if b.is_floating_point()}
        kept = {n: getattr(self, n) for n in state}
        for n in state:
            (self._parameters if n in self._parameters else self._buffers).pop(n)
            object.__setattr__(self, n, state[n])
        try:
            return cls.forward(self, x.double()).to(x.dtype)  # type: ignore[attr-defined]
        finally:
            for n, value in kept.items():
                object.__delattr__(self, n)
                place = isinstance(value, torch.nn.Parameter)
                (self._parameters if place else self._buffers)[n] = value

    return forward


def unfolded(cls: type) -> Any:
    def forward(self: Any, x: Array) -> Array:
        columns = functional.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)
        y = self.weight.flatten(1) @ columns
        height = (x.shape[2] + 2 * self.padding[0] - self.kernel_size[0]) // self.stride[0] + 1
        y = y.unflatten(2, (height, -1))
        return y if self.bias is None else y + self.bias[:, None, None]

    return forward


def channels_last(cls: type) -> Any:
    def forward(self: Any, x: Array) -> Array:
        return cls.forward(self, x.contiguous(memory_format=torch.channels_last)).contiguous()  # type: ignore[attr-defined]

    return forward


def norm_by_hand(cls: type) -> Any:
    def forward(self: Any, x: Array) -> Array:
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps) * (
            self.weight
        ) + (0 if self.bias is None else self.bias)

    return forward


def is_plain_convolution(layer: Any) -> bool:
    return (
        type(layer) is torch.nn.Conv2d
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def is_image_layer(layer: Any) -> bool:
    return isinstance(layer, (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.AvgPool2d))


def modules(model: Any) -> Iterator[Any]:
    return iter(model.modules())


def rewrite(name: str, suits: Callable[[Any], bool], made: Callable[[type], Any]) -> Rewrite:
    return Rewrite(name, "torch", over(modules, suits, "forward", made))


LINEAR = named("Linear")
FLIPPED = reversed_batch("forward", lambda x: x.flip(0))
APART = by_example("forward", lambda x: list(x.split(1)), torch.cat)

REWRITES = (
    rewrite("linear: two partial sums", LINEAR, two_partial_sums),
    rewrite("linear: einsum", LINEAR, einsum),
    rewrite("in float64", named("Linear", "LayerNorm", "BatchNorm2d", "Conv2d"), in_float64),
    rewrite("conv: unfold and multiply", is_plain_convolution, unfolded),
    rewrite("images channels last in memory", is_image_layer, channels_last),
    rewrite("layernorm: by hand", named("LayerNorm"), norm_by_hand),
    rewrite("the batch in reverse", named(*WITHOUT_STATISTICS), FLIPPED),
    rewrite("one example at a time", named(*WITHOUT_STATISTICS), APART),
)
