"""Values as narrower types would hold them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["FORMATS", "either", "keep_mantissa"]


def keep_mantissa(value: np.ndarray, bits: int) -> np.ndarray:
    """``value`` with ``bits`` of mantissa behind the point, ties to even, exponents unlimited."""
    mantissa, exponent = np.frexp(value)  # mantissa in [0.5, 1)
    return np.asarray(np.ldexp(np.round(np.ldexp(mantissa, bits + 1)), exponent - bits - 1))


def _half(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float16).astype(np.float64)


FORMATS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "float16": _half,
    "bfloat16": lambda value: keep_mantissa(value, 7),
    "TF32": lambda value: keep_mantissa(value, 10),
}


def either(
    value: np.ndarray,
    to: Callable[[np.ndarray], np.ndarray],
    unit: float,
    *,
    at_least: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """What rounding gives a few units below and above ``value``: equal but at the boundaries.

    The candidate's own value before the cast is known up to its rounding only, and where it lies
    near the middle of two numbers of the narrow type it may fall on either.

    Args:
        at_least: how far apart they are in any case: sums of many terms are off by more than units.
    """
    finite = value[np.isfinite(value)]
    size = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    apart = np.maximum(4.0 * unit * (np.abs(value) + size), at_least)
    low, high = to(value - apart), to(value + apart)
    closed = high - low <= 4.0 * apart  # near zero a type is finer than what is known of the value
    return np.where(closed, to(value), low), np.where(closed, to(value), high)
