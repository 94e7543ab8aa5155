"""Part of stage 8, locate, for two recorded runs: look again at the stretch of the first departure.

A mistake may fade. What it does to a layer's output is too much for that to find its partner by
value, and behind a large residual so little that the sum does. No stretch between two aligned sites
ends in a difference then, sites inside are left without partners, and the sum is blamed. Rounding
alone makes as much of a difference elsewhere, so this is looked into only where a judgement, by the
floor, says that something departs, and only inside that stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crosscheck.aligning.align import Aligner
from crosscheck.aligning.alignment import Alignment
from crosscheck.comparisons import Item
from crosscheck.judging.uses import used_otherwise_as_recorded
from crosscheck.results import Divergence
from crosscheck.traces.departures import Departures
from crosscheck.traces.recorded import RecordedTrace

__all__ = ["Judged", "judge_closely"]

MOST_ROUNDS = 400  # each adds a pair; so many sites behind a departure are enough
SINGLE_ROUNDS = 12


@dataclass(frozen=True)
class Judged:
    """Everything that follows from one alignment."""

    alignment: Alignment
    items: Sequence[Item]
    lines: Sequence[str]
    departures: Departures
    divergences: tuple[Divergence, ...]


def judge_closely(
    aligner: Aligner,
    reference: RecordedTrace,
    candidate: RecordedTrace,
    judge: Callable[[Alignment], Judged],
) -> Judged:
    """Align two recorded runs, judge them, and again with more pairs where the first one departs,
    or without the cotangents that are not comparable.

    Args:
        judge: what follows from an alignment.
    """
    judged = judge(_aligned(aligner, candidate))
    while others := used_otherwise_as_recorded(judged.departures.results, reference, candidate):
        aligner.compare_forward_only(others)
        judged = judge(aligner.alignment(candidate))
    first = next(iter(judged.divergences), None)
    if first is None or first.phase != "forward" or not first.between:
        return judged
    inside = set(first.between) | {c.candidate for c in judged.alignment.pairs}
    closer = None
    for _ in range(len(first.between)):
        if not aligner.refine(candidate, faded=True):
            break
        alignment = aligner.alignment(candidate)
        if not inside.issuperset(p.candidate for p in alignment.pairs):
            break  # a guess elsewhere, which nothing vouches for
        closer = alignment
    return judged if closer is None else judge(closer)


def _aligned(aligner: Aligner, candidate: RecordedTrace) -> Alignment:
    """Pair by value, then by what is likely inside each stretch that ends in a difference."""
    for attempt in range(MOST_ROUNDS):
        if not aligner.refine(candidate, at_once=attempt >= SINGLE_ROUNDS, faded=False):
            break
    return aligner.alignment(candidate)
