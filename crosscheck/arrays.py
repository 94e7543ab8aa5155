"""What NumPy's dtype kinds do not say by themselves."""

from __future__ import annotations

from typing import Any

__all__ = ["is_float"]


def is_float(value: Any) -> bool:
    """Whether an array is floating point; bfloat16 and its kin (kind ``V``) included."""
    dtype = value.dtype
    return bool(dtype.kind == "f" or "float" in dtype.name)
