"""Hypotheses on attention written out in a container: the scores that go into its softmax.

Where the packed projection (B, T, 3·C) is a layer of its own, queries and keys are known, and the
scores (B, heads, T, T) can be made again: softmax(q kᵀ · scale + mask) v (Vaswani et al., 2017).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.hidden import hidden_in
from crosscheck.explain.masks import another_number
from crosscheck.explain.registry import register

__all__: list[str] = []


@dataclass(frozen=True)
class _Scores:
    """How scores are made.

    Attributes:
        source: site of the packed projection.
        parts: which of its three parts are the queries and the keys.
        per_head: whether columns run (head, part, size) for (part, head, size).
        divisor: name of what scores are divided by: a key of `_divisors`.
        mask: "reference": as the reference has it; else which keys a query may see.
        added: to masked scores; None: they hold the reference's number.
    """

    source: str
    parts: tuple[int, int] = (0, 1)
    per_head: bool = False
    divisor: str = "the root of the head size"
    mask: str = "reference"
    added: float | None = None

    def __call__(self, e: Evidence) -> np.ndarray:
        """The scores (B, heads, T, T)."""
        batch, heads, length, _ = e.reference.shape
        packed = e.nearby[self.source]
        shape = (heads, 3, -1) if self.per_head else (3, heads, -1)
        cut = packed.reshape(batch, length, *shape)
        part = 3 if self.per_head else 2
        q, k = (np.take(cut, i, axis=part).swapaxes(1, 2) for i in self.parts)  # (B, nh, T, hs)
        scores = q @ k.swapaxes(-1, -2) / _divisors(q.shape[-1], heads)[self.divisor]
        hidden = hidden_in(e.reference)
        if self.mask == "reference":
            other = e.reference if self.added is None else scores + self.added
            return np.asarray(np.where(hidden, other, scores))
        visible = _VISIBLE[self.mask](np.ones((length, length), dtype=bool))
        return np.asarray(np.where(visible, scores, np.min(e.reference)))


_VISIBLE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "no mask: every position sees all others": lambda ones: ones,
    "the mask lets a position see its successor": lambda ones: np.tril(ones, 1),
    "the mask hides a position from itself": lambda ones: np.tril(ones, -1),
    "the mask is turned around: the past is hidden, not the future": lambda ones: np.triu(ones),
}


def _divisors(size: int, heads: int) -> dict[str, float]:
    return {
        "the root of the head size": math.sqrt(size),
        "1: the scale is missing": 1.0,
        "the head size": float(size),
        "the root of the model's width": math.sqrt(size * heads),
        "the inverse of the root of the head size": 1.0 / math.sqrt(size),
    }


@register("forward")
def scores(e: Evidence) -> Iterator[Proposal]:
    """Scale, mask, and how queries and keys are cut out of the packed projection."""
    ours = _reference_scores(e) if e.kind == "input" and e.reference.ndim == 4 else None
    if ours is None:
        return
    _, heads, _, _ = e.reference.shape
    for divisor in _divisors(4, heads):
        if divisor != ours.divisor:
            text = f"scores are divided by {divisor}; in the reference by {ours.divisor}"
            yield Proposal("attention_scale", text, replace(ours, divisor=divisor))
    if hidden_in(e.reference).any():
        for mask in _VISIBLE:
            yield Proposal("attention_mask", mask, replace(ours, mask=mask))
        yield from another_number(e, lambda added: replace(ours, added=added))
    layout = "split per head, not into flat thirds"
    if ours.per_head:
        layout = "split into flat thirds, not per head"
    yield Proposal(
        "packed_layout", f"q, k, v are {layout}", replace(ours, per_head=not ours.per_head)
    )
    for parts in ((1, 0), (0, 2), (2, 1)):
        if parts != ours.parts:
            names = ["qkv"[i] for i in parts]
            yield Proposal(
                "packed_order",
                f"{names[0]} and {names[1]} of the reference are taken for q and k",
                replace(ours, parts=parts),
            )


def _reference_scores(e: Evidence) -> _Scores | None:
    """How the reference makes its scores; None where they are something else."""
    batch, heads, length, keys = e.reference.shape
    if length != keys:
        return None
    for name, value in e.nearby.items():
        if value.shape[:2] != (batch, length) or value.ndim != 3 or value.shape[2] % (3 * heads):
            continue
        for per_head in (False, True):
            for divisor in _divisors(4, heads):
                made = _Scores(name, per_head=per_head, divisor=divisor)
                if e.fits_reference(made(e)):
                    return made
    return None


@register("forward")
def values_weighted(e: Evidence) -> Iterator[Proposal]:
    """What the weights are applied to: another third of the packed projection."""
    found = _weighted(e) if e.kind == "input" and e.reference.ndim == 3 else None
    if found is None:
        return
    weights, source, ours = found
    for per_head in (False, True):
        for part in range(3):
            if (part, per_head) != ours:
                how = (
                    ""
                    if per_head == ours[1]
                    else (", split per head" if per_head else ", split into flat thirds")
                )
                yield Proposal(
                    "packed_order",
                    f"the weights are applied to {'qkv'[part]}{how}, for {'qkv'[ours[0]]}",
                    functools.partial(
                        _apply, weights=weights, source=source, part=part, per_head=per_head
                    ),
                )


def _weighted(e: Evidence) -> tuple[str, str, tuple[int, bool]] | None:
    """The weights, the packed projection, and which part of it the reference applies them to."""
    for weights, w in e.nearby.items():
        if w.ndim != 4 or w.shape[2] != w.shape[3]:
            continue
        for source, packed in e.nearby.items():
            if packed.shape != (*e.reference.shape[:2], 3 * e.reference.shape[2]):
                continue
            for part in (2, 1, 0):
                for per_head in (False, True):
                    made = _apply(e, weights=weights, source=source, part=part, per_head=per_head)
                    if e.fits_reference(made):
                        return weights, source, (part, per_head)
    return None


def _apply(e: Evidence, *, weights: str, source: str, part: int, per_head: bool) -> np.ndarray:
    w, packed = e.nearby[weights], e.nearby[source]
    batch, length, width = packed.shape
    heads = w.shape[1]
    shape = (heads, 3, -1) if per_head else (3, heads, -1)
    cut = packed.reshape(batch, length, *shape)
    v = np.take(cut, part, axis=3 if per_head else 2).swapaxes(1, 2)  # (B, nh, T, hs)
    return np.asarray((w @ v).swapaxes(1, 2).reshape(batch, length, width // 3))
