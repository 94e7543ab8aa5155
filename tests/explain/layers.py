"""Layers in float64, as they should be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from crosscheck.explain.elementwise import FUNCTIONS

from .kit import normal, parameter

Array = np.ndarray
Map = Callable[[Array], Array]
GAMMA, BETA = 1 + 0.3 * normal((12,), 5), normal((12,), 6)
NORM = (parameter("weight", GAMMA, "norm"), parameter("bias", BETA, "norm"))


def f(name: str) -> Map:
    return FUNCTIONS[name].value


def layer_norm(x: Array, eps: float = 1e-5, weight: Array = GAMMA, outside: bool = False) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    scale = np.sqrt(variance) + eps if outside else np.sqrt(variance + eps)
    return np.asarray(centred / scale * weight + BETA)


def softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True))
