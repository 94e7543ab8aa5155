"""Rewrites of Keras' layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from keras import ops

from models.rewrites.any_layers import WITHOUT_STATISTICS, by_example, reversed_batch
from models.rewrites.base import Array, Rewrite, named, over

__all__ = ["REWRITES"]


def in_float64(cls: type) -> Any:
    def call(self: Any, x: Array, *args: Any, **options: Any) -> Array:
        y = ops.matmul(ops.cast(x, "float64"), ops.cast(self.kernel, "float64"))
        if self.bias is not None:
            y = y + ops.cast(self.bias, "float64")
        return self.activation(ops.cast(y, x.dtype))

    return call


def two_partial_sums(cls: type) -> Any:
    def call(self: Any, x: Array, *args: Any, **options: Any) -> Array:
        k = x.shape[-1] // 2
        y = ops.matmul(x[..., :k], self.kernel[:k]) + ops.matmul(x[..., k:], self.kernel[k:])
        return self.activation(y if self.bias is None else y + self.bias)

    return call


def layers(model: Any) -> Iterator[Any]:
    return iter(model._flatten_layers(include_self=False))


def rewrite(name: str, suits: Callable[[Any], bool], made: Callable[[type], Any]) -> Rewrite:
    return Rewrite(name, "keras", over(layers, suits, "call", made))


DENSE = named("Dense")
FLIPPED = reversed_batch("call", lambda x: ops.flip(x, 0))
APART = by_example(
    "call", lambda x: [x[i : i + 1] for i in range(x.shape[0])], lambda p: ops.concatenate(p)
)

REWRITES = (
    rewrite("dense: in float64", DENSE, in_float64),
    rewrite("dense: two partial sums", DENSE, two_partial_sums),
    rewrite("the batch in reverse", named(*WITHOUT_STATISTICS), FLIPPED),
    rewrite("one example at a time", named(*WITHOUT_STATISTICS), APART),
)
