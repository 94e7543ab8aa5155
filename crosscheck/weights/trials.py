"""What names and shapes leave open, settled: by running the candidate, or by what it holds."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from crosscheck.aligning.names import Tokens, canonical, numbered, similarity, spelled
from crosscheck.weights.layouts import transforms
from crosscheck.weights.match import Match, Matched, decisions
from crosscheck.weights.transform import Transform

__all__ = ["Fit", "settle", "settle_by_values"]

SAME = 1e-5
"""Relative error of the outputs from which on there is nothing left to settle."""
SURE = 0.05
"""How much more alike names must be for pairs of layers not to be in doubt."""
MOST_SWAPS = 12  # that bring nothing
MOST_ALIKE = 32  # layers of one shape among which all pairs are looked at
MOST_TRIALS = 64


@dataclass(frozen=True)
class Fit:
    """How well the candidate does with the weights of a match: more sites first, then less error.

    Attributes:
        sites: that match by value, each on right inputs.
        error: relative, of the outputs of a free run; infinite where there is none.
        right: paths of the candidate's layers that match by value: they hold the right weights.
        given: of those, by path: what a layer is given, equal where two are given the same. Such
            layers match by value whichever of them holds the weights of which.
    """

    sites: int
    error: float
    right: frozenset[str] = frozenset()
    given: Mapping[str, Hashable] = field(default_factory=dict)

    def leaves_open(self, swap: tuple[str, str]) -> bool:
        """Whether two layers may have each other's weights; else one that is right would become
        wrong."""
        one, other = swap
        beside = one in self.given and self.given[one] == self.given.get(other)
        return beside or self.right.isdisjoint(swap)

    def better(self, other: Fit) -> bool:
        """Whether this is the better one by more than rounding."""
        if self.sites != other.sites:
            return self.sites > other.sites
        return self.error < other.error * (1.0 - 1e-6) - 1e-12


def settle(match: Match, trial: Callable[[Match], Fit]) -> Match:
    """Decide what is open by running: one decision after the other, where that does not do all
    together, then doubtful pairs of layers.

    Args:
        trial: loads the weights of a match into the candidate and runs it.
    """
    swaps = _swaps(match)
    first_swap = next(swaps, None)
    choices = decisions(match)
    best = match.choosing({k: t for options in choices for k, t in options[0].items()})
    if first_swap is None and all(len(options) == 1 for options in choices):
        return best
    trial = _each_once(trial)
    fit = trial(best)
    for options in choices:
        for option in options[1:]:
            if fit.error < SAME:
                return best
            if not _owners(best, option) <= fit.right:
                best, fit = _better(best, fit, best.choosing(option), trial)
    best, fit = _all_at_once(best, fit, choices, trial)
    if first_swap is None or fit.error < SAME:
        return best
    doubtful = [first_swap, *swaps]
    best, fit = _swapped_at_once(best, fit, doubtful, trial)
    in_vain = 0
    for swap in doubtful:
        if fit.error < SAME or in_vain == MOST_SWAPS:
            return best
        if fit.leaves_open(swap):
            before = fit
            best, fit = _better(best, fit, _swapped(best, *swap), trial)
            in_vain += fit is before
    return best


def _each_once(trial: Callable[[Match], Fit]) -> Callable[[Match], Fit]:
    """The same trial; what it was asked before it remembers."""
    known: list[tuple[list[tuple[str, Transform]], Fit]] = []

    def once(match: Match) -> Fit:
        choices = [(m.reference.name, m.transform) for m in match.pairs]
        fit = next((fit for made, fit in known if made == choices), None)
        if fit is None:
            fit = trial(match)
            known.append((choices, fit))
        return fit

    return once


def _is_chosen(match: Match, option: Mapping[str, Transform]) -> bool:
    """Whether a match has made this choice already."""
    chosen = ((m.transform, option.get(m.candidate.name)) for m in match.pairs)
    return all(other is None or other == transform for transform, other in chosen)


def _owners(match: Match, option: Mapping[str, Transform]) -> set[str]:
    """Paths of the candidate's layers that an option is about."""
    return {m.candidate.layer for m in match.pairs if m.candidate.name in option}


def _all_at_once(
    match: Match,
    fit: Fit,
    choices: Sequence[Sequence[Mapping[str, Transform]]],
    trial: Callable[[Match], Fit],
) -> tuple[Match, Fit]:
    """Try the choices combined: with no site between them, none is right before the others are."""
    if sum(len(options) > 1 for options in choices) < 2:
        return match, fit
    for combination in itertools.islice(itertools.product(*choices), MOST_TRIALS):
        if fit.error < SAME:
            break
        changes = [part for part in combination if not _is_chosen(match, part)]
        if changes and not any(_owners(match, part) <= fit.right for part in changes):
            option = {k: t for part in changes for k, t in part.items()}
            match, fit = _better(match, fit, match.choosing(option), trial)
    return match, fit


def _swapped_at_once(
    match: Match, fit: Fit, swaps: Sequence[tuple[str, str]], trial: Callable[[Match], Fit]
) -> tuple[Match, Fit]:
    """Try many swaps in one: the blocks of a model are named alike."""
    other, taken = match, set[str]()
    for swap in filter(fit.leaves_open, swaps):
        if taken.isdisjoint(swap):
            other = _swapped(other, *swap)
            taken.update(swap)
    return _better(match, fit, other, trial) if len(taken) > 2 else (match, fit)


def _better(
    match: Match, fit: Fit, other: Match, trial: Callable[[Match], Fit]
) -> tuple[Match, Fit]:
    its = trial(other)
    return (other, its) if its.better(fit) else (match, fit)


def settle_by_values(match: Match, held: Mapping[str, np.ndarray]) -> Match:
    """Decide what is open by what the candidate holds already: the choice that most of it equals.

    Args:
        held: candidate parameter -> its present value.
    """
    for options in decisions(match):
        errors = [_mismatch(match.choosing(option), option, held) for option in options]
        match = match.choosing(options[int(np.argmin(errors))])
    return match


def _mismatch(
    match: Match, option: Mapping[str, Transform], held: Mapping[str, np.ndarray]
) -> float:
    total = 0.0
    for m in match.pairs:
        if m.candidate.name in option:
            own = held[m.candidate.name].astype(np.float64)
            size = float(np.abs(own).sum()) or 1.0
            total += min(2.0, float(np.abs(m.make().astype(np.float64) - own).sum()) / size)
    return total


# -- layers that are alike in everything -----------------------------------------------------------


def _swaps(match: Match) -> Iterator[tuple[str, str]]:
    """Pairs of candidate layers whose counterparts could as well be exchanged: equal shapes, and
    names that do not say which is which. Not those that would hold what they hold anyway."""
    layers: defaultdict[tuple[str, str], list[Matched]] = defaultdict(list)
    for m in match.pairs:
        layers[m.reference.home, m.candidate.home].append(m)
    groups: defaultdict[tuple[object, ...], list[tuple[str, str]]] = defaultdict(list)
    for pair, members in layers.items():
        if all(not m.more and m.transform.function is None for m in members):
            ours = sorted((m.candidate.role, m.candidate.value.shape) for m in members)
            groups[members[0].reference.kind, *ours].append(pair)
    names = _Names([r for r, _ in layers], [c for _, c in layers])
    for alikes in groups.values():
        for (a, x), (b, y) in _near(alikes):
            if a == b or x == y or not names.leave_open((a, x), (b, y)):
                continue
            if not _hold_the_same(layers[a, x], layers[b, y]):
                yield x, y


def _hold_the_same(some: Sequence[Matched], others: Sequence[Matched]) -> bool:
    """Whether the parameters of two layers have the same values (norms that are not trained)."""
    theirs = {m.candidate.role: m.reference.value for m in others}
    return all(
        m.candidate.role in theirs and _equal(m.reference.value, theirs[m.candidate.role])
        for m in some
    )


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    first = a.flat[:1], b.flat[:1]  # which tells nearly always
    return np.array_equal(*first) and np.array_equal(a, b)


def _near(alikes: Sequence[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Every two of the first, and of the others those that are defined beside each other."""
    yield from itertools.combinations(alikes[:MOST_ALIKE], 2)
    yield from itertools.pairwise(alikes[MOST_ALIKE - 1 :])


class _Names:
    """What the names of layers say about which belong together.

    A number's rank tells only where both sides have as many at that place: ``n2`` beside ``norm``
    is no first one. Where they have not, what is spelled alike may be the same.
    """

    def __init__(self, ours: Sequence[str], theirs: Sequence[str]) -> None:
        ours, theirs = list(dict.fromkeys(ours)), list(dict.fromkeys(theirs))
        self._ranked = canonical(ours), canonical(theirs)
        here, there = numbered(ours), numbered(theirs)
        self._unlike = {p for p, count in here.items() if there.get(p, count) != count}

    def leave_open(self, one: tuple[str, str], other: tuple[str, str]) -> bool:
        """Whether two pairs of layers could as well be exchanged."""
        ranked = _gain(one, other, self._ranked[0].__getitem__, self._ranked[1].__getitem__)
        if abs(ranked) < SURE:
            return True
        unlike = self._unlike and any(self._numbers_differ(path) for path in (*one, *other))
        return bool(unlike) and _gain(one, other, spelled, spelled) < SURE

    def _numbers_differ(self, path: str) -> bool:
        """Whether one side has more numbers than the other at a place in a path."""
        words = spelled(path)
        return any(words[:i] in self._unlike for i, word in enumerate(words) if word.isdigit())


def _gain(
    one: tuple[str, str],
    other: tuple[str, str],
    ours: Callable[[str], Tokens],
    theirs: Callable[[str], Tokens],
) -> float:
    """By how much two pairs are more alike in their names than they were if exchanged."""
    (a, x), (b, y) = one, other

    def alike(r: str, c: str) -> float:
        return similarity(ours(r), theirs(c))

    return alike(a, x) + alike(b, y) - alike(a, y) - alike(b, x)


def _swapped(match: Match, one: str, other: str) -> Match:
    """The match with the counterparts of two candidate layers exchanged."""
    by_place = {(m.candidate.home, m.candidate.role): m for m in match.pairs}
    twin = {one: other, other: one}
    pairs = []
    for m in match.pairs:
        source = by_place.get((twin.get(m.candidate.home, ""), m.candidate.role))
        if source is not None:
            before = transforms(m.reference, m.candidate)
            after = transforms(source.reference, m.candidate)
            k = before.index(m.transform) if m.transform in before else 0
            if len(after) > k:
                m = replace(m, reference=source.reference, transform=after[k], alternatives=())
        pairs.append(m)
    return replace(match, pairs=tuple(pairs))
