"""Hypotheses on attention whose queries, keys and values are values of their own.

Scores (B, H, T, S) are q kᵀ · scale, perhaps through a soft cap c · tanh(s/c), with a mask; the
result is softmax(scores) v with its heads side by side again. Fewer heads of keys than of queries
are shared by neighbours (Ainslie et al. 2023). For packed projections see `attention`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.flags import dropped, flags_in
from crosscheck.explain.hidden import hidden_in
from crosscheck.explain.masks import another_number
from crosscheck.explain.registry import register
from crosscheck.explain.rotary import Rotary

__all__ = [
    "POLARITIES",
    "Attention",
    "at_hand",
    "attends",
    "beginning",
    "cut",
    "head_counts",
    "is_near",
    "is_possible",
    "softmax",
    "variants",
]

LAYOUTS = ("flat", "dim-major", "heads first", "heads second")
SHARED = {"neighbours": "repeat_interleave", "around": "tile"}
POLARITIES = ("drops", "keeps")
CAPS = (50.0, 30.0, 20.0, 10.0, 5.0)
MOST_VALUES = 6  # at hand, the latest; and of those that layers made, the ones tried as q, k, v
MOST_MADE = 4
NEAR = 16  # positions that a first look takes


@dataclass(frozen=True)
class Attention:
    """How scores, and what is made of them, come about.

    Attributes:
        q, k, v: names of the values; ``v`` and ``weights`` are empty where scores are the end.
        heads: of the queries.
        layout: of all three: (B, T, H·D) ``"flat"`` or ``"dim-major"`` (D outermost), (B, H, T, D)
            ``"heads first"``, (B, T, H, D) ``"heads second"``.
        scale: what products are multiplied by: a key of `_scales`.
        cap: soft cap; 0: none.
        shared: how fewer heads of keys are spread over the queries'.
        mask: ``"reference"``: the scores' own; ``"drops"``, ``"keeps"``: what flags among the
            inputs do where they are True; else a key of `_MASKS`.
        unread: which of several flags is not read; -1: all are.
        blank: what is made of a query that sees nothing.
        turned: how queries and keys are, by their positions (see `turned`).
        added: to masked scores; None: they hold the reference's number.
        axis: of the softmax.
        merged: how heads are put side by side: as `layout`; ``"unmoved"``: reshaped as they are.
    """

    q: str
    k: str
    heads: int
    layout: str
    v: str = ""
    scale: str = "1/√(head size)"
    cap: float = 0.0
    shared: str = "neighbours"
    mask: str = "reference"
    added: float | None = None
    merged: str = "flat"
    axis: int = -1
    blank: float = math.nan
    unread: int = -1
    turned: tuple[Rotary | None, Rotary | None] = (None, None)

    def scores(self, e: Evidence) -> np.ndarray:
        """(B, H, T, S), the reference's own numbers where its scores are masked."""
        q, k = self.multiplied(e)
        s = q @ k.swapaxes(-1, -2) * _scales(q.shape[-1], self.heads)[self.scale]
        s = self.cap * np.tanh(s / self.cap) if self.cap else s
        if self.mask == "reference":
            other = e.reference if self.added is None else s + self.added
            return np.where(hidden_in(e.reference), other, s) if not self.v else s
        if self.mask == "inverted":
            return np.asarray(np.where(hidden_in(e.reference), s, np.min(e.reference)))
        fill = np.min(e.reference) if not self.v else -np.inf
        if self.mask in POLARITIES:
            drops = self.mask == "drops"
            return np.where(dropped(e, s.shape, true_drops=drops, unread=self.unread), fill, s)
        return np.where(_visible(self.mask, s.shape[-2:]), s, fill)

    def multiplied(
        self, e: Evidence, examples: int | None = None, length: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Queries and keys, (B, H, T, D) each; of the first examples and positions (None: all)."""
        q = cut(e.nearby[self.q][:examples], self.heads, self.layout)[:, :, :length]
        k = self._spread(e.nearby[self.k][:examples], q.shape[-1], length)
        ours, theirs = self.turned
        return (q if ours is None else ours.turn(q)), (k if theirs is None else theirs.turn(k))

    def __call__(self, e: Evidence) -> np.ndarray:
        """The scores, or with ``v`` the weighted values, as the value at the site has them."""
        if not self.v:
            return self.scores(e)
        scores = self.scores(e)
        weights = softmax(scores, self.axis)
        if self.mask in POLARITIES:
            weights = np.where((scores == -np.inf).all(-1, keepdims=True), self.blank, weights)
        v = self._spread(e.nearby[self.v], e.nearby[self.q].size // self._rows(e))
        return join(weights @ v, self.merged, e.reference.shape)

    def _rows(self, e: Evidence) -> int:
        """B · T · H of the queries."""
        q = cut(e.nearby[self.q], self.heads, self.layout)
        return math.prod(q.shape[:3])

    def _spread(self, value: np.ndarray, size: int, length: int | None = None) -> np.ndarray:
        heads = self.heads
        if self.layout in ("flat", "dim-major"):
            heads = value.shape[-1] // size
        value = cut(value, heads, self.layout)[:, :, :length]
        times = self.heads // value.shape[1]
        if times == 1:
            return value
        if self.shared == "neighbours":
            return np.repeat(value, times, axis=1)
        return np.tile(value, (1, times, 1, 1))


def cut(value: np.ndarray, heads: int, layout: str) -> np.ndarray:
    """(B, H, T, D) of a value in one of `LAYOUTS`."""
    if layout == "heads first":
        return value
    if layout == "heads second":
        return value.swapaxes(1, 2)
    b, t, width = value.shape
    if layout == "flat":
        return value.reshape(b, t, heads, width // heads).swapaxes(1, 2)
    return value.reshape(b, t, width // heads, heads).transpose(0, 3, 1, 2)


def join(value: np.ndarray, merged: str, shape: tuple[int, ...]) -> np.ndarray:
    """Heads (B, H, T, D) put together into ``shape``."""
    if merged == "flat" and value.shape != shape:
        value = value.swapaxes(1, 2)
    if merged == "dim-major":
        value = value.transpose(0, 2, 3, 1)
    return value.reshape(shape)


def softmax(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """Along one axis."""
    e = np.exp(scores - scores.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True))


def _visible(mask: str, shape: tuple[int, int]) -> np.ndarray:
    ones = np.ones(shape, dtype=bool)
    offset = shape[1] - shape[0]
    return {
        "none": ones,
        "causal": np.tril(ones, offset),
        "anticausal": np.triu(ones, offset),
        "next": np.tril(ones, offset + 1),
        "self": np.tril(ones, offset - 1),
    }[mask]


_MASKS = {
    "none": "every position sees all others",
    "causal": "a position sees itself and the past alone",
    "anticausal": "the mask is turned around: the past is hidden, not the future",
    "next": "the mask lets a position see its successor",
    "self": "the mask hides a position from itself",
    "inverted": "the mask is inverted: it hides what it should leave",
}


def _scales(size: int, heads: int) -> dict[str, float]:
    return {
        "1/√(head size)": 1.0 / math.sqrt(size),
        "1 (no scale)": 1.0,
        "1/(head size)": 1.0 / size,
        "1/√(model width)": 1.0 / math.sqrt(size * heads),
        "√(head size)": math.sqrt(size),
    }


@register("forward")
def separate_heads(e: Evidence) -> Iterator[Proposal]:
    """Scores or weighted values with heads, scale, cap, mask or layout otherwise."""
    ours = attends(e)
    if ours is not None:
        yield from variants(e, ours)


def variants(e: Evidence, ours: Attention) -> Iterator[Proposal]:
    """Everything that attention may do otherwise, where the reference does ``ours``."""
    size = cut(e.nearby[ours.q], ours.heads, ours.layout).shape[-1]
    shared = "around" if ours.shared == "neighbours" else "neighbours"
    yield Proposal(
        "head_sharing",
        f"heads of keys are spread over the queries' as by {SHARED[shared]}, not "
        f"{SHARED[ours.shared]}",
        replace(ours, shared=shared),
    )
    for scale in _scales(size, ours.heads):
        if scale != ours.scale:
            text = f"scores are scaled by {scale}; in the reference by {ours.scale}"
            yield Proposal("attention_scale", text, replace(ours, scale=scale))
    if ours.v:
        text = "softmax over the queries instead of the keys"
        yield Proposal("softmax_axis", text, replace(ours, axis=-2))
    yield from _masks(e, ours)
    yield from _caps(e, ours)
    for layout in ("flat", "dim-major"):
        if ours.layout in ("flat", "dim-major") and layout != ours.layout:
            text = f"heads are cut out of the width {_CUT[layout]}, not {_CUT[ours.layout]}"
            yield Proposal("head_layout", text, replace(ours, layout=layout))
    for merged in ("flat", "dim-major", "unmoved"):
        if ours.v and merged != ours.merged:
            text = f"heads are put together {_JOINED[merged]}, not {_JOINED[ours.merged]}"
            yield Proposal("head_merge", text, replace(ours, merged=merged))


_CUT = {"flat": "one after the other", "dim-major": "in turn"}
_JOINED = {
    "flat": "one after the other",
    "dim-major": "in turn",
    "unmoved": "by a reshape without moving them back",
}


def _masks(e: Evidence, ours: Attention) -> Iterator[Proposal]:
    if not ours.v and not hidden_in(e.reference).any():
        return
    if ours.mask in POLARITIES:
        other = "keeps" if ours.mask == "drops" else "drops"
        text = "the mask is read the other way round: True "
        text += f"{other} what it {ours.mask} in the reference"
        for blank in (math.nan, 0.0):
            yield Proposal("mask_polarity", text, replace(ours, mask=other, blank=blank))
        yield Proposal("attention_mask", "the mask is not applied", replace(ours, mask="none"))
        several = flags_in(e)
        for i, flags in enumerate(several if len(several) > 1 else ()):
            text = f"of {len(several)} masks, that of shape {flags.shape} is not applied"
            yield Proposal("attention_mask", text, replace(ours, unread=i))
        return
    for mask, text in _MASKS.items():
        if mask != ours.mask and not (ours.v and mask == "inverted"):
            yield Proposal("attention_mask", text, replace(ours, mask=mask))
    if not ours.v:
        yield from another_number(e, lambda added: replace(ours, added=added))


def _caps(e: Evidence, ours: Attention) -> Iterator[Proposal]:
    if ours.cap:
        text = f"the soft cap of {ours.cap:g} is missing"
        yield Proposal("soft_cap", text, replace(ours, cap=0.0))
        return
    if ours.v:
        return
    for cap in CAPS:
        yield Proposal("soft_cap", f"a soft cap of {cap:g} is applied", replace(ours, cap=cap))


def attends(e: Evidence) -> Attention | None:
    """How the reference attends; None where it does not."""
    names, made = at_hand(e)
    if e.reference.ndim == 4:
        heads = e.reference.shape[1]
        for q, k in itertools.permutations(names, 2):
            found = _fitting(e, Attention(q, k, heads, "flat"), CAPS)
            if found is not None:
                return found
    for q, k, v in itertools.permutations(made, 3):
        for heads, mask in itertools.product(head_counts(e, e.nearby[q]), ("none", "causal")):
            found = _fitting(e, Attention(q, k, heads, "flat", v, mask=mask), ())
            if found is not None:
                return found
    return None


def at_hand(e: Evidence) -> tuple[list[str], list[str]]:
    """Names of values that may be queries, keys and values; and those of them that layers made."""
    if e.reference.ndim not in (3, 4):
        return [], []
    names = [name for name, value in e.nearby.items() if value.ndim in (3, 4)][-MOST_VALUES:]
    return names, [name for name in names if not name.endswith("(input)")][-MOST_MADE:]


def head_counts(e: Evidence, q: np.ndarray) -> list[int]:
    if q.ndim == 4:
        return [q.shape[1]] if e.reference.size == q.size else []
    if q.shape != e.reference.shape:
        return []
    return [h for h in range(1, 17) if q.shape[-1] % h == 0]


def _fitting(e: Evidence, one: Attention, caps: tuple[float, ...]) -> Attention | None:
    """What reproduces the reference, of all layouts, scales and soft caps."""
    for layout in LAYOUTS:
        one = replace(one, layout=layout)
        if not is_possible(e, one):
            continue
        size = cut(e.nearby[one.q], one.heads, layout).shape[-1]
        for scale, cap in itertools.product(_scales(size, one.heads), (0.0, *caps)):
            made = replace(one, scale=scale, cap=cap)
            if is_near(e, made) and e.fits_reference(made(e)):
                return made
    return None


def is_possible(e: Evidence, one: Attention) -> bool:
    """Whether the shapes allow it, without an attempt."""
    values = [e.nearby[name] for name in (one.q, one.k, one.v) if name]
    wide = one.layout in ("flat", "dim-major")
    if any(v.ndim != (3 if wide else 4) for v in values):
        return False
    q, k = values[0], values[1]
    if wide:
        if q.shape[-1] % one.heads:
            return False
        size = q.shape[-1] // one.heads
        fits = k.shape[-1] % size == 0 and one.heads % (k.shape[-1] // size) == 0
        lengths = (q.shape[1], k.shape[1])
    else:
        axis = 1 if one.layout == "heads first" else 2
        fits = q.shape[-1] == k.shape[-1] and q.shape[axis] == one.heads
        fits = fits and k.shape[axis] > 0 and one.heads % k.shape[axis] == 0
        lengths = (q.shape[3 - axis], k.shape[3 - axis])
    if one.v:
        return fits and values[2].shape == k.shape
    return fits and e.reference.shape == (q.shape[0], one.heads, *lengths)


def is_near(e: Evidence, made: Attention) -> bool:
    """A first look that spares most of the work: one query of the first example, which sees all
    that is before it, or all others where that is the last."""
    length = beginning(e, made)
    q, k = made.multiplied(e, 1, length)
    q = q[:, :, -1:]
    s = (q @ k.swapaxes(-1, -2)) * _scales(q.shape[-1], made.heads)[made.scale]
    s = made.cap * np.tanh(s / made.cap) if made.cap else s
    if not made.v:
        right = e.reference[:1, :, -1:]
        seen = ~hidden_in(e.reference)[:1, :, -1:]
        return bool(np.allclose(s[seen], right[seen], rtol=1e-3, atol=1e-3))
    heads = softmax(s) @ made._spread(e.nearby[made.v][:1], q.shape[-1], length)
    at = -1 if length is None else length - 1
    right = e.reference[0].reshape(heads.shape[1], -1, heads.shape[-1])[:, at]
    if e.reference.ndim == 3:
        right = e.reference[0, at].reshape(heads.shape[1], -1)
    return bool(np.allclose(heads[0, :, 0], right, rtol=1e-3, atol=1e-3))


def beginning(e: Evidence, made: Attention) -> int | None:
    """So many positions tell as much as all do, where no later one is seen."""
    axis = 2 if made.layout == "heads first" else 1
    of_queries, of_keys = (e.nearby[name].shape[axis] for name in (made.q, made.k))
    if not made.v or made.mask != "causal" or of_queries != of_keys:
        return None
    return min(NEAR, int(of_queries))
