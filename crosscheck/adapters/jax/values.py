"""JAX values for observers, and back: arrays of the host, or what stands for large ones on a GPU.

An array that is shown where it lies is read in JAX's own memory, by PyTorch, if that is loaded and
sees the device. JAX never writes to an array, so none is copied. What comes back is copied at once
into JAX's memory: JAX computes later than it says, and may free what it was lent any time.
"""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from crosscheck.kernels.on_device import LEFT, DeviceArray, has_room, lent

__all__ = ["at_hand", "placed", "shown"]


def at_hand(value: Any) -> Any:
    """The array behind ``value``, or None inside code that is being staged out."""
    tracer: Any = value
    return tracer.to_concrete_value() if isinstance(value, jax.core.Tracer) else value


def shown(value: Any) -> np.ndarray:
    """What observers are shown of a value at hand: its array, or what stands for it on a device."""
    array = at_hand(value)
    stands = _on_its_device(array)
    return np.asarray(array) if stands is None else cast(np.ndarray, stands)


def placed(array: np.ndarray) -> jax.Array:
    """A JAX array of its own memory, where the run computes."""
    if isinstance(array, DeviceArray):
        there = jax.dlpack.from_dlpack(array.tensor.contiguous())
        if there.devices() == {jax.config.jax_default_device}:  # `computing` has set it
            made: jax.Array = jax.block_until_ready(jnp.array(there, copy=True))
            return made
    return jnp.array(np.asarray(array))


def _on_its_device(array: Any) -> DeviceArray | None:
    # One that is spread over several devices has no one place.
    if not isinstance(array, jax.Array) or len(array.devices()) != 1:
        return None
    (device,) = array.devices()

    def room(seen: Any) -> bool:
        """In JAX's own memory as well: it takes three quarters of a GPU beforehand."""
        stats = device.memory_stats() or {}
        most = stats.get("bytes_limit", 0)
        return has_room(seen) and most - stats.get("bytes_in_use", 0) >= LEFT * most

    return lent(array, array.size, lasting=True, room=room)
