"""What NumPy's dtype kinds do not say by themselves."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

__all__ = ["dtype_name", "holds_not_finite", "is_float"]


def is_float(value: Any) -> bool:
    """Whether an array is floating point; bfloat16 and its kin (kind ``V``) included."""
    dtype = value.dtype
    return dtype.kind == "f" or "float" in dtype_name(dtype)


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
