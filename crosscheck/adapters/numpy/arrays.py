"""Arrays of hand-written nets: NumPy's on the host, CuPy's on a GPU, handled alike.

CuPy is looked up in ``sys.modules``: an array of a module that nobody has imported cannot exist.
"""

from __future__ import annotations

import sys
from typing import Any, cast

import numpy as np

from crosscheck.kernels.on_device import DeviceArray, lent

__all__ = ["content", "cupy_module", "is_array", "is_on_device", "like", "shown", "to_host"]

EXACT = 4096
"""Bytes of an array up to which its content is told by all of them."""
SAMPLE = 64


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


def content(value: Any) -> Any:
    """What is another one when somebody has written to an array: its bytes; of a large one their
    sum as 64-bit words, and a few of them, since in another order they have the same sum. None
    where that is not known (arrays of objects)."""
    if value.dtype.hasobject:
        return None
    flat = value.ravel().view(np.uint8)
    if flat.size <= EXACT:
        return flat.tobytes()
    whole = flat.size - flat.size % 8
    total = int(flat[:whole].view(np.uint64).sum())
    return total, flat[whole:].tobytes(), flat[:: flat.size // SAMPLE].tobytes()


def shown(value: Any) -> np.ndarray:
    """What observers are shown of an array: it, or what stands for it on a device."""
    if not is_on_device(value):
        return to_host(value)
    # PyTorch has no negative strides: handed an array that has some, it ends the process.
    backwards = min(value.strides, default=0) < 0
    stands = None if backwards else lent(value, value.size)
    return to_host(value) if stands is None else cast(np.ndarray, stands)


def like(array: np.ndarray, other: Any) -> Any:
    """A copy of ``array`` where ``other`` lies: a net may write to what it is given, and this may
    be the other side's record."""
    if not is_on_device(other):
        return np.array(array)
    cupy = cupy_module()
    if isinstance(array, DeviceArray):
        made = cupy.array(cupy.from_dlpack(array.tensor), copy=True, order="C")
        cupy.cuda.get_current_stream().synchronize()  # it reads memory that is not its own
        return made
    return cupy.asarray(array)
