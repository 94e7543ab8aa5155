"""Rewrites of layers that a framework differentiates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from models.rewrites.base import Array, Rewrite, named, over

__all__ = ["jax_rewrites", "keras_rewrites", "torch_rewrites"]


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
