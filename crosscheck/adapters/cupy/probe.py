"""What `crosscheck doctor` asks CuPy, in a process of its own."""

from __future__ import annotations

import os
from typing import Any

import cupy

__all__ = ["probe"]


def probe() -> dict[str, Any]:
    """Versions, CUDA devices and the flags that decide how exact its arithmetic is."""
    devices = []
    for index in range(cupy.cuda.runtime.getDeviceCount()):
        name = cupy.cuda.runtime.getDeviceProperties(index)["name"]
        devices.append(f"cuda:{index} {name.decode()}")
    return {
        "versions": {
            "cupy": cupy.__version__,
            "cuda (runtime)": str(cupy.cuda.runtime.runtimeGetVersion()),
        },
        "devices": devices,
        "precision": {
            "CUPY_TF32": os.environ.get("CUPY_TF32", "not set (off)"),
            "CUPY_ACCELERATORS": os.environ.get("CUPY_ACCELERATORS", "not set"),
        },
    }
