"""Hypotheses on attention in code of its own, on a projection that holds queries, keys and values.

The projection (B, T, 3·C) is taken apart, and what is known of three values of their own is asked:
see `heads` and `turned`. For softmaxes that are layers, so that scores show, see `attention`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from crosscheck.explain.evidence import Evidence, Prediction, Proposal
from crosscheck.explain.heads import Attention, attends, variants
from crosscheck.explain.registry import register
from crosscheck.explain.turned import attends_turned, turns

__all__: list[str] = []

PARTS = ("queries", "keys", "values")
MOST_HEADS = 16


@register("forward")
def packed_heads(e: Evidence) -> Iterator[Proposal]:
    """How a packed projection is taken apart; or scale, mask, heads and rotation behind it."""
    found = _reference(e)
    if found is None:
        return
    source, heads, ours = found
    inside = _unpacked(e, source, heads)
    known = turns(inside, ours) if ours.turned[0] else variants(inside, ours)
    for proposal in (*known, *_orders(ours)):
        assert proposal.predict is not None
        yield replace(proposal, predict=_Of(proposal.predict, source, heads))
    if heads:
        other, how = replace(ours, layout="flat"), "into flat thirds, not per head"
        yield Proposal("packed_layout", f"q, k, v are split {how}", _Of(other, source, 0))
    else:
        other, how = replace(ours, layout="heads first"), "per head, not into flat thirds"
        yield Proposal("packed_layout", f"q, k, v are split {how}", _Of(other, source, ours.heads))


def _orders(ours: Attention) -> Iterator[Proposal]:
    """The three parts taken for each other."""
    right = ours.q, ours.k, ours.v
    for q, k, v in itertools.permutations(right):
        if (q, k, v) != right:
            text = f"the {q}, {k} and {v} of the reference are taken for its {', '.join(right[:2])}"
            made = replace(ours, q=q, k=k, v=v)
            yield Proposal("packed_order", f"{text} and {right[2]}", made)


def _reference(e: Evidence) -> tuple[str, int, Attention] | None:
    """The projection, its heads (0: in flat thirds), and how the reference attends."""
    if e.reference.ndim != 3:
        return None
    b, t, width = e.reference.shape
    for source, packed in e.nearby.items():
        if packed.shape == (b, t, 3 * width) and not source.endswith("(input)"):
            counts = [h for h in range(1, MOST_HEADS + 1) if width % h == 0]
            for heads in (0, *counts[1:]):
                inside = _unpacked(e, source, heads)
                ours = attends(inside) or (attends_turned(inside) if not heads else None)
                if ours is not None:
                    return source, heads, ours
    return None


def _unpacked(e: Evidence, source: str, heads: int) -> Evidence:
    """The same with queries, keys and values at hand: (B, T, C) each of flat thirds, else
    (B, heads, T, D)."""
    packed = e.nearby[source]
    b, t, width = packed.shape
    if heads:
        cut = packed.reshape(b, t, heads, 3, width // (3 * heads))
        parts = [cut[:, :, :, i].swapaxes(1, 2) for i in range(3)]
    else:
        parts = np.split(packed, 3, axis=-1)
    return replace(e, nearby=dict(zip(PARTS, parts, strict=True)))


class _Of:
    """A prediction that is made of the parts of a projection."""

    def __init__(self, predict: Prediction, source: str, heads: int) -> None:
        self._predict, self._source, self._heads = predict, source, heads

    def __call__(self, e: Evidence) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        return self._predict(_unpacked(e, self._source, self._heads))
