"""Part of stage 5, align: guesses that forcing may rule out.

A pair of layers whose values differ is a guess, and it may be wrong: what one side computes inside
a layer (an activation) the other may compute behind it. Forcing tells: a wrong pair feeds the code
behind it with a quantity that it was not made for, and what comes out there is further from the
truth than before. Then the pair is taken back. A pair found later in front of others puts them in
question: they were made while what goes into them was wrong.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from crosscheck.aligning.alignment import Alignment, SitePair
from crosscheck.aligning.distances import noticed
from crosscheck.aligning.layout import Layout
from crosscheck.aligning.pairing import Pairing
from crosscheck.taps import Kind
from crosscheck.trace import Trace

__all__ = ["Trials"]

WORSE = 3.0
"""How many times further from the truth forcing a pair must bring what lies behind it, for the pair
to be wrong. (A second defect there leaves the distance as it was, or hides it.)"""
MOST_RETRACTED = 4
"""Guesses about faded differences (`noticed`) that may fail before no more are made."""


@dataclass(frozen=True)
class _Guess:
    """A pair on trial: what lies behind it, and how far off that was without the pair."""

    pair: SitePair
    kind: Kind
    reference: str
    candidate: str
    layout: Layout
    error: float
    limit: float  # an error up to here is none


class Trials:
    """The guesses of an alignment, each on trial until the next run is forced at it.

    Attributes:
        guessed: all pairs that were guesses once.
    """

    def __init__(self, pairing: Pairing) -> None:
        self.guessed: set[SitePair] = set()
        self._pairing = pairing
        self._guesses: list[_Guess] = []
        self._retracted = 0

    @property
    def fail_too_often(self) -> bool:
        """Whether no more guesses are to be made about faded differences."""
        return self._retracted >= MOST_RETRACTED

    def begin(self, pair: SitePair, alignment: Alignment, trace: Trace, *, faded: bool) -> None:
        """Note what lies behind a guess.

        Args:
            alignment: what ``trace``, a run without the guess, was forced at.
            faded: it is about a difference that may be noticed, and no more.
        """
        behind = self.behind(pair.reference, pair.candidate, alignment, trace)
        if behind is not None:
            kind, reference, candidate, layout = behind
            error = self._pairing.distances(trace).of(kind, reference, candidate, layout)
            truth = self._pairing.reference.trace.values[kind, reference]
            same = self._pairing.same
            limit = noticed(same, truth) if faded else same
            self._guesses.append(_Guess(pair, kind, reference, candidate, layout, error, limit))

    def take_back(self, trace: Trace) -> int:
        """Remove the guesses that ``trace``, forced at them, proves wrong; returns how many."""
        p = self._pairing
        wrong = [g for g in self._guesses if self._stands(g.pair) and self._is_wrong(g, trace)]
        self._retracted += sum(guess.limit < p.same for guess in wrong)
        self._guesses = []
        for pair in (guess.pair for guess in wrong):
            if pair.by == "entry":
                p.enter(pair.reference, pair.candidate, compared=False)
            else:
                p.remove(pair)
        return len(wrong)

    def reopen_behind(self, r: str) -> None:
        """Note the pair of ``r``, and let go of the guesses behind it up to the next pair that is
        none. Where one is right, the next runs find it again."""
        p = self._pairing
        order = p.reference.order
        self.guessed.add(p.pairs[r])
        behind = sorted((s for s in p.pairs if order[s] > order[r]), key=order.__getitem__)
        for site in itertools.takewhile(lambda s: p.pairs[s] in self.guessed, behind):
            p.release(p.pairs[site])

    def behind(
        self, r: str, c: str, alignment: Alignment, trace: Trace
    ) -> tuple[Kind, str, str, Layout] | None:
        """The first aligned value that both sides compute after a pair: an input or an output."""
        places, theirs = self._pairing.reference.place, trace.place
        here = places["activation", r], theirs["activation", c]
        aligned: list[tuple[Kind, str, str, Layout]] = [
            ("activation", pair.reference, pair.candidate, pair.layout)
            for pair in alignment.pairs
            if pair.layout is not None
        ]
        aligned += [("input", e.reference, e.candidate, e.layout) for e in alignment.edges]
        after = [
            one
            for one in aligned
            if places[one[0], one[1]] > here[0] and theirs.get((one[0], one[2]), -1) > here[1]
        ]
        return min(after, key=lambda one: places[one[0], one[1]], default=None)

    def _stands(self, pair: SitePair) -> bool:
        if pair.by == "entry":
            return self._pairing.entered[pair.reference, pair.candidate]
        return self._pairing.pairs.get(pair.reference) == pair

    def _is_wrong(self, guess: _Guess, trace: Trace) -> bool:
        """Whether what lies behind a guess is further off with it; or is off still, and only one
        side has code between: that code may be part of the other side's layer."""
        asked = guess.kind, guess.reference, guess.candidate, guess.layout
        error = self._pairing.distances(trace).of(*asked)
        ours, theirs = self._pairing.reference.trace.info.sources, trace.info.sources
        here = (
            ours.get(guess.reference) == guess.pair.reference,
            theirs.get(guess.candidate) == guess.pair.candidate,
        )
        cut = guess.pair.by == "anchor" and guess.kind == "input" and here[0] != here[1]
        return error > WORSE * (guess.limit if cut else max(guess.error, guess.limit))
