"""Layouts: the axis permutation that maps a candidate's value onto the reference's.

Only two layouts exist between frameworks: the same, and channels last against channels first.
They are inferred from values once per number of dimensions and then enforced; a search per tensor
would call a transposed tensor a layout and hide the mistake.

Inside a model one side may also hold two neighbouring axes as one (all heads side by side, or all
tokens of a batch in one axis): the same numbers in the same order. Models' inputs and outputs must
have the same shape up to an axis order.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from crosscheck.compare import Difference, compare, compare_each
from crosscheck.kernels.stacked import stacked_squares
from crosscheck.memory import portions

__all__ = [
    "SAME",
    "Layout",
    "LayoutBook",
    "Two",
    "fitting",
    "merging",
    "relative_error",
    "relative_errors",
]

Shape = tuple[int, ...]
Two = tuple[np.ndarray, np.ndarray]
"""A value and what it should be, in one layout."""
BYTES = 16  # for each element: two sides, of eight bytes at most


@dataclass(frozen=True)
class Layout:
    """``candidate.transpose(axes)`` has the reference's layout; None is the identity.

    Attributes:
        axes: the order of the candidate's axes that the reference has.
        shapes: instead of ``axes``, (reference shape, candidate shape) where one of them merges
            neighbouring axes of the other.
    """

    axes: tuple[int, ...] | None = None
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.axes, self.shapes))

    def to_reference(self, candidate: np.ndarray) -> np.ndarray:
        """A candidate's value in the reference's layout; a view wherever NumPy can make one."""
        if self.shapes is not None:
            return candidate.reshape(self.shapes[0])
        return candidate if self.axes is None else candidate.transpose(self.axes)

    def to_candidate(self, reference: np.ndarray) -> np.ndarray:
        """A reference's value in the candidate's layout; a view wherever NumPy can make one."""
        if self.shapes is not None:
            return reference.reshape(self.shapes[1])
        return reference if self.axes is None else reference.transpose(np.argsort(self.axes))

    def fits(self, reference: tuple[int, ...], candidate: tuple[int, ...]) -> bool:
        """Whether a candidate of that shape becomes a reference of that shape."""
        if self.shapes is not None:
            return self.shapes == (reference, candidate)
        if len(reference) != len(candidate):
            return False
        axes = self.axes or range(len(candidate))
        return tuple(candidate[a] for a in axes) == tuple(reference)

    def __str__(self) -> str:
        if self.shapes is not None:
            return f"reshaped {self.shapes[1]} -> {self.shapes[0]}"
        return "as it is" if self.axes is None else f"transposed {self.axes}"


SAME = Layout()


def _family(ndim: int) -> list[Layout]:
    """The identity, channels last -> first, channels first -> last."""
    if ndim < 3:
        return [SAME]
    inner = tuple(range(1, ndim - 1))
    last_to_first, first_to_last = (0, ndim - 1, *inner), (0, *range(2, ndim), 1)
    both = dict.fromkeys([last_to_first, first_to_last])  # the same one in three dimensions
    return [SAME, *map(Layout, both)]


def fitting(reference: tuple[int, ...], candidate: tuple[int, ...]) -> list[Layout]:
    """The known layouts that map one shape onto the other."""
    return [*_fitting(tuple(reference), tuple(candidate))]


@lru_cache(maxsize=1 << 12)
def _fitting(reference: Shape, candidate: Shape) -> tuple[Layout, ...]:
    if len(reference) != len(candidate):
        return ()
    return tuple(one for one in _family(len(reference)) if one.fits(reference, candidate))


def merging(reference: tuple[int, ...], candidate: tuple[int, ...]) -> Layout | None:
    """The layout between two shapes of which one merges neighbouring axes of the other.

    ``(2, 13, 48)`` and ``(2, 13, 4, 12)``. Axes of length 1 merge into nothing: ``(7, 1)`` is not
    ``(7,)``, which broadcasts differently.
    """
    few, many = sorted((reference, candidate), key=len)
    if len(few) == len(many) or not few or 0 in many:
        return None
    rest = list(many)
    for length in few:
        product = rest.pop(0) if rest else 0
        merged = product == 1 != length
        while rest and product < length:
            merged |= rest[0] == 1
            product *= rest.pop(0)
        if product != length or merged:
            return None
    return None if rest else Layout(shapes=(tuple(reference), tuple(candidate)))


class LayoutBook:
    """The layout of each number of dimensions, decided by votes of confirmed pairs."""

    def __init__(self) -> None:
        self._votes: defaultdict[int, Counter[Layout]] = defaultdict(Counter)
        self._chosen: dict[tuple[Shape, Shape, bool], Layout | None] = {}

    def vote(self, equal: Sequence[Layout], ndim: int) -> None:
        """Let a pair of values vote.

        Args:
            equal: the layouts in which the two are equal; with several, the pair abstains.
            ndim: their number of dimensions.
        """
        if len(equal) == 1:
            self._votes[ndim][equal[0]] += 1
            self._chosen.clear()

    def choose(
        self, reference: tuple[int, ...], candidate: tuple[int, ...], *, merged: bool = False
    ) -> Layout | None:
        """The layout between two shapes: the voted one, or the one that the shapes force.

        Args:
            merged: whether one side may hold several axes of the other as one.
        """
        key = reference, candidate, merged
        if key not in self._chosen:
            self._chosen[key] = self._choose(*key)
        return self._chosen[key]

    def _choose(self, reference: Shape, candidate: Shape, merged: bool) -> Layout | None:
        if merged and len(reference) != len(candidate):
            return merging(reference, candidate)
        options = fitting(reference, candidate)
        voted = self._votes[len(reference)].most_common(1)
        if voted and voted[0][0] in options:
            return voted[0][0]
        return options[0] if options else None


def relative_error(value: np.ndarray, truth: np.ndarray) -> float:
    """‖value − truth‖ / ‖truth‖ over finite elements; 0 for two zeros; inf if NaN or Inf differ."""
    return _relative(compare(value, truth))


def relative_errors(pairs: Iterable[Two]) -> list[float]:
    """`relative_error` of many (value, truth); small ones are looked at together."""
    together = portions(pairs, lambda two: two[1].size, BYTES)
    return [error for some in together for error in _relative_errors(some)]


def _relative_errors(pairs: Sequence[Two]) -> list[float]:
    squares = stacked_squares(pairs)
    others = [i for i in range(len(pairs)) if i not in squares]
    compared = compare_each([pairs[i] for i in others])
    found = {i: _ratio(math.sqrt(error), math.sqrt(truth)) for i, (error, truth) in squares.items()}
    found |= zip(others, map(_relative, compared), strict=True)
    return [found[i] for i in range(len(pairs))]


def _relative(difference: Difference) -> float:
    return math.inf if difference.mismatch else _ratio(difference.l2, difference.truth_l2)


def _ratio(error: float, truth: float) -> float:
    if truth == 0.0:
        return 0.0 if error == 0.0 else math.inf
    return error / truth
