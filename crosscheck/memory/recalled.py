"""`Recalled`: values of a run that were dropped, and come back if somebody asks after all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Generic, TypeVar

import numpy as np

from crosscheck.memory.heap import trim_heap

__all__ = ["Recalled"]

K = TypeVar("K")


class Recalled(Mapping[K, np.ndarray], Generic[K]):
    """The arrays of a run, of which only some are held.

    Keys and shapes are known of all. What is held is what the run showed, also after the others
    came back: a finding that does not repeat must not vanish when it is looked at again.

    Args:
        held: what is held; taken over, and emptied by `drop`.
        shapes: of every array of the run, in order of arrival.
        again: makes the run once more and gives all its arrays. Asked for at most once, when
            somebody wants an array that is not held.
    """

    def __init__(
        self,
        held: MutableMapping[K, np.ndarray],
        shapes: Mapping[K, tuple[int, ...]],
        again: Callable[[], Mapping[K, np.ndarray]],
    ) -> None:
        self._held, self._shapes, self._again = held, shapes, again
        self._others: Mapping[K, np.ndarray] | None = None

    def drop(self) -> None:
        """Hold nothing any more."""
        for key in list(self._held):
            del self._held[key]
        trim_heap()

    def __getitem__(self, key: K) -> np.ndarray:
        if key in self._held:
            return self._held[key]
        if key not in self._shapes:
            raise KeyError(key)
        if self._others is None:
            self._others = self._again()
        return self._others[key]

    def __contains__(self, key: object) -> bool:
        return key in self._shapes

    def __iter__(self) -> Iterator[K]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape_of(self, key: K) -> tuple[int, ...]:
        """The shape of an array; nothing is made or read."""
        return self._shapes[key]
