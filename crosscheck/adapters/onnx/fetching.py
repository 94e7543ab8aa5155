"""What a session of ONNX Runtime computes: arrays, or what stands for large ones on a GPU.

ONNX Runtime brings what it is asked for to the host, unless outputs are bound to a device. There
they lie in memory of the session's, which may go with it: each is copied once, on the device.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from crosscheck.adapters.onnx.options import runtime
from crosscheck.kernels.on_device import LEAST, DeviceArray, as_host, lent, sees_devices, stays

__all__ = ["computed", "sent"]

BOUND = "cuda"
"""The device of sessions whose large values stay where they are."""


def sent(array: np.ndarray, device: str) -> np.ndarray:
    """An input of a session, or what stands for a large one on its device: it is sent once, and
    compared there with what the other side was given."""
    torch = sys.modules.get("torch")
    if array.size < LEAST or torch is None or not _stay(device) or array.dtype.kind != "f":
        return array
    tensor = torch.from_numpy(array).to(f"{BOUND}:0")
    return DeviceArray(tensor) if stays(tensor) else array  # type: ignore[return-value]


def computed(
    session: Any,
    names: Sequence[str],
    feeds: Mapping[str, np.ndarray],
    *,
    device: str,
    floating: Collection[str],
) -> list[np.ndarray]:
    """Run a session.

    Args:
        names: the outputs to give.
        feeds: arrays, or what stands for them (`sent`).
        device: where it computes, ``"cpu"`` or ``"cuda"``.
        floating: outputs that are floating point numbers, of a type that NumPy has.

    Returns:
        An array of the host for each, or a `DeviceArray` of memory of its own.
    """
    if not _stay(device):
        found: list[np.ndarray] = session.run(
            list(names), {name: as_host(value) for name, value in feeds.items()}
        )
        return found
    binding = session.io_binding()
    read: list[Any] = []
    for name, value in feeds.items():
        if isinstance(value, DeviceArray):
            tensor = value.settled().tensor
            read.append(tensor)  # as long as the session reads its memory
            place = tensor.device.type, tensor.device.index or 0
            binding.bind_input(name, *place, value.dtype.type, value.shape, tensor.data_ptr())
        else:
            binding.bind_cpu_input(name, value)
    for name in names:
        binding.bind_output(name, BOUND if name in floating else "cpu")
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    return [_kept(value) for value in binding.get_outputs()]


def _stay(device: str) -> bool:
    """Whether large values of a session on a device may stay there."""
    return device == BOUND and sees_devices() and hasattr(runtime().OrtValue, "__dlpack__")


def _kept(value: Any) -> np.ndarray:
    stands = lent(value, math.prod(value.shape()))
    return value.numpy() if stands is None else stands.copy()  # type: ignore[return-value]
