"""Arrays of hand-written nets: NumPy's on the host, CuPy's on a GPU, handled alike.

CuPy is looked up in ``sys.modules``: an array of a module that nobody has imported cannot exist.
"""

from __future__ import annotations

import sys
from typing import Any, cast

import numpy as np

from crosscheck.kernels.on_device import LEAST, DeviceArray, stays

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
    torch = sys.modules.get("torch")
    if torch is None or not is_on_device(value) or value.dtype.kind != "f" or value.size < LEAST:
        return to_host(value)
    if not torch.cuda.is_available():
        return to_host(value)
    tensor = torch.from_dlpack(value)
    if not stays(tensor):
        return to_host(value)
    return cast(np.ndarray, DeviceArray(tensor, lambda part: part.cpu().numpy()))


def like(array: np.ndarray, other: Any) -> Any:
    """``array`` where ``other`` lies: itself on the host, a copy on the device."""
    if isinstance(array, DeviceArray) and is_on_device(other):
        return cupy_module().from_dlpack(array.copy().tensor)
    return cupy_module().asarray(array) if is_on_device(other) else array
