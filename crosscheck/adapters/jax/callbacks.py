"""Callbacks from staged JAX code that live with ``vmap`` and with being differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from crosscheck.adapters.jax.values import placed

__all__ = ["NUMBER", "batchable", "like", "replaced", "transparent"]

_Shape: Any = jax.ShapeDtypeStruct
NUMBER = _Shape((), np.int32)
"""What the number of an execution looks like."""


def like(value: Any) -> Any:
    return _Shape(value.shape, value.dtype)


def batchable(function: Callable[..., Any], result: Callable[..., Any], batched: Any) -> Any:
    """An ordered callback that under ``vmap`` is called once, with the whole batch.

    Args:
        result: shapes of what it gives, from its arguments; the last one is the value.
        batched: which of its results carry the batch.
    """

    @jax.custom_batching.custom_vmap
    def call(*arguments: Any) -> Any:
        return io_callback(function, result(*arguments), *arguments, ordered=True)

    @call.def_vmap
    def over_the_batch(size: int, mapped: list[bool], *arguments: Any) -> Any:
        *numbers, value = arguments
        numbers = [n[0] if is_mapped else n for n, is_mapped in zip(numbers, mapped, strict=False)]
        if not mapped[-1]:
            value = jnp.broadcast_to(value, (size, *value.shape))
        if isinstance(value, jax.core.Tracer):
            return call(*numbers, value), batched
        # At hand: compiling a callback to look at it would take longer than the layer.
        return jax.tree.map(jnp.asarray, function(*numbers, value)), batched

    return call


def transparent(call: Callable[..., Any], pull: Callable[[Any], Any]) -> Any:
    """``call``, in a model that differentiates itself: there taps are differentiated in turn, and
    a callback refuses that.

    Args:
        pull: from the cotangents of what it gives to those of its arguments.
    """
    through = jax.custom_vjp(call)
    through.defvjp(lambda *arguments: (call(*arguments), None), lambda _, sent: pull(sent))
    return through


def replaced(value: Any, replacement: np.ndarray) -> Any:
    """In forward mode: the replacement, with the tangent of ``value``."""
    swap = jax.custom_jvp(lambda x: placed(replacement))
    swap.defjvp(lambda primals, tangents: (swap(*primals), tangents[0]))
    return swap(value)
