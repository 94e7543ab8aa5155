"""Small questions about arrays that several checks ask."""

from __future__ import annotations

import numpy as np

from crosscheck.arrays import is_float

__all__ = ["ROUNDING", "alike", "apart", "is_mask", "others", "relative", "same"]

ROUNDING = 1e-5  # of the largest element, in float32


def same(value: np.ndarray, other: np.ndarray | None) -> bool:
    """Bit for bit, NaN equal to NaN."""
    return other is not None and np.array_equal(value, other, equal_nan=is_float(value))


def apart(value: np.ndarray, other: np.ndarray) -> float:
    """The largest difference; NaN beside NaN is none; of two shapes, infinity."""
    if value.shape != other.shape:
        return float("inf")
    a, b = value.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(np.max(np.nan_to_num(difference, nan=np.inf), initial=0.0))


def relative(value: np.ndarray, other: np.ndarray) -> float:
    """The largest difference over the largest value."""
    finite = np.abs(value.astype(np.float64))
    return apart(value, other) / float(np.max(finite[np.isfinite(finite)], initial=1e-30))


def alike(value: np.ndarray, other: np.ndarray | None) -> bool:
    """The same up to the order in which threads add up."""
    if other is None or value.shape != other.shape or not is_float(value):
        return same(value, other)
    return same(value, other) or relative(value, other) <= ROUNDING


def is_mask(value: np.ndarray) -> bool:
    """Whether it holds zeros and ones alone."""
    return value.dtype.kind == "b" or bool(np.isin(value, (0, 1)).all())


def others(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another value of the same kind and range; a mask stays as it is."""
    if is_mask(value):
        return value
    if is_float(value):
        x = value.astype(np.float64)
        made = x.mean() + (x.std() or 1.0) * rng.standard_normal(x.shape)
        return np.asarray(made, value.dtype)
    return rng.permutation(value.ravel()).reshape(value.shape)
