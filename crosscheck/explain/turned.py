"""Hypotheses on attention that turns queries and keys by their positions, in its own code.

For rotations that are layers of their own see `rotary`. Both turned by one more position change no
score, so that a wrong start shows only between the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.heads import (
    Attention,
    at_hand,
    beginning,
    head_counts,
    is_near,
    is_possible,
    variants,
)
from crosscheck.explain.registry import register
from crosscheck.explain.rotary import BASES, Rotary, ways

__all__ = ["attends_turned", "turns"]

TIME = 2  # the axis of positions, of (B, H, T, D)
LIKELY = (1e4, 5e5, 1e6)
STARTS = (1.0, -1.0, 2.0)
MOST_SEEN = 2**16
"""Elements of the keys of one example, all of which a first look takes where none is masked."""


@register("forward")
def turned_heads(e: Evidence) -> Iterator[Proposal]:
    """Queries and keys turned otherwise; or scale, mask and heads beside it."""
    ours = attends_turned(e)
    if ours is not None:
        yield from turns(e, ours)


def turns(e: Evidence, ours: Attention) -> Iterator[Proposal]:
    """Everything that such attention may do otherwise, where the reference does ``ours``."""
    yield from variants(e, ours)
    one, size = ours.turned[0], e.nearby[ours.q].shape[-1] // ours.heads
    assert one is not None

    def turning(queries: Rotary | None, keys: Rotary | None) -> Attention:
        return replace(ours, turned=(queries, keys))

    for other in ways(one):
        assert isinstance(other.predict, Rotary)
        text = f"{other.statement} (queries and keys)"
        yield replace(other, statement=text, predict=turning(other.predict, other.predict))
    for base in BASES:
        if base != one.base:
            text, based = f"base {base:g} instead of {one.base:g}", replace(one, base=base)
            yield Proposal("rotary_base", text, turning(based, based))
    yield Proposal("rotary_missing", "queries and keys are not turned", turning(None, None))
    yield Proposal("rotary_missing", "keys are not turned, queries are", turning(one, None))
    yield Proposal("rotary_missing", "queries are not turned, keys are", turning(None, one))
    for part in () if one.part else _parts(size):
        text = f"the first {part.part} features alone are turned, not all"
        other_part = replace(one, part=part.part, width=part.width)
        yield Proposal("rotary_part", text, turning(other_part, other_part))
    for start in STARTS:
        text = f"positions of queries are counted from {start:g} where those of keys are from 0"
        yield Proposal("rotary_start", text, turning(replace(one, start=start), one))


def _parts(size: int) -> list[Rotary]:
    """The ways to turn half of ``size`` features: with frequencies of their own, or of all."""
    half = size // 2
    return [Rotary(TIME, part=half, width=width) for width in (0, size)] if size % 4 == 0 else []


def attends_turned(e: Evidence) -> Attention | None:
    """How the reference attends, if it turns queries and keys, which are made in this order."""
    for one in _options(e):
        cheap = beginning(e, one) or e.nearby[one.k][0].size <= MOST_SEEN
        if cheap and is_possible(e, one):
            for turn in _turns(e.nearby[one.q].shape[-1] // one.heads):
                turning = replace(one, turned=(turn, turn))
                if is_near(e, turning) and e.fits_reference(turning(e)):
                    return turning
    return None


def _options(e: Evidence) -> Iterator[Attention]:
    names, made = at_hand(e)
    if e.reference.ndim == 4:
        for q, k in itertools.combinations(names, 2):
            yield Attention(q, k, e.reference.shape[1], "flat")
    for q, k, v in itertools.combinations(made, 3):
        for heads, mask in itertools.product(head_counts(e, e.nearby[q]), ("causal", "none")):
            yield Attention(q, k, heads, "flat", v, mask=mask)


def _turns(size: int) -> Iterator[Rotary]:
    """Of heads of ``size`` features, the likeliest first."""
    for kind in (Rotary(TIME), *_parts(size)) if size % 2 == 0 else ():
        for base, pairs in itertools.product(LIKELY, ("half", "interleaved")):
            yield replace(kind, base=base, pairs=pairs, angles=pairs)
