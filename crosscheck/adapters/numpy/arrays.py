"""Arrays of hand-written nets: NumPy's on the host, CuPy's on a GPU, handled alike.

CuPy is looked up in ``sys.modules``: an array of a module that nobody has imported cannot exist.
"""

from __future__ import annotations

import sys
from typing import Any, cast

import numpy as np

from crosscheck.kernels.on_device import DeviceArray, lent

__all__ = ["cupy_module", "is_array", "is_on_device", "like", "shown", "to_host"]


def cupy_module() -> Any:
    """CuPy, if it has been imported, else None."""
    return sys.modules.get("cupy")


def is_on_device(value: Any) -> bool:
    """Whether this is a CuPy array."""
    cupy = cupy_module()
    return cupy is not None and isinstance(value, cupy.ndarray)


def is_array(value: Any) -> bool:
    """Whether this is an array, wherever it lies."""
    return isinstance(value, np.ndarray) or is_on_device(value)


def to_host(value: Any) -> np.ndarray:
    """The same as a NumPy array: itself, or a copy of what lies on the device."""
    if is_on_device(value):
        copied: np.ndarray = cupy_module().asnumpy(value)
        return copied
    return np.asarray(value)


def shown(value: Any) -> np.ndarray:
    """What observers are shown of an array: it, or what stands for it on a device."""
    if not is_on_device(value):
        return to_host(value)
    # PyTorch has no negative strides: handed an array that has some, it ends the process.
    backwards = min(value.strides, default=0) < 0
    stands = None if backwards else lent(value, value.size)
    return to_host(value) if stands is None else cast(np.ndarray, stands)


def like(array: np.ndarray, other: Any) -> Any:
    """``array`` where ``other`` lies: itself on the host, a copy on the device."""
    if not is_on_device(other):
        return array
    cupy = cupy_module()
    if isinstance(array, DeviceArray):
        made = cupy.array(cupy.from_dlpack(array.tensor), copy=True, order="C")
        cupy.cuda.get_current_stream().synchronize()  # it reads memory that is not its own
        return made
    return cupy.asarray(array)
