"""CuPy: hand-written nets whose arrays lie on a GPU, `RawKernel` launches included.

The NumPy adapter over another array module: layers, parameters and gradients are found the same
way. Large values stay where they are (`crosscheck.kernels.on_device`); others are copied to the
host for the observer, and back where it replaces one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import cupy
import numpy as np

from crosscheck.adapters.base import Capabilities
from crosscheck.adapters.numpy.adapter import NumpyAdapter
from crosscheck.adapters.numpy.adapter import find as find_net
from crosscheck.adapters.numpy.arrays import is_on_device
from crosscheck.adapters.numpy.parameters import attributes_of
from crosscheck.errors import DeviceUnavailable, InvalidArgument

__all__ = ["CupyAdapter", "find"]


class CupyAdapter(NumpyAdapter):
    """A net that computes with CuPy. It runs on the GPU and nowhere else."""

    framework = "cupy"
    version = cupy.__version__
    device = "cuda"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.capabilities = Capabilities(cotangents=self.capabilities.cotangents, cuda=True)

    def use(self, device: str) -> None:
        if device != "cuda":
            raise DeviceUnavailable('CuPy computes on a GPU only.\n  Fix: device="cuda"')
        if os.environ.get("CUPY_TF32", "0") != "0":
            raise DeviceUnavailable(
                f"CUPY_TF32={os.environ['CUPY_TF32']} lets CuPy multiply float32 matrices with 11 "
                "bits, and it cannot be told otherwise once it is loaded.\n"
                "  Fix: unset CUPY_TF32 and start again"
            )

    @property
    def environment(self) -> dict[str, Any]:
        index = cupy.cuda.Device().id
        name = cupy.cuda.runtime.getDeviceProperties(index)["name"]
        return {"device": name.decode(), "CUPY_TF32": "off"}

    def _made(self, value: np.ndarray) -> Any:
        return cupy.asarray(value)


def find(model: Any, *, arrays: str | None = None, **options: Any) -> CupyAdapter | None:
    """An adapter for a net that holds CuPy arrays, or, with ``arrays="cupy"``, for any net.

    Args:
        arrays: ``"cupy"`` where nothing shows it: a net without parameters, a plain function.
        options: for a plain function, see `crosscheck.adapters.numpy.adapter.find`.
    """
    if arrays not in (None, "cupy"):
        raise InvalidArgument(f'arrays={arrays!r}: must be "cupy"; NumPy needs no option')
    net = find_net(model, **options)
    if net is None or (arrays is None and not _holds_device_arrays(net._layers.values())):
        return None
    return CupyAdapter(net.model)


def _holds_device_arrays(layers: Iterable[Any]) -> bool:
    """Whether a layer has a CuPy array among its attributes, or in a dict of parameters."""
    for layer in layers:
        for value in attributes_of(layer).values():
            inner = value.values() if isinstance(value, dict) else ()
            # Objects with a value and a gradient beside it are parameters as well.
            held = (getattr(value, name, None) for name in ("data", "value"))
            if any(is_on_device(item) for item in (value, *inner, *held)):
                return True
    return False
