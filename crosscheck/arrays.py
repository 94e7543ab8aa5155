"""What NumPy's dtype kinds do not say by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

__all__ = [
    "any_complex",
    "dtype_name",
    "holds_not_finite",
    "is_complex",
    "is_float",
    "is_inexact",
    "real_parts",
    "widest",
]


def is_float(value: Any) -> bool:
    """Whether an array is floating point; bfloat16 and its kin (kind ``V``) included."""
    dtype = value.dtype
    return dtype.kind == "f" or "float" in dtype_name(dtype)


def is_complex(value: Any) -> bool:
    """Whether an array, of NumPy or on a device, holds complex numbers."""
    return any_complex(value.dtype)


@cache
def any_complex(*dtypes: Any) -> bool:
    """Whether one of these dtypes, of NumPy or of a device's library, is complex."""
    return any(getattr(dtype, "kind", "") == "c" for dtype in dtypes)


def is_inexact(value: Any) -> bool:
    """Whether it is subject to rounding: floating point or complex."""
    return is_complex(value) or is_float(value)


def widest(value: Any) -> np.dtype[Any]:
    """The dtype that holds the numbers of ``value`` most exactly: float64, or complex128."""
    return np.dtype(np.complex128 if is_complex(value) else np.float64)


def real_parts(arrays: Sequence[Any]) -> Sequence[Any]:
    """Complex arrays of one shape as real ones, with a last axis of two more: rounding is that of
    the parts. Others as they are; where only some are complex, the others get parts of zero."""
    if not any_complex(*[a.dtype for a in arrays]):
        return arrays
    known = {id(a): a if is_complex(a) else a.astype(np.complex128) for a in arrays}
    parts = {key: np.stack([value.real, value.imag], axis=-1) for key, value in known.items()}
    return tuple(parts[id(a)] for a in arrays)


def holds_not_finite(value: Any) -> bool:
    """Whether NaN or Inf is among the elements of floating-point numbers."""
    if not is_float(value):
        return False
    known = value if value.dtype.kind == "f" else value.astype(np.float32)  # bfloat16
    return not np.isfinite(known).all()


@cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """``dtype.name``, which NumPy puts together anew each time."""
    return dtype.name
