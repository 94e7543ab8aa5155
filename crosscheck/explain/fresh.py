"""Other inputs of the same kind, for a second opinion."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crosscheck.arrays import is_float
from crosscheck.inputs import normal

__all__ = ["fresh_inputs"]

LEAST = 0.7  # floats shrink to between this and all of their size


def fresh_inputs(given: Mapping[str, np.ndarray], *, seed: int) -> dict[str, np.ndarray] | None:
    """Other inputs, made of ``given``; None where nothing would change.

    Whatever a model may be fed, it may be fed these: integers in another order (tokens stay in the
    vocabulary), floats in reverse order and each shrunk by a factor that depends on its value
    alone, so that signs, ranges and exact ties stay. Booleans (masks) stay as they are.
    """
    made = {name: _fresh(value, seed, name) for name, value in given.items()}
    same = all(np.array_equal(made[name], value) for name, value in given.items())
    return None if same else made


def _fresh(value: np.ndarray, seed: int, name: str) -> np.ndarray:
    if is_float(value):
        wide = np.flip(value).astype(np.float64)
        factor = LEAST + (1.0 - LEAST) * np.sin(wide + seed + 1.0) ** 2
        return (wide * factor).astype(value.dtype)
    if value.dtype.kind not in "iu":
        return value
    order = np.argsort(normal(seed, f"fresh order {name}", (value.size,)), kind="stable")
    return value.reshape(-1)[order].reshape(value.shape)
