"""Rewrites of the layers of Flax NNX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
from flax import nnx

from models.rewrites.any_layers import WITHOUT_STATISTICS, by_example, reversed_batch
from models.rewrites.base import Array, Rewrite, named, over

__all__ = ["REWRITES"]


def two_partial_sums(cls: type) -> Any:
    def call(self: Any, x: Array) -> Array:
        kernel, k = self.kernel[...], x.shape[-1] // 2
        y = x[..., :k] @ kernel[:k] + x[..., k:] @ kernel[k:]
        return y if self.bias is None else y + self.bias[...]

    return call


def transposed_product(cls: type) -> Any:
    def call(self: Any, x: Array) -> Array:
        y = jnp.einsum("...i,io->o...", x, self.kernel[...])
        y = jnp.moveaxis(y, 0, -1)
        return y if self.bias is None else y + self.bias[...]

    return call


def layers(model: Any) -> Iterator[Any]:
    return (node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Module))


def rewrite(name: str, suits: Callable[[Any], bool], made: Callable[[type], Any]) -> Rewrite:
    return Rewrite(name, "jax", over(layers, suits, "__call__", made))


LINEAR = named("Linear")
FLIPPED = reversed_batch("__call__", lambda x: x[::-1])
APART = by_example("__call__", lambda x: jnp.split(x, x.shape[0]), jnp.concatenate)

REWRITES = (
    rewrite("linear: two partial sums", LINEAR, two_partial_sums),
    rewrite("linear: the transposed product", LINEAR, transposed_product),
    rewrite("the batch in reverse", named(*WITHOUT_STATISTICS), FLIPPED),
    rewrite("one example at a time", named(*WITHOUT_STATISTICS), APART),
)
