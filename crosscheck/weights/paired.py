"""Which layer of one side goes with which of the other: by what they hold, their names and order.

Layers of one name that fit are paired first, without looking at any other pair, so that the time
grows with the depth of a model and not with its square. What is left is scored, each with each.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from crosscheck.aligning.names import Tokens, canonical, similarity
from crosscheck.weights.assign import assign
from crosscheck.weights.held import among_equals, equal_layers
from crosscheck.weights.layers import Layer
from crosscheck.weights.layouts import transforms

__all__ = ["paired_layers"]

MOST_NAMES = 1 << 18
"""Pairs of layers up to which all names are compared with all; beyond, only those that come at
about the same place in both models."""
NEAR = 128


def paired_layers(
    ours: Sequence[Layer], theirs: Sequence[Layer], *, held: bool
) -> list[tuple[int, int]]:
    """Pairs (index in ``ours``, index in ``theirs``), in the order of the first.

    Args:
        held: the two sides hold the same values: layers with equal ones belong together.
    """
    by_kind = all(layer.kind != "other" for layer in (*ours, *theirs))
    words = _tokens(ours, by_kind), _tokens(theirs, by_kind)
    fits = _Fits()
    found = [
        (i, j)
        for i, j in _of_one_name(*words)
        if fits(ours[i], theirs[j]) > 0.0 and (not held or equal_layers(ours[i], theirs[j]))
    ]
    rows = _others(len(ours), {i for i, _ in found})
    columns = _others(len(theirs), {j for _, j in found})
    free = [ours[i] for i in rows], [theirs[j] for j in columns]
    scores = _scores(*free, ([words[0][i] for i in rows], [words[1][j] for j in columns]), fits)
    if held:
        scores = among_equals(*scores, *free)
    pairs = assign(*scores, around=(_around(free[0]), _around(free[1])))
    return sorted([*found, *((rows[i], columns[j]) for i, j in pairs)])


def _around(layers: Sequence[Layer]) -> set[int]:
    """The layers that hold others, by their paths."""
    inside = {parent for layer in layers for parent in _parents(layer.path)}
    return {i for i, layer in enumerate(layers) if layer.path in inside}


def _parents(path: str) -> Iterator[str]:
    return (path[: at.start()] for at in re.finditer("[./]", path))


def _others(count: int, taken: set[int]) -> list[int]:
    return [i for i in range(count) if i not in taken]


def _tokens(layers: Sequence[Layer], by_kind: bool) -> list[Tokens]:
    """The words of each layer's path; numbers are ranks among layers of its kind, if asked for."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for layer in layers:
        groups[layer.kind if by_kind else ""].append(layer.path)
    words = {kind: canonical(paths) for kind, paths in groups.items()}
    return [words[layer.kind if by_kind else ""][layer.path] for layer in layers]


def _of_one_name(ours: Sequence[Tokens], theirs: Sequence[Tokens]) -> list[tuple[int, int]]:
    """The pairs with the same words, which no other layer of either side has."""
    counts = Counter(ours), Counter(theirs)
    places = {words: j for j, words in enumerate(theirs)}
    return [
        (i, places[words])
        for i, words in enumerate(ours)
        if words in places and counts[0][words] == counts[1][words] == 1
    ]


def _scores(
    ours: Sequence[Layer],
    theirs: Sequence[Layer],
    words: tuple[Sequence[Tokens], Sequence[Tokens]],
    fits: _Fits,
) -> tuple[np.ndarray, np.ndarray]:
    """How well every two layers fit (0: not at all), and how alike the paths of those that do."""
    score = fits.matrix(ours, theirs)
    likeness = np.zeros_like(score)
    near = NEAR if score.size > MOST_NAMES else max(score.shape)
    for i, row in enumerate(score):
        here = round(i * len(theirs) / len(ours))
        first = max(0, here - near)
        for j in (first + np.flatnonzero(row[first : here + near + 1] > 0.0)).tolist():
            likeness[i, j] = similarity(words[0][i], words[1][j])
    score += 3.0 * likeness**2  # a shared path weighs more than a fit
    return score, likeness


class _Fits:
    """How well two layers fit, by what they hold; layers of one make are looked at once."""

    def __init__(self) -> None:
        self._makes: dict[int, Hashable] = {}
        self._known: dict[tuple[Hashable, Hashable], float] = {}

    def __call__(self, a: Layer, b: Layer) -> float:
        key = self._make(a), self._make(b)
        if key not in self._known:
            self._known[key] = _fit(a, b)
        return self._known[key]

    def matrix(self, ours: Sequence[Layer], theirs: Sequence[Layer]) -> np.ndarray:
        """Of every two: float64 (len(ours), len(theirs))."""
        sides = [{self._make(layer): layer for layer in side} for side in (ours, theirs)]
        found = np.zeros([len(makes) for makes in sides])
        for i, a in enumerate(sides[0].values()):
            found[i] = [self(a, b) for b in sides[1].values()]
        places = [{make: i for i, make in enumerate(makes)} for makes in sides]
        rows = [places[0][self._make(layer)] for layer in ours]
        columns = [places[1][self._make(layer)] for layer in theirs]
        return found[np.ix_(rows, columns)]

    def _make(self, layer: Layer) -> Hashable:
        if id(layer) not in self._makes:
            self._makes[id(layer)] = tuple(
                (role, p.kind, p.axes, p.value.shape) for role, p in layer.parameters.items()
            )
        return self._makes[id(layer)]


def _fit(a: Layer, b: Layer) -> float:
    shared = [role for role in a.parameters if role in b.parameters]
    fits = [r for r in shared if transforms(a.parameters[r], b.parameters[r])]
    if not fits or len(fits) < len(shared):
        return 0.0
    missing = len(a.parameters) + len(b.parameters) - 2 * len(fits)
    kinds = {p.kind for p in a.parameters.values()} & {p.kind for p in b.parameters.values()}
    return max(0.25, 1.0 + 0.5 * bool(kinds - {"other"}) - 0.25 * missing)
