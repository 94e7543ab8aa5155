"""Layouts: the axis permutation that maps a candidate's value onto the reference's.

Only two layouts exist between frameworks: the same, and channels last against channels first.
They are inferred from values once per number of dimensions and then enforced; a search per tensor
would call a transposed tensor a layout and hide the mistake.

Inside a model one side may also have sequences first where the other has the batch first (PyTorch's
recurrent layers and transformers do, unless told otherwise). And one side may hold two neighbouring
axes as one (all heads side by side, or all tokens of a batch in one axis): the same numbers in the
same order. Or it turns the other side's axes before it merges them (an image of patches against a
row of tokens; heads before positions). Models' outputs must have the same shape up to channels last
or first.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from crosscheck.arrays import real_parts
from crosscheck.compare import Difference, compare, compare_each
from crosscheck.kernels.stacked import stacked_squares
from crosscheck.memory import portions

__all__ = [
    "SAME",
    "Layout",
    "LayoutBook",
    "Shape",
    "Two",
    "between",
    "cut_of",
    "fitting",
    "layouts_of",
    "mergings",
    "relative_error",
    "relative_errors",
    "repeats",
]

Shape = tuple[int, ...]
Axes = tuple[int, ...] | None
Two = tuple[np.ndarray, np.ndarray]
"""A value and what it should be, in one layout."""
BYTES = 16  # for each element: two sides, of eight bytes at most


@dataclass(frozen=True)
class Layout:
    """``candidate.transpose(axes)`` has the reference's layout; None is the identity.

    Attributes:
        axes: the order of the candidate's axes that the reference has. With ``shapes``: the order
            of the axes of the side that has more of them, in which the other one merges them.
        shapes: (reference shape, candidate shape) where one of them merges neighbouring axes of the
            other.
    """

    axes: tuple[int, ...] | None = None
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.axes, self.shapes))

    @cached_property
    def steps(self) -> tuple[tuple[str, Shape], ...]:
        """What makes the reference's layout of a candidate's value: methods of an array, each with
        its argument."""
        return _steps(self.axes, self.shapes)

    @cached_property
    def _steps_back(self) -> tuple[tuple[str, Shape], ...]:
        if self.shapes is not None:
            return _steps(self.axes, self.shapes[::-1])
        return _steps(None if self.axes is None else _inverse(self.axes), None)

    def to_reference(self, candidate: np.ndarray) -> np.ndarray:
        """A candidate's value in the reference's layout; a view wherever NumPy can make one."""
        return _made(candidate, self.steps)

    def to_candidate(self, reference: np.ndarray) -> np.ndarray:
        """A reference's value in the candidate's layout; a view wherever NumPy can make one."""
        return _made(reference, self._steps_back)

    def fits(self, reference: tuple[int, ...], candidate: tuple[int, ...]) -> bool:
        """Whether a candidate of that shape becomes a reference of that shape."""
        if self.shapes is not None:
            return self.shapes == (reference, candidate)
        return len(reference) == len(candidate) and self.shape_of(candidate) == tuple(reference)

    def shape_of(self, candidate: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a candidate of that shape becomes."""
        if self.shapes is not None:
            return self.shapes[0]
        return tuple(candidate[a] for a in self.axes or range(len(candidate)))

    def __str__(self) -> str:
        if self.shapes is not None:
            turned = "" if self.axes is None else f", transposed {self.axes}"
            return f"reshaped {self.shapes[1]} -> {self.shapes[0]}{turned}"
        return "as it is" if self.axes is None else f"transposed {self.axes}"


SAME = Layout()


def _steps(axes: Axes, shapes: tuple[Shape, Shape] | None) -> tuple[tuple[str, Shape], ...]:
    """From the second of two shapes to the first, as `Layout` has them."""
    if shapes is None:
        return () if axes is None else (("transpose", axes),)
    to, here = shapes
    if axes is None:
        return (("reshape", to),)
    if len(here) > len(to):
        return ("transpose", axes), ("reshape", to)
    return ("reshape", tuple(to[a] for a in axes)), ("transpose", _inverse(axes))


def _made(value: np.ndarray, steps: tuple[tuple[str, Shape], ...]) -> np.ndarray:
    for name, argument in steps:
        value = getattr(value, name)(argument)
    return value


def _inverse(axes: Shape) -> Shape:
    return tuple(axes.index(a) for a in range(len(axes)))


def _family(ndim: int) -> list[Layout]:
    """The identity, channels last -> first, channels first -> last."""
    if ndim < 3:
        return [SAME]
    inner = tuple(range(1, ndim - 1))
    last_to_first, first_to_last = (0, ndim - 1, *inner), (0, *range(2, ndim), 1)
    both = dict.fromkeys([last_to_first, first_to_last])  # the same one in three dimensions
    return [SAME, *map(Layout, both)]


def layouts_of(ndim: int) -> list[Layout]:
    """The layouts of so many dimensions within models: as it is, channels last -> first, channels
    first -> last, and sequences first against batch first."""
    if ndim < 3:
        return _family(ndim)
    return [*_family(ndim), Layout((1, 0, *range(2, ndim)))]


def fitting(reference: tuple[int, ...], candidate: tuple[int, ...]) -> list[Layout]:
    """The layouts between two models that map one shape onto the other."""
    return [*_fitting(tuple(reference), tuple(candidate), False)]


@lru_cache(maxsize=1 << 12)
def _fitting(reference: Shape, candidate: Shape, inside: bool) -> tuple[Layout, ...]:
    if len(reference) != len(candidate):
        return ()
    family = (layouts_of if inside else _family)(len(reference))
    return tuple(one for one in family if one.fits(reference, candidate))


def between(reference: tuple[int, ...], candidate: tuple[int, ...]) -> list[Layout]:
    """The layouts within two models that map one shape onto the other: of as many axes, or
    `mergings`."""
    reference, candidate = tuple(reference), tuple(candidate)
    return [*_fitting(reference, candidate, True)] or mergings(reference, candidate)


def mergings(reference: tuple[int, ...], candidate: tuple[int, ...]) -> list[Layout]:
    """The layouts between two shapes of which one merges neighbouring axes of the other, as they
    lie or turned; the likeliest first.

    ``(2, 13, 48)`` and ``(2, 13, 4, 12)``, or ``(2, 4, 13, 12)``: heads; ``(2, 16, 24)`` and
    ``(2, 24, 4, 4)``: patches. Axes of length 1 merge into nothing: ``(7, 1)`` is not ``(7,)``,
    which broadcasts differently. The first may: a batch of one that the other side does without.
    """
    return [*_mergings(tuple(reference), tuple(candidate))]


@lru_cache(maxsize=1 << 12)
def _mergings(reference: Shape, candidate: Shape) -> tuple[Layout, ...]:
    few, many = sorted((reference, candidate), key=len)
    if len(few) == len(many) or not few or 0 in many:
        return ()
    fits = dict.fromkeys(
        axes for axes, begins in _turned(many) if _merges([many[a] for a in axes], few, begins)
    )
    same, shapes = tuple(range(len(many))), (reference, candidate)
    return tuple(Layout(None if axes == same else axes, shapes) for axes in fits)


def _turned(shape: Shape) -> Iterator[tuple[tuple[int, ...], set[int]]]:
    """Orders in which the axes of a shape are merged, and where in each no axis may run through.

    As they lie, any may be merged. With channels last or first, or sequences first, channels are
    merged with nothing: flattened with the rest, their order is the mistake that is looked for.
    Those of frames may lie behind batch and time (``(14, 3, 8, 8)`` and ``(2, 7, 8, 8, 3)``). Of
    four axes also heads and positions exchanged, and the two not merged with each other.
    """
    ndim = len(shape)
    same = tuple(range(ndim))
    yield same, set()
    if ndim == 3:
        yield (1, 0, 2), {2}
    if ndim >= 3:
        yield (0, *same[2:], 1), {ndim - 1}
    if ndim >= 4:
        yield (0, ndim - 1, *same[1:-1]), {1, 2}
    if ndim >= 4 and shape[0] > 1:
        yield (0, 1, *same[3:], 2), {2, ndim - 1}
        yield (0, 1, ndim - 1, *same[2:-1]), {2, 3}
    if ndim == 4:
        yield (0, 2, 1, 3), {2}


def _merges(many: Sequence[int], few: Shape, begins: set[int]) -> bool:
    """Whether neighbouring lengths multiply to those of ``few``, none across ``begins``."""
    end = 0
    for length in few:
        begin, product = end, 1
        while end < len(many) and (end == begin or product < length):
            product *= many[end]
            end += 1
        inner = begins & {*range(begin + 1, end)}
        alone = begin == 0 < end - 1 and len(few) > 1  # a batch of one may go
        ones = 1 in many[begin + alone : end] and end > begin + 1
        if begin == end or product != length or ones or inner:
            return False
    return end == len(many)


class LayoutBook:
    """Which of several layouts that fit is taken: decided by votes of confirmed pairs.

    Where axes are equally long, shapes do not tell. Layers of two types have one layout for each
    two numbers of dimensions (in one model a norm over the last axis has another than a
    convolution); where none of them voted, that of most pairs with as many dimensions is taken.
    """

    def __init__(self) -> None:
        self._votes: defaultdict[tuple[Hashable, ...], Counter[Axes]] = defaultdict(Counter)

    def vote(
        self, equal: Sequence[Layout], reference: int, candidate: int, types: Hashable = None
    ) -> None:
        """Let a pair of values vote.

        Args:
            equal: the layouts in which the two are equal; with several, the pair abstains.
            reference, candidate: their numbers of dimensions.
            types: of the two layers.
        """
        if len(equal) == 1:
            for key in ((reference, candidate, types), (reference, candidate)):
                self._votes[key][equal[0].axes] += 1

    def choose(
        self,
        reference: tuple[int, ...],
        candidate: tuple[int, ...],
        types: Callable[[], Hashable] = lambda: None,
        *,
        merged: bool = False,
    ) -> Layout | None:
        """The layout between two shapes: the voted one, or the one that the shapes force.

        Args:
            types: of the two layers, where somebody must ask.
            merged: whether they lie within the models, where one side may hold several axes of the
                other as one, or have sequences first.
        """
        options = _options(reference, candidate, merged)
        if len(options) < 2:
            return options[0] if options else None
        voted = self.voted(len(reference), len(candidate), types())
        likeliest = (one for axes in voted for one in options if one.axes == axes)
        return next(likeliest, options[0])

    def voted(self, reference: int, candidate: int, types: Hashable) -> list[Axes]:
        """The order of axes that most pairs of layers of these types voted for, if any did; then
        that of all with as many dimensions."""
        keys = (reference, candidate, types), (reference, candidate)
        return [axes for key in keys for axes, _ in self._votes[key].most_common(1)]


@lru_cache(maxsize=1 << 12)
def _options(reference: Shape, candidate: Shape, merged: bool) -> tuple[Layout, ...]:
    return tuple((between if merged else fitting)(reference, candidate))


def relative_error(value: np.ndarray, truth: np.ndarray) -> float:
    """‖value − truth‖ / ‖truth‖ over finite elements; 0 for two zeros; inf if NaN or Inf differ."""
    return _relative(compare(value, truth))


def cut_of(one: np.ndarray, other: np.ndarray, same: float) -> bool | None:
    """Whether one of two values is a part of the other, in whatever layout: what is left of a
    padded sequence, say. Looked for at either end and in the middle of each axis.

    Args:
        same: the relative error up to which two values are the same.

    Returns:
        None where no layout makes one shape lie within the other.
    """
    small, large = sorted((one, other), key=lambda value: value.size)
    if small.ndim != large.ndim or not 0 < small.size < large.size:
        return None
    lies_within: bool | None = None
    for turned in (layout.to_reference(small) for layout in layouts_of(small.ndim)):
        spare = [n - m for n, m in zip(large.shape, turned.shape, strict=True)]
        if min(spare) < 0:
            continue
        lies_within = False
        for begin in itertools.product(*({0, n // 2, n - n // 2, n} for n in spare)):
            part = tuple(slice(b, b + m) for b, m in zip(begin, turned.shape, strict=True))
            if relative_error(turned, large[part]) <= same:
                return True
    return lies_within


def repeats(one: np.ndarray, other: np.ndarray, same: float) -> bool:
    """Whether one of two values is the other one, over and over along one more axis: positions
    that one side looks up once and the other for each sequence of a batch.

    Args:
        same: the relative error up to which two values are the same.
    """
    small, large = sorted((one, other), key=lambda value: value.size)
    if not 0 < small.size < large.size or not 0 <= large.ndim - small.ndim <= 1:
        return False
    axes = range(large.ndim) if small.ndim < large.ndim else (None,)
    made = (small if axis is None else np.expand_dims(small, axis) for axis in axes)
    return any(
        all(n in (1, m) for n, m in zip(given.shape, large.shape, strict=True))
        and relative_error(np.broadcast_to(given, large.shape), large) <= same
        for given in made
    )


def relative_errors(pairs: Iterable[Two]) -> list[float]:
    """`relative_error` of many (value, truth); small ones are looked at together."""
    together = portions(pairs, lambda two: two[1].size, BYTES)
    return [error for some in together for error in _relative_errors(some)]


def _relative_errors(pairs: Sequence[Two]) -> list[float]:
    squares = stacked_squares([(a, b) for a, b in map(real_parts, pairs)])
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
