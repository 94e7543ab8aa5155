"""An array whose elements are read in another order: what a conversion without a transpose does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["Reading", "readings"]


@dataclass(frozen=True)
class Reading:
    """Numbers one after the other, taken for those of an array with its axes in another order.

    Attributes:
        order: of the axes in the other layout.
        written: they are written in that layout and read in the right one; else the reverse.
    """

    order: tuple[int, ...]
    written: bool

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """The array as it is then, in its own shape."""
        if self.written:
            return value.transpose(self.order).reshape(value.shape)
        shape = tuple(value.shape[axis] for axis in self.order)
        return value.reshape(shape).transpose(np.argsort(self.order))


def readings(shape: tuple[int, ...], axes: tuple[str, ...] | None) -> Iterator[tuple[str, Reading]]:
    """Every misreading of an array that changes it, with a clause that says so; none that merely
    exchanges axes of one length, which is a transpose."""
    names = axes if axes is not None and len(axes) == len(shape) else tuple(map(str, range(9)))
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    orders = list(itertools.permutations(range(len(shape))))
    seen = [made for made in map(numbers.transpose, orders) if made.shape == shape]
    for order in orders:
        for written in (False, True):
            reading = Reading(order, written)
            made = reading(numbers)
            if any(np.array_equal(made, other) for other in seen):
                continue
            seen.append(made)
            layout, own = (
                ", ".join(names[a] for a in o if shape[a] > 1) for o in (order, range(len(shape)))
            )
            how = (
                f"written as ({layout}) and read as ({own})"
                if written
                else (f"read as ({layout}); it is written as ({own})")
            )
            yield f"is {how}", reading
