"""A change around one layer of a model of any framework: what it returns, what it sends back.

The layer is given a subclass of its own, as `models.defects.base.change` does it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.defects.base import find

Array = Any


@dataclass(frozen=True)
class Arrays:
    """The few operations that a change needs, in one framework."""

    roll: Callable[[Array, int], Array]  # by one place, along an axis
    through: Callable[[Array, str], Array]  # rounded to a lower precision and back
    constant: Callable[[np.ndarray, Array], Array]  # as an array like another


@dataclass(frozen=True)
class Change:
    """What is made of a layer's output, and how a cotangent goes back through that."""

    value: Callable[[Arrays, Array], Array]
    pullback: Callable[[Array], Array]


def around(
    framework: str, path: str, *, change: Change | None = None, sent_back: float = 1.0
) -> Callable[[Any], None]:
    """An injection: the layer at ``path`` returns ``change.value`` of its output, and what it sends
    back through its first input is multiplied by ``sent_back`` (0: nothing arrives)."""

    def inject(model: Any) -> None:
        layer = find(model, path)
        method, make = METHODS[framework]
        cls = type(layer)
        layer.__class__ = type(cls.__name__, (cls,), make(cls, change, sent_back))
        assert hasattr(cls, method), (path, method)

    return inject


def _numpy(cls: type, change: Change | None, sent_back: float) -> dict[str, Any]:
    import ml_dtypes

    def through(x: Array, dtype: str) -> Array:
        return x.astype(getattr(ml_dtypes, dtype, dtype)).astype(x.dtype)

    arrays = Arrays(lambda x, axis: np.roll(x, 1, axis), through, lambda c, x: c.astype(x.dtype))

    def forward(self: Any, *xs: Array) -> Array:
        y = cls.forward(self, *xs)  # type: ignore[attr-defined]
        return y if change is None else _of_first(change, arrays, y)

    def backward(self: Any, dy: Array, *others: Array) -> Any:
        dx = cls.backward(self, dy if change is None else change.pullback(dy), *others)  # type: ignore[attr-defined]
        if sent_back == 1.0:
            return dx
        if isinstance(dx, tuple):
            return (dx[0] * np.asarray(sent_back, dx[0].dtype), *dx[1:])
        return dx * np.asarray(sent_back, dx.dtype)

    return {"forward": forward, "backward": backward}


def _keras(cls: type, change: Change | None, sent_back: float) -> dict[str, Any]:
    import tensorflow as tf

    def through(x: Array, dtype: str) -> Array:
        return tf.cast(tf.cast(x, dtype), x.dtype)

    arrays = Arrays(lambda x, axis: tf.roll(x, 1, axis), through, lambda c, x: tf.cast(c, x.dtype))

    @tf.custom_gradient
    def scaled_back(x: Array) -> Any:
        return tf.identity(x), lambda dy: dy * tf.cast(sent_back, dy.dtype)

    def call(self: Any, x: Array, *args: Any, **options: Any) -> Array:
        y = cls.call(self, _first(x, scaled_back, sent_back), *args, **options)  # type: ignore[attr-defined]
        return y if change is None else _of_first(change, arrays, y)

    return {"call": call}


def _jax(cls: type, change: Change | None, sent_back: float) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    def through(x: Array, dtype: str) -> Array:
        return x.astype(dtype).astype(x.dtype)

    arrays = Arrays(
        lambda x, axis: jnp.roll(x, 1, axis), through, lambda c, x: jnp.asarray(c, x.dtype)
    )

    @jax.custom_vjp
    def scaled_back(x: Array) -> Array:
        return x

    scaled_back.defvjp(lambda x: (x, None), lambda _, dy: (dy * jnp.asarray(sent_back, dy.dtype),))

    def call(self: Any, x: Array, *args: Any, **options: Any) -> Array:
        y = cls.__call__(self, _first(x, scaled_back, sent_back), *args, **options)  # type: ignore[operator]
        return y if change is None else _of_first(change, arrays, y)

    return {"__call__": call}


def _torch(cls: type, change: Change | None, sent_back: float) -> dict[str, Any]:
    import torch

    def through(x: Array, dtype: str) -> Array:
        return x.to(getattr(torch, dtype)).to(x.dtype)

    arrays = Arrays(
        lambda x, axis: torch.roll(x, 1, axis),
        through,
        lambda c, x: torch.as_tensor(c, dtype=x.dtype),
    )

    class ScaledBack(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Array) -> Array:
            return x.view_as(x)

        @staticmethod
        def backward(context: Any, dy: Array) -> Array:
            return dy * sent_back

    def forward(self: Any, x: Array, *args: Any, **options: Any) -> Array:
        y = cls.forward(self, _first(x, ScaledBack.apply, sent_back), *args, **options)  # type: ignore[attr-defined]
        return y if change is None else _of_first(change, arrays, y)

    return {"forward": forward}


def _of_first(change: Change, arrays: Arrays, y: Any) -> Any:
    """What is made of an output, or of the first of several."""
    if isinstance(y, tuple):
        return (change.value(arrays, y[0]), *y[1:])
    return change.value(arrays, y)


def _first(x: Any, scaled_back: Callable[[Array], Array], sent_back: float) -> Any:
    if sent_back == 1.0:
        return x
    if isinstance(x, (list, tuple)):
        return type(x)([scaled_back(x[0]), *x[1:]])
    return scaled_back(x)


METHODS: dict[str, tuple[str, Callable[[type, Change | None, float], dict[str, Any]]]] = {
    "numpy": ("forward", _numpy),
    "keras": ("call", _keras),
    "jax": ("__call__", _jax),
    "torch": ("forward", _torch),
}
