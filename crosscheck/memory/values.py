"""`Values`: the mapping that a run is recorded into, in memory or, by and by, on disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Generic, TypeVar

import numpy as np

from crosscheck.memory.budget import Budget
from crosscheck.memory.scratch import Place, ScratchFile

__all__ = ["Overlaid", "Values"]

K = TypeVar("K")


class Values(MutableMapping[K, np.ndarray], Generic[K]):
    """Arrays by key, in order of arrival; those that the budget has no room for lie in a file.

    Arrays must be private to the mapping and C-contiguous. One that comes back from disk is a
    read-only view with the same bits.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._entries: dict[K, np.ndarray | Place] = {}
        self._file: ScratchFile | None = None
        self._changing = threading.RLock()  # the thread that writes changes entries, too

    def __setitem__(self, key: K, array: np.ndarray) -> None:
        with self._changing:
            self._entries[key] = array
        if array.nbytes:
            self._budget.hold(self, key, array)

    def __getitem__(self, key: K) -> np.ndarray:
        entry = self._entries[key]
        return self._budget.view(entry) if isinstance(entry, Place) else entry

    def __delitem__(self, key: K) -> None:
        with self._changing:
            del self._entries[key]

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape_of(self, key: K) -> tuple[int, ...]:
        """The shape of an array; nothing is read."""
        return self._entries[key].shape

    # -- for the budget ----------------------------------------------------------------------

    def holds(self, key: Any, array: np.ndarray) -> bool:
        """Whether it still is this array that lies under the key."""
        return self._entries.get(key) is array

    def file(self, folder: str) -> ScratchFile:
        """Its scratch file, which goes when it goes."""
        if self._file is None:
            self._file = ScratchFile(folder)
        return self._file

    def moved(self, key: Any, array: np.ndarray, place: Place) -> None:
        """The array has been written."""
        with self._changing:
            if self.holds(key, array):
                self._entries[key] = place


class Overlaid(Mapping[K, np.ndarray], Generic[K]):
    """The arrays of two mappings, of the second where both have one; none is fetched before it is
    asked for."""

    def __init__(self, first: Mapping[K, np.ndarray], second: Mapping[K, np.ndarray]) -> None:
        self._first, self._second = first, second
        self._keys = {**dict.fromkeys(first), **dict.fromkeys(second)}

    def _side(self, key: K) -> Mapping[K, np.ndarray]:
        return self._second if key in self._second else self._first

    def __getitem__(self, key: K) -> np.ndarray:
        return self._side(key)[key]

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[K]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def shape_of(self, key: K) -> tuple[int, ...]:
        """The shape of an array; nothing is read where that can be known."""
        return shape_of(self._side(key), key)


def shape_of(values: Mapping[K, np.ndarray], key: K) -> tuple[int, ...]:
    """The shape of one of some arrays; where they know it, the array is neither read nor made."""
    known = getattr(values, "shape_of", None)
    shape: tuple[int, ...] = values[key].shape if known is None else known(key)
    return shape
