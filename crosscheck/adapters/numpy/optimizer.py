"""The optimizer of a hand-written net that works on the net itself: ``optimizer.step()``."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crosscheck.adapters.numpy.arrays import like
from crosscheck.adapters.numpy.layers import discover
from crosscheck.adapters.numpy.parameters import Slot, find_slots
from crosscheck.errors import InvalidArgument
from crosscheck.optimizers.definition import mean_of

__all__ = ["BoundStepper"]

Arrays = Mapping[str, np.ndarray]


class BoundStepper:
    """Steps of an object that reads parameters and gradients from the layers, or holds the arrays.

    Net and optimizer are copied together, so that the copy of the one refers to that of the other;
    in float64 the arrays are exchanged on the way.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, optimizer: Any, model: Any, *, wide: bool) -> None:
        memo = _widened(find_slots(discover(model))) if wide else {}
        twin, self._optimizer = copy.deepcopy((model, optimizer), memo)
        self._slots = {slot.name: slot for slot in find_slots(discover(twin))}

    def step(self, values: Arrays, gradients: Sequence[Arrays]) -> dict[str, np.ndarray]:
        """See `crosscheck.optimizers.definition.Definition.step`."""
        given = mean_of(gradients)
        for name, value in values.items():
            slot = self._slots[name]
            own = slot.get()
            own[...] = like(np.asarray(value), own)
            self._give(slot, given[name])
        self._optimizer.step()
        return {name: np.array(self._slots[name].get()) for name in values}

    def _give(self, slot: Slot, gradient: np.ndarray) -> None:
        own = slot.gradient_array()
        if own is None:
            raise InvalidArgument(
                f"optimizer=: `{slot.name}` has no gradient that its optimizer could read.\n"
                "  Fix: run forward and backward once before the check, so that it is there"
            )
        own[...] = like(np.asarray(gradient, own.dtype), own)


def _widened(slots: Sequence[Slot]) -> dict[int, Any]:
    """id of every parameter and gradient -> a float64 copy, for `copy.deepcopy`."""
    arrays = [slot.get() for slot in slots]
    arrays += [g for slot in slots if (g := slot.gradient_array()) is not None]
    return {id(array): array.astype(np.float64) for array in arrays}
