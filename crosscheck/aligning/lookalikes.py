"""Part of stage 5, align: which sites of two runs could hold the same, by their fingerprints.

A deep residual stream hardly changes from one layer to the next: any number of sites look alike
there. So they are columns here, and an upper bound of each pair's likeness spares most of them a
comparison: a pair that its better ones have taken the sites from is never looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crosscheck.aligning.fingerprints import Fingerprints, PreparedTrace, least_errors
from crosscheck.aligning.pairing import ROUNDING

__all__ = ["MOST_ALIKE", "Alike", "LookAlikes"]

MOST_ALIKE = 48
"""Candidate sites that are compared to one reference site, of those with its fingerprint."""
AT_ONCE = 4096
"""Pairs that are looked at before those of sites that have found a partner are left out."""
Pairs = list[tuple[str, str]]
Key = tuple[float, int, int]
Columns = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Alike:
    """Pairs of sites with one fingerprint, as columns.

    Attributes:
        sites: the two sides' in the order of their runs.
        places: int64 (n,) of each side, into ``sites``.
        rank: int64 (n,), how many of a reference site's others are nearer: first those of its name,
            then by how near they come in their run.
        bound: float64 (n,), no less than their likeness, however equal their values may be
            (`Pairing.likeness`).
    """

    sites: tuple[Sequence[str], Sequence[str]]
    places: tuple[np.ndarray, np.ndarray]
    rank: np.ndarray
    bound: np.ndarray

    def of_rank(self, done: Container[str]) -> Iterator[Pairs]:
        """The nearest of each site, the second of each, and so on; of the reference's sites that
        are not ``done`` by then."""
        left, rank = np.arange(len(self.rank)), 0
        while len(left):
            yield self._named(left[self.rank[left] == rank])
            rank += 1
            left = left[self.rank[left] >= rank]
            left = left[~_held(self.sites[0], done)[self.places[0][left]]]

    def likeliest_first(
        self, done: tuple[Container[str], Container[str]]
    ) -> Iterator[tuple[Pairs, list[Key]]]:
        """The pairs, and by what they are sorted: minus the bound, then in the order of the
        reference's run, then by rank. So many at a time as are looked at together; not those of
        sites that are ``done`` by then."""
        left = np.lexsort((self.rank, self.places[0], -self.bound))
        while len(left):
            some, left = left[:AT_ONCE], left[AT_ONCE:]
            keys = (column[some].tolist() for column in (-self.bound, self.places[0], self.rank))
            yield self._named(some), list(zip(*keys, strict=True))
            for sites, places, held in zip(self.sites, self.places, done, strict=True):
                left = left[~_held(sites, held)[places[left]]]

    def _named(self, some: np.ndarray) -> Pairs:
        ours, theirs = (places[some].tolist() for places in self.places)
        return [(self.sites[0][i], self.sites[1][j]) for i, j in zip(ours, theirs, strict=True)]


class LookAlikes:
    """What of a pair of sites depends on no value, for all sites of the two free runs."""

    def __init__(self, reference: PreparedTrace, candidate: PreparedTrace, same: float) -> None:
        """``same``: the relative error up to which two values are taken for the same."""
        self._sides, self._same = (reference, candidate), same
        self._sites = list(reference.order), list(candidate.order)
        self._here = [np.arange(len(sites)) / max(len(sites), 1) for sites in self._sites]
        words = [[side.names[s] for s in side.order] for side in self._sides]
        self._names = _codes(words)
        self._lengths = [np.array([len(one) for one in some]) for some in words]
        types = [[side.kind(s) for s in side.order] for side in self._sides]
        self._types = _codes(types)
        self._typed = np.array([one != "" for one in types[0]])

    def among(
        self, ours: Mapping[str, Hashable], theirs: Mapping[str, Hashable], run: PreparedTrace
    ) -> Alike:
        """The pairs of sites whose values could be the same.

        Args:
            ours, theirs: site -> what two values must have in common to be looked at.
            run: of the candidate, to take the values from.
        """
        groups = _grouped(theirs)
        none = np.zeros(0, np.int64)
        found: list[Columns] = [(none, none, none, np.zeros(0))]
        for group, sites in _grouped(ours).items():
            others = groups.get(group, [])
            if not others:
                continue
            places = self._places(0, sites), self._places(1, others)
            prints = np.array(run.prints_of(others)), np.array(self._sides[0].prints_of(sites))
            for rows, columns in Fingerprints(prints[0], self._same).like(prints[1]):
                error = least_errors(prints[0][columns], prints[1][rows])
                found.append(self._nearest(places[0][rows], places[1][columns], error))
        r, c, rank, bound = map(np.concatenate, zip(*found, strict=True))
        return Alike(self._sites, (r, c), rank, bound)

    def _places(self, side: int, sites: Sequence[str]) -> np.ndarray:
        order = self._sides[side].order
        return np.array([order[site] for site in sites])

    def _nearest(self, r: np.ndarray, c: np.ndarray, error: np.ndarray) -> Columns:
        """Of pairs of places, at most `MOST_ALIKE` for each of the reference's: the columns of
        an `Alike`. ``error``: how far their values are apart at least."""
        apart = np.abs(self._here[0][r] - self._here[1][c])
        named = self._names[0][r] == self._names[1][c]
        order = np.lexsort((apart, 2 * r + ~named))  # stable
        first = np.flatnonzero(np.diff(r[order], prepend=-1))
        rank = np.arange(len(r)) - np.repeat(first, np.diff(first, append=len(r)))
        few = order[rank < MOST_ALIKE]
        r, c = r[few], c[few]
        # Of n words in all, two paths that are not the same have n - 1 in common at most.
        unlike = 1.0 - 0.5 / np.maximum(self._lengths[0][r] + self._lengths[1][c], 1)
        alike = self._typed[r] & (self._types[0][r] == self._types[1][c])
        bound = np.where(named[few], 1.0, unlike) + 0.5 * alike - apart[few]
        bound -= 0.2 * np.log10(np.maximum(error[few] / ROUNDING, 1.0))
        return r, c, rank[rank < MOST_ALIKE], bound


def _held(sites: Sequence[str], held: Container[str]) -> np.ndarray:
    return np.array([site in held for site in sites], bool)


def _codes(sides: Sequence[Sequence[Hashable]]) -> list[np.ndarray]:
    """The same number for the same thing, on both sides."""
    known: dict[Hashable, int] = {}
    return [np.array([known.setdefault(one, len(known)) for one in side]) for side in sides]


def _grouped(groups: Mapping[str, Hashable]) -> dict[Hashable, list[str]]:
    found: defaultdict[Hashable, list[str]] = defaultdict(list)
    for site, group in groups.items():
        found[group].append(site)
    return found
