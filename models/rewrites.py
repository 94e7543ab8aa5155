"""Honest rewrites: the same function computed in another way, which no check may condemn.

Another order of summation, another layout, another BLAS routine, float64 inside, fused or unfused:
what ports differ in when they are right. A rewrite changes every layer of a candidate that it
suits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.scratch import Layer, Linear
from models.scratch.activation import GELU, Softmax
from models.scratch.conv import Conv2d
from models.scratch.norm import BatchNorm2d, LayerNorm

__all__ = ["REWRITES", "Rewrite"]

Array = Any


@dataclass(frozen=True)
class Rewrite:
    """One way to compute the same.

    Attributes:
        candidate: the framework whose layers it rewrites.
        apply: changes a freshly built model in place; returns how many layers it changed.
    """

    name: str
    candidate: str
    apply: Callable[[Any], int]


def over(
    layers: Callable[[Any], Iterator[Any]], suits: Callable[[Any], bool], method: str, made: Any
) -> Callable[[Any], int]:
    """Give every layer that ``suits`` a subclass whose ``method`` is ``made(class)``."""

    def apply(model: Any) -> int:
        chosen = [layer for layer in layers(model) if suits(layer)]
        for layer in chosen:
            cls = type(layer)
            methods = made(cls) if method == "" else {method: made(cls)}
            layer.__class__ = type(cls.__name__, (cls,), methods)
        return len(chosen)

    return apply


def named(*names: str) -> Callable[[Any], bool]:
    """Layers of a class, or of one derived from it, that has one of these names."""
    return lambda layer: any(cls.__name__ in names for cls in type(layer).__mro__)


# -- NumPy -----------------------------------------------------------------------------------------


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

NUMPY = (
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


# -- layers that a framework differentiates --------------------------------------------------------


def reversed_batch(method: str, flip: Callable[[Array], Array]) -> Callable[[type], Any]:
    def made(cls: type) -> Any:
        def call(self: Any, x: Array, *args: Any, **options: Any) -> Array:
            return flip(getattr(cls, method)(self, flip(x), *args, **options))

        return call

    return made


def by_example(
    method: str, split: Callable[[Array], list[Array]], join: Callable[[list[Array]], Array]
) -> Callable[[type], Any]:
    """One example at a time: products of other sizes, so other routines and other sums."""

    def made(cls: type) -> Any:
        def call(self: Any, x: Array, *args: Any, **options: Any) -> Array:
            return join([getattr(cls, method)(self, part, *args, **options) for part in split(x)])

        return call

    return made


WITHOUT_STATISTICS = (
    *("Linear", "Conv2d", "LayerNorm", "GELU", "RMSNorm", "ConvTranspose2d"),  # PyTorch
    *("Dense", "Conv2D", "LayerNormalization", "RMSNormalization", "Conv2DTranspose"),  # Keras
    *("Conv", "ConvTranspose", "Einsum", "LinearGeneral"),  # Flax
)


def torch_rewrites() -> Iterator[Rewrite]:
    import torch
    from torch.nn import functional

    def modules(model: Any) -> Iterator[Any]:
        return iter(model.modules())

    def rewrite(name: str, suits: Callable[[Any], bool], made: Any) -> Rewrite:
        return Rewrite(name, "torch", over(modules, suits, "forward", made))

    def linear(body: Callable[[Any, Array], Array]) -> Any:
        return lambda cls: body

    def split(self: Any, x: Array) -> Array:
        k = x.shape[-1] // 2
        y = x[..., :k] @ self.weight[:, :k].T + x[..., k:] @ self.weight[:, k:].T
        return y if self.bias is None else y + self.bias

    def einsum(self: Any, x: Array) -> Array:
        y = torch.einsum("...i,oi->...o", x, self.weight)
        return y if self.bias is None else y + self.bias

    def wide(cls: type) -> Any:
        def forward(self: Any, x: Array) -> Array:
            state = {n: p.double() for n, p in self.named_parameters()}
            state |= {n: b.double() for n, b in self.named_buffers() if b.is_floating_point()}
            inner = cls.forward  # type: ignore[attr-defined]
            kept = {n: getattr(self, n) for n in state}
            for n in state:
                (self._parameters if n in self._parameters else self._buffers).pop(n)
                object.__setattr__(self, n, state[n])
            try:
                return inner(self, x.double()).to(x.dtype)
            finally:
                for n, value in kept.items():
                    object.__delattr__(self, n)
                    place = isinstance(value, torch.nn.Parameter)
                    (self._parameters if place else self._buffers)[n] = value

        return forward

    def unfolded(self: Any, x: Array) -> Array:
        columns = functional.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)
        y = self.weight.flatten(1) @ columns
        height = (x.shape[2] + 2 * self.padding[0] - self.kernel_size[0]) // self.stride[0] + 1
        y = y.unflatten(2, (height, -1))
        return y if self.bias is None else y + self.bias[:, None, None]

    def channels_last(cls: type) -> Any:
        def forward(self: Any, x: Array) -> Array:
            return cls.forward(self, x.contiguous(memory_format=torch.channels_last)).contiguous()  # type: ignore[attr-defined]

        return forward

    def by_hand(self: Any, x: Array) -> Array:
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps) * (
            self.weight
        ) + (0 if self.bias is None else self.bias)

    def plain(conv: Any) -> bool:
        return (
            type(conv) is torch.nn.Conv2d
            and conv.groups == 1
            and conv.dilation == (1, 1)
            and conv.padding_mode == "zeros"
            and not isinstance(conv.padding, str)
        )

    def is_image_layer(layer: Any) -> bool:
        return isinstance(layer, (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.AvgPool2d))

    is_linear = named("Linear")
    yield rewrite("linear: two partial sums", is_linear, linear(split))
    yield rewrite("linear: einsum", is_linear, linear(einsum))
    yield rewrite("in float64", named("Linear", "LayerNorm", "BatchNorm2d", "Conv2d"), wide)
    yield rewrite("conv: unfold and multiply", plain, linear(unfolded))
    yield rewrite("images channels last in memory", is_image_layer, channels_last)
    yield rewrite("layernorm: by hand", named("LayerNorm"), linear(by_hand))
    flipped = reversed_batch("forward", lambda x: x.flip(0))
    yield rewrite("the batch in reverse", named(*WITHOUT_STATISTICS), flipped)
    apart = by_example("forward", lambda x: list(x.split(1)), torch.cat)
    yield rewrite("one example at a time", named(*WITHOUT_STATISTICS), apart)


def keras_rewrites() -> Iterator[Rewrite]:
    from keras import ops

    def layers(model: Any) -> Iterator[Any]:
        return iter(model._flatten_layers(include_self=False))

    def rewrite(name: str, suits: Callable[[Any], bool], made: Any) -> Rewrite:
        return Rewrite(name, "keras", over(layers, suits, "call", made))

    def wide(cls: type) -> Any:
        def call(self: Any, x: Array, *args: Any, **options: Any) -> Array:
            y = ops.matmul(ops.cast(x, "float64"), ops.cast(self.kernel, "float64"))
            if self.bias is not None:
                y = y + ops.cast(self.bias, "float64")
            return self.activation(ops.cast(y, x.dtype))

        return call

    def split(cls: type) -> Any:
        def call(self: Any, x: Array, *args: Any, **options: Any) -> Array:
            k = x.shape[-1] // 2
            y = ops.matmul(x[..., :k], self.kernel[:k]) + ops.matmul(x[..., k:], self.kernel[k:])
            return self.activation(y if self.bias is None else y + self.bias)

        return call

    is_dense = named("Dense")
    yield rewrite("dense: in float64", is_dense, wide)
    yield rewrite("dense: two partial sums", is_dense, split)
    flipped = reversed_batch("call", lambda x: ops.flip(x, 0))
    yield rewrite("the batch in reverse", named(*WITHOUT_STATISTICS), flipped)
    apart = by_example(
        "call", lambda x: [x[i : i + 1] for i in range(x.shape[0])], lambda p: ops.concatenate(p)
    )
    yield rewrite("one example at a time", named(*WITHOUT_STATISTICS), apart)


def jax_rewrites() -> Iterator[Rewrite]:
    import jax.numpy as jnp
    from flax import nnx

    def layers(model: Any) -> Iterator[Any]:
        return (node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Module))

    def rewrite(name: str, suits: Callable[[Any], bool], made: Any) -> Rewrite:
        return Rewrite(name, "jax", over(layers, suits, "__call__", made))

    def split(cls: type) -> Any:
        def call(self: Any, x: Array) -> Array:
            kernel, k = self.kernel[...], x.shape[-1] // 2
            y = x[..., :k] @ kernel[:k] + x[..., k:] @ kernel[k:]
            return y if self.bias is None else y + self.bias[...]

        return call

    def running(cls: type) -> Any:
        def call(self: Any, x: Array) -> Array:
            y = jnp.einsum("...i,io->o...", x, self.kernel[...])
            y = jnp.moveaxis(y, 0, -1)
            return y if self.bias is None else y + self.bias[...]

        return call

    is_linear = named("Linear")
    yield rewrite("linear: two partial sums", is_linear, split)
    yield rewrite("linear: the transposed product", is_linear, running)
    flipped = reversed_batch("__call__", lambda x: x[::-1])
    yield rewrite("the batch in reverse", named(*WITHOUT_STATISTICS), flipped)
    apart = by_example("__call__", lambda x: jnp.split(x, x.shape[0]), jnp.concatenate)
    yield rewrite("one example at a time", named(*WITHOUT_STATISTICS), apart)


REWRITES: dict[str, Callable[[], Iterator[Rewrite]]] = {
    "numpy": lambda: iter(NUMPY),
    "torch": torch_rewrites,
    "keras": keras_rewrites,
    "jax": jax_rewrites,
}
