"""Part of stage 5, align: guesses that forcing may rule out.

A pair of layers whose values differ is a guess, and it may be wrong: what one side computes inside
a layer (an activation) the other may compute behind it. Forcing tells: a wrong pair feeds the code
behind it with a quantity that it was not made for, and what comes out there is further from the
truth than before. Then the pair is taken back. Where that is off still, what else may be meant is
tried: the next node of a file that has a layer in several. A pair found later in front of others
puts them in question: they were made while what goes into them was wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
MOST_TRIED = 12
"""Pairs that are tried in the place of others, each in a run of its own."""
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
    others: tuple[tuple[str, str], ...] = ()  # what may be meant instead, if it is off still
    instead_of: SitePair | None = None


class Trials:
    """The guesses of an alignment, each on trial until the next run is forced at it.

    Attributes:
        guessed: all pairs that were guesses once.
    """

    def __init__(self, pairing: Pairing) -> None:
        self.guessed: set[SitePair] = set()
        self._pairing = pairing
        self._guesses: list[_Guess] = []
        self._retracted = self._tried = 0

    @property
    def fail_too_often(self) -> bool:
        """Whether no more guesses are to be made about faded differences."""
        return self._retracted >= MOST_RETRACTED

    def begin(
        self,
        pair: SitePair,
        alignment: Alignment,
        trace: Trace,
        *,
        faded: bool,
        others: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Note what lies behind a guess.

        Args:
            alignment: what ``trace``, a run without the guess, was forced at.
            faded: it is about a difference that may be noticed, and no more.
            others: (reference site, candidate site) that may be meant instead. The first of them
                that brings right what lies behind takes the guess's place.
        """
        behind = self.behind(pair.reference, pair.candidate, alignment, trace)
        if behind is not None:
            kind, reference, candidate, layout = behind
            error = self._pairing.distances(trace).of(kind, reference, candidate, layout)
            truth = self._pairing.reference.trace.values[kind, reference]
            same = self._pairing.same
            limit = noticed(same, truth) if faded else same
            found = _Guess(pair, kind, reference, candidate, layout, error, limit, tuple(others))
            self._guesses.append(found)

    def take_back(self, trace: Trace) -> int:
        """Remove the guesses that ``trace``, forced at them, proves wrong; returns how many."""
        p = self._pairing
        guesses, self._guesses = self._guesses, []
        changed = [guess for guess in guesses if self._give_place(guess, trace)]
        others = (g for g in guesses if g not in changed)
        wrong = [g for g in others if self._stands(g.pair) and self._is_wrong(g, trace)]
        self._retracted += sum(guess.limit < p.same for guess in wrong)
        for pair in (guess.pair for guess in wrong):
            if pair.by == "entry":
                p.enter(pair.reference, pair.candidate, compared=False)
            else:
                p.remove(pair)
        return len(wrong) + len(changed)

    def _give_place(self, guess: _Guess, trace: Trace) -> bool:
        """Of a guess with which what lies behind it is off still, try what may be meant instead;
        after the last of these the guess stands again. Says whether the pairs have changed."""
        if not self._stands(guess.pair) or self._error(guess, trace) <= guess.limit:
            return False  # NaN is off
        if guess.instead_of is None and (not guess.others or self._tried >= MOST_TRIED):
            return False
        first = guess.instead_of or guess.pair
        self._pairing.release(guess.pair)
        for i, (r, c) in enumerate(guess.others):
            if self._pairing.add(r, c, "value"):
                pair = self._pairing.pairs[r]
                self._guesses.append(
                    replace(guess, pair=pair, others=guess.others[i + 1 :], instead_of=first)
                )
                self._tried += 1
                self.reopen_behind(r)
                return True
        self._pairing.add(first.reference, first.candidate, first.by)
        if self._stands(first):
            self._guesses.append(replace(guess, pair=first, others=(), instead_of=None))
        return True

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

    def _error(self, guess: _Guess, trace: Trace) -> float:
        """How far what lies behind a guess is off in a run."""
        asked = guess.kind, guess.reference, guess.candidate, guess.layout
        return self._pairing.distances(trace).of(*asked)

    def _is_wrong(self, guess: _Guess, trace: Trace) -> bool:
        """Whether what lies behind a guess is further off with it; or is off still, and only one
        side has code between: that code may be part of the other side's layer."""
        error = self._error(guess, trace)
        ours, theirs = self._pairing.reference.trace.info.sources, trace.info.sources
        here = (
            ours.get(guess.reference) == guess.pair.reference,
            theirs.get(guess.candidate) == guess.pair.candidate,
        )
        cut = guess.pair.by == "anchor" and guess.kind == "input" and here[0] != here[1]
        return error > WORSE * (guess.limit if cut else max(guess.error, guess.limit))
