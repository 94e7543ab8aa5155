"""What names and shapes leave open, settled: by running the candidate, or by what it holds."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.aligning.names import canonical, similarity
from crosscheck.weights.layouts import transforms
from crosscheck.weights.match import Match, Matched, decisions
from crosscheck.weights.transform import Transform

__all__ = ["Fit", "settle", "settle_by_values"]

SAME = 1e-5
"""Relative error of the outputs from which on there is nothing left to settle."""
MOST_SWAPS = 12
MOST_ALIKE = 32  # layers of one shape among which pairs are looked for
MOST_TRIALS = 64


@dataclass(frozen=True)
class Fit:
    """How well the candidate does with the weights of a match: more sites first, then less error.

    Attributes:
        sites: that match by value, each on right inputs.
        error: relative, of the outputs of a free run; infinite where there is none.
        right: paths of the candidate's layers that match by value: they hold the right weights.
    """

    sites: int
    error: float
    right: frozenset[str] = frozenset()

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
    swaps = list(itertools.islice(_swaps(match), MOST_SWAPS))
    choices = decisions(match)
    best = match.choosing({k: t for options in choices for k, t in options[0].items()})
    if not swaps and all(len(options) == 1 for options in choices):
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
    for swap in swaps:
        if fit.error < SAME:
            return best
        if fit.right.isdisjoint(swap):  # else one that is right would become wrong
            best, fit = _better(best, fit, _swapped(best, *swap), trial)
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
    names that do not say which is which."""
    layers: defaultdict[tuple[str, str], list[Matched]] = defaultdict(list)
    for m in match.pairs:
        layers[m.reference.home, m.candidate.home].append(m)
    groups: defaultdict[tuple[object, ...], list[tuple[str, str]]] = defaultdict(list)
    for pair, members in layers.items():
        if all(not m.more and m.transform.function is None for m in members):
            ours = sorted((m.candidate.role, m.candidate.value.shape) for m in members)
            groups[members[0].reference.kind, *ours].append(pair)
    words_r = canonical(dict.fromkeys(r for r, _ in layers))
    words_c = canonical(dict.fromkeys(c for _, c in layers))

    def alike(r: str, c: str) -> float:
        return similarity(words_r[r], words_c[c])

    for alikes in groups.values():
        some = [(r, c, alike(r, c)) for r, c in alikes[:MOST_ALIKE]]
        for (a, x, first), (b, y, second) in itertools.combinations(some, 2):
            gain = first + second - alike(a, y) - alike(b, x)
            if a != b and x != y and abs(gain) < 0.05:
                yield x, y


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
