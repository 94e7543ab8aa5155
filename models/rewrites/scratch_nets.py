"""Rewrites of layers whose derivative is written by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from models.rewrites.base import Array, Rewrite, named, over
from models.scratch import Layer, Linear
from models.scratch.activation import GELU, Softmax
from models.scratch.conv import Conv2d
from models.scratch.norm import BatchNorm2d, LayerNorm

__all__ = ["REWRITES"]


def scratch_layers(net: Any) -> Iterator[Any]:
    return (layer for _, layer in net.named_layers())


def numpy_rewrite(name: str, cls: type, **methods: Any) -> Rewrite:
    return Rewrite(
        name,
        "numpy",
        over(scratch_layers, lambda layer: type(layer) is cls, "", lambda _: methods),
    )


def bias_of(layer: Any) -> Array:
    return layer.params.get("bias", 0)  # an integer: adding it leaves every dtype as it is


def reversed_sum(self: Any, x: Array) -> Array:
    self._x = x
    return x[..., ::-1] @ self.params["weight"][::-1] + bias_of(self)


def split_sum(self: Any, x: Array) -> Array:
    self._x, weight, k = x, self.params["weight"], x.shape[-1] // 2
    return x[..., :k] @ weight[:k] + (x[..., k:] @ weight[k:] + bias_of(self))


def one_after_another(self: Any, x: Array) -> Array:
    """A running sum in float32, the least accurate order there is."""
    self._x, weight = x, self.params["weight"]
    y = np.zeros((*x.shape[:-1], weight.shape[1]), x.dtype)
    for i in range(weight.shape[0]):
        y = y + x[..., i : i + 1] * weight[i]
    return y + bias_of(self)


def by_einsum(self: Any, x: Array) -> Array:
    self._x = x
    return np.einsum("...i,io->...o", x, self.params["weight"]) + bias_of(self)


def transposed_product(self: Any, x: Array) -> Array:
    self._x = x
    flat = x.reshape(-1, x.shape[-1])
    y = np.ascontiguousarray(self.params["weight"].T) @ np.ascontiguousarray(flat.T)
    return y.T.reshape(*x.shape[:-1], -1) + bias_of(self)


def with_bias_inside(self: Any, x: Array) -> Array:
    """[x 1] [W; b]: one product."""
    self._x = x
    ones = np.ones((*x.shape[:-1], 1), x.dtype)
    bias = np.broadcast_to(bias_of(self), (1, self.params["weight"].shape[1]))
    both = np.concatenate([self.params["weight"], bias])
    return np.concatenate([x, ones], -1) @ both.astype(x.dtype)


def gradients_by_example(self: Any, dy: Array) -> Array:
    """The weight's gradient as a sum over the batch, one example after the other."""
    for x, d in zip(self._x, dy, strict=True):
        x, d = x.reshape(-1, x.shape[-1]), d.reshape(-1, d.shape[-1])
        self.accumulate("weight", x.T @ d)
        if "bias" in self.params:
            self.accumulate("bias", d.sum(axis=0))
    return dy @ self.params["weight"].T


def tap_by_tap(self: Any, x: Array) -> Array:
    """A convolution as a sum over the places of its kernel."""
    y = Conv2d.forward(self, x) * 0
    weight = self.params["weight"]
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            part = np.tensordot(weight[:, :, i, j], self._windows[:, :, i, j], axes=((1,), (1,)))
            y = y + part.swapaxes(0, 1)
    return y + self.params["bias"][:, None, None] if "bias" in self.params else y


def image_to_columns(self: Any, x: Array) -> Array:
    """A convolution as one matrix product for each image."""
    y = Conv2d.forward(self, x)
    w = self._windows  # (B, C, kh, kw, Ho, Wo)
    columns = np.ascontiguousarray(w.reshape(w.shape[0], -1, w.shape[4] * w.shape[5]))
    y = (self.params["weight"].reshape(y.shape[1], -1) @ columns).reshape(y.shape)
    return y + self.params["bias"][:, None, None] if "bias" in self.params else y


def one_pass_variance(self: Any, x: Array) -> Array:
    mean = x.mean(axis=-1, keepdims=True)
    variance = (x * x).mean(axis=-1, keepdims=True) - mean * mean
    self._rstd = 1 / np.sqrt(np.maximum(variance, 0) + self.eps)
    self._xhat = (x - mean) * self._rstd
    return self._xhat * self.params["weight"] + self.params["bias"]


def scale_and_shift(self: Any, x: Array) -> Array:
    """A LayerNorm as x · a + b, with a and b computed first."""
    centred = x - x.mean(axis=-1, keepdims=True)
    self._rstd = ((centred * centred).mean(axis=-1, keepdims=True) + self.eps) ** -0.5
    self._xhat = centred * self._rstd
    a = self._rstd * self.params["weight"]
    return x * a + (self.params["bias"] - x.mean(axis=-1, keepdims=True) * a)


def folded_statistics(self: Any, x: Array) -> Array:
    """A BatchNorm in eval mode as x · a + b for each channel."""
    y = BatchNorm2d.forward(self, x)
    if self.training:
        return y
    mean, variance = self.buffers["running_mean"], self.buffers["running_var"]
    a = self.params["weight"] / np.sqrt(variance + self.eps)
    b = self.params["bias"] - mean * a
    return x * a[:, None, None] + b[:, None, None]


def by_powers_of_two(self: Any, x: Array) -> Array:
    """2^(x log₂ e): what GPU kernels compute."""
    e = np.exp2((x - x.max(axis=self.axis, keepdims=True)) * x.dtype.type(math.log2(math.e)))
    self._p = e * (1 / e.sum(axis=self.axis, keepdims=True))
    return self._p


def by_log_sum(self: Any, x: Array) -> Array:
    top = x.max(axis=self.axis, keepdims=True)
    total = np.log(np.exp(x - top).sum(axis=self.axis, keepdims=True))
    self._p = np.exp(x - top - total)
    return self._p


def half_of_both(self: Any, x: Array) -> Array:
    """GELU as (x + x erf(x/√2)) / 2."""
    y = GELU.forward(self, x)
    return 0.5 * x + 0.5 * (2 * y - x)


def in_float64(cls: type) -> dict[str, Any]:
    """Everything inside in float64; what comes out is in the dtype of what went in."""

    def forward(self: Any, *xs: Array) -> Array:
        with _Widened(self):
            y = cls.forward(self, *(_wide(x) for x in xs))  # type: ignore[attr-defined]
        return y.astype(next((x.dtype for x in xs if x.dtype.kind == "f"), np.float32))

    def backward(self: Any, dy: Array) -> Any:
        with _Widened(self):
            dx = cls.backward(self, dy.astype(np.float64))  # type: ignore[attr-defined]
        if isinstance(dx, tuple):
            return tuple(d if d is None else d.astype(dy.dtype) for d in dx)
        return dx if dx is None else dx.astype(dy.dtype)

    return {"forward": forward, "backward": backward}


def _wide(x: Array) -> Array:
    return x.astype(np.float64) if x.dtype.kind == "f" else x


class _Widened:
    """A layer's parameters in float64 for a while; its gradients rounded again behind it."""

    def __init__(self, layer: Layer) -> None:
        self.layer, self.params = layer, dict(layer.params)

    def __enter__(self) -> None:
        self.layer.params = {k: _wide(v) for k, v in self.params.items()}

    def __exit__(self, *error: Any) -> None:
        self.layer.params = self.params
        for name, value in self.layer.grads.items():
            self.layer.grads[name] = value.astype(self.params[name].dtype)


def backwards_through_the_batch(cls: type) -> dict[str, Any]:
    """The batch in reverse order, and put right again: other sums over it."""

    def forward(self: Any, x: Array) -> Array:
        return cls.forward(self, x[::-1])[::-1]  # type: ignore[attr-defined]

    def backward(self: Any, dy: Array) -> Any:
        dx = cls.backward(self, dy[::-1])  # type: ignore[attr-defined]
        return dx if dx is None else dx[::-1]

    return {"forward": forward, "backward": backward}


def is_leaf(layer: Layer) -> bool:
    return not any(True for _ in layer.children())


def owns_all_it_reads(layer: Any) -> bool:
    """A leaf that reads no other layer's parameters."""
    return is_leaf(layer) and not any(isinstance(v, Layer) for v in vars(layer).values())


BATCHED = ("Linear", "Conv2d", "LayerNorm", "BatchNorm2d", "GELU", "ReLU", "RMSNorm")
BATCHED += ("DepthwiseConv2d", "ConvTranspose2d", "MaxPool2d", "AvgPool2d", "Hardswish", "Sigmoid")

REWRITES = (
    numpy_rewrite("linear: sums in reverse", Linear, forward=reversed_sum),
    numpy_rewrite("linear: two partial sums", Linear, forward=split_sum),
    numpy_rewrite("linear: a running sum", Linear, forward=one_after_another),
    numpy_rewrite("linear: einsum", Linear, forward=by_einsum),
    numpy_rewrite("linear: the transposed product", Linear, forward=transposed_product),
    numpy_rewrite("linear: the bias as a row of the weight", Linear, forward=with_bias_inside),
    numpy_rewrite("linear: gradients by example", Linear, backward=gradients_by_example),
    numpy_rewrite("conv: tap by tap", Conv2d, forward=tap_by_tap),
    numpy_rewrite("conv: columns", Conv2d, forward=image_to_columns),
    numpy_rewrite("layernorm: one-pass variance", LayerNorm, forward=one_pass_variance),
    numpy_rewrite("layernorm: scale and shift", LayerNorm, forward=scale_and_shift),
    numpy_rewrite("batchnorm: folded", BatchNorm2d, forward=folded_statistics),
    numpy_rewrite("softmax: powers of two", Softmax, forward=by_powers_of_two),
    numpy_rewrite("softmax: logarithm of the sum", Softmax, forward=by_log_sum),
    numpy_rewrite("gelu: two halves", GELU, forward=half_of_both),
    Rewrite(
        "everything in float64", "numpy", over(scratch_layers, owns_all_it_reads, "", in_float64)
    ),
    Rewrite(
        "the batch in reverse",
        "numpy",
        over(
            scratch_layers,
            lambda layer: is_leaf(layer) and named(*BATCHED)(layer),
            "",
            backwards_through_the_batch,
        ),
    ),
)
