"""Where TensorFlow computes: one device for a whole run, and no silent way back to the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from crosscheck.errors import DeviceUnavailable

__all__ = ["on_device", "place_of", "require_device"]

PLACES = {"cpu": "CPU:0", "cuda": "GPU:0"}


def place_of(device: str) -> str:
    """TensorFlow's name of ``"cpu"`` or ``"cuda"``.

    Raises:
        DeviceUnavailable: TensorFlow sees no GPU; says what to do.
    """
    if device == "cuda" and not tf.config.list_physical_devices("GPU"):
        build = "" if tf.test.is_built_with_cuda() else ", and is built without CUDA"
        raise DeviceUnavailable(
            f"TensorFlow {tf.__version__} sees no GPU{build}.\n  Fix: pip install "
            "'tensorflow[and-cuda]' where there is one; `crosscheck doctor` shows devices"
        )
    return PLACES[device]


@contextmanager
def on_device(device: str) -> Iterator[None]:
    """Every operation runs there, or raises."""
    soft = tf.config.get_soft_device_placement()
    try:
        if device == "cuda":  # else an operation without a GPU kernel would move to the host
            tf.config.set_soft_device_placement(False)
        with tf.device(place_of(device)):
            yield
    finally:
        if device == "cuda":
            tf.config.set_soft_device_placement(soft)


def require_device(outputs: Sequence[tuple[str, Any]], device: str) -> None:
    """An output that lies elsewhere was computed elsewhere."""
    for site, tensor in outputs:
        if not tensor.device.endswith(PLACES[device]):
            raise DeviceUnavailable(
                f"`{site}` was computed on {tensor.device}, not on {PLACES[device]}.\n"
                "  Fix: leave it to the check where the model runs (no tf.device inside)"
            )
