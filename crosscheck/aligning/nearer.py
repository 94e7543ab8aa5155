"""Part of stage 5, align: a pair by value, moved to the layer behind it that returns the very same.

A norm that has not been trained changes what it is given by less than what two values may be apart
to be taken for the same. Where one side has it folded into the layer before, names speak for that
layer; which of the two the other side has shows by how near their values are.
"""

from __future__ import annotations

from collections.abc import Iterator

from crosscheck.aligning.alignment import SitePair
from crosscheck.aligning.fingerprints import PreparedTrace, differences, looks_like
from crosscheck.aligning.pairing import ROUNDING, Pairing

__all__ = ["move_to_nearer"]

NEARER = 3.0
"""How many times nearer the layer behind must be than a pair that is not equal but for rounding."""


def move_to_nearer(p: Pairing, run: PreparedTrace) -> int:
    """Move pairs by value one layer on, on one side, where that is nearer by far.

    Args:
        run: of the candidate, to take the values from.

    Returns:
        How many were moved.
    """
    options = list(_options(p, run))
    asked = [(one.reference, one.candidate) for one, _, _ in options]
    asked += [(r, c) for _, r, c in options]
    laid_out = [(r, c, layout) for r, c in asked if (layout := p.layout(r, c)) is not None]
    errors = differences(
        (layout.to_reference(run.value(c)), p.reference.value(r)) for r, c, layout in laid_out
    )
    known = {(r, c): error for (r, c, _), error in zip(laid_out, errors, strict=True)}
    moved = 0
    for pair, r, c in options:
        own = known.get((pair.reference, pair.candidate), 0.0)
        if own > max(ROUNDING, p.rounding) and known.get((r, c), own) < own / NEARER:
            p.remove(pair)
            moved += p.add(r, c, "value")
    return moved


def _options(p: Pairing, run: PreparedTrace) -> Iterator[tuple[SitePair, str, str]]:
    """A pair, and the two sites that may belong together instead: of one of them the partner, and
    a free one that is given what the other one returns, and nearly returns that."""
    sides = (p.reference, p.free_reference(), True), (run, p.free_candidate(run), False)
    pairs = {one.candidate: one for one in p.pairs.values()}
    for side, free, ours in sides:
        sources = side.trace.info.sources
        for site in free:
            before = sources.get(site, "")
            pair = p.pairs.get(before) if ours else pairs.get(before)
            if pair is None or pair.by != "value" or pair.candidate not in run.order:
                continue
            if side.shapes.get(site) != side.shapes[before]:
                continue
            own, other = side.prints_of([before, site])
            if looks_like(own[None], other, p.same).all():
                yield (pair, site, pair.candidate) if ours else (pair, pair.reference, site)
