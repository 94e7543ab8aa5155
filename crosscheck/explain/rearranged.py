"""Hypotheses on layers that only move numbers: pixel shuffles, patch merging, flattening.

The layer's value is its input cut into more axes, transposed and put together again; which way is
found by reproducing the reference, and the candidate's is one of the others.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.registry import register
from crosscheck.explain.sampling import SHARE

__all__ = ["is_order"]

MOST_SPLITS = 512
LINES = 32  # looked at before a whole value is rearranged
MOST_PARTS = 16  # of an axis that was read in turn


def _x(e: Evidence) -> np.ndarray:
    assert e.x is not None
    return e.x


def _moves(e: Evidence) -> bool:
    return e.x is not None and not e.parameters and e.x.size == e.reference.size


# -- pixel shuffle: (B, C·r², H, W) -> (B, C, H·r, W·r) and back -----------------------------------

_SHUFFLES = {
    "CRD": "the channel outermost (column-row-depth, CRD)",
    "DCR": "the channel innermost (depth-column-row, DCR)",
    "RC": "rows and columns of a block exchanged",
}
_SPLIT = {"CRD": (0, 1, 2), "DCR": (1, 2, 0), "RC": (0, 2, 1)}
"""Where, in the packed channels, (channel, row, column) stand: packed axes in this order."""


@register("forward")
def pixel_shuffle(e: Evidence) -> Iterator[Proposal]:
    """The channels of a pixel (un)shuffle in another order."""
    if not _moves(e) or e.reference.ndim != 4 or _x(e).shape == e.reference.shape:
        return
    for first in (True, False):
        a, b = (v if first else np.moveaxis(v, -1, 1) for v in (_x(e), e.reference))
        up = b.shape[2] > a.shape[2]
        r = (b.shape[2] // a.shape[2]) if up else (a.shape[2] // max(b.shape[2], 1))
        wide, narrow = (a, b) if up else (b, a)
        if r < 2 or wide.shape[1] != narrow.shape[1] * r * r:
            continue
        ours = next(
            (o for o in _SHUFFLES if np.array_equal(_shuffled(e, o, r, up, first), e.reference)),
            None,
        )
        for order in _SHUFFLES if ours else ():
            if order != ours:
                yield Proposal(
                    "pixel_shuffle",
                    f"packed channels have {_SHUFFLES[order]}; the reference: "
                    f"{_SHUFFLES[ours or '']}",
                    functools.partial(_shuffled, order=order, r=r, up=up, first=first),
                )


def _shuffled(e: Evidence, order: str, r: int, up: bool, first: bool) -> np.ndarray:
    x = _x(e) if first else np.moveaxis(_x(e), -1, 1)
    b, c, h, w = x.shape
    split = _SPLIT[order]
    if up:
        lengths = (c // (r * r), r, r)
        packed = x.reshape(b, *(lengths[i] for i in split), h, w)
        channel, row, column = (1 + split.index(i) for i in range(3))
        y = packed.transpose(0, channel, 4, row, 5, column).reshape(b, -1, h * r, w * r)
    else:
        cut = x.reshape(b, c, h // r, r, w // r, r)
        places = (1, 3, 5)  # channel, row, column
        y = cut.transpose(0, *(places[i] for i in split), 2, 4).reshape(b, -1, h // r, w // r)
    return y if first else np.moveaxis(y, 1, -1)


# -- patch merging: 2 x 2 neighbours become one, four times as wide --------------------------------

_QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # (row, column)


@register("forward")
def patch_merging(e: Evidence) -> Iterator[Proposal]:
    """The quarters in another order; the pad on the wrong side or along the wrong axis."""
    x, y = e.x, e.reference
    if x is None or x.ndim != 4 or y.shape[-1] != 4 * x.shape[-1] or y.shape[0] != x.shape[0]:
        return
    ours = next((o for o in itertools.permutations(range(4)) if _fits(e, o)), None)
    if ours is None:
        return
    for order in itertools.permutations(range(4)):
        if order != ours:
            yield Proposal(
                "patch_order",
                f"the quarters stand in the order {_named(order)} for {_named(ours)}",
                functools.partial(_merged, order=order),
            )
    yield Proposal(
        "patch_pad",
        "the odd row or column of zeros is put in front, not behind",
        functools.partial(_merged, order=ours, front=True),
    )
    yield Proposal(
        "patch_pad",
        "height is padded where width is odd, and width where height is",
        functools.partial(_merged, order=ours, exchanged=True),
    )
    yield Proposal(
        "patch_pad",
        "an odd row or column is dropped, not filled up with zeros",
        functools.partial(_merged, order=ours, dropped=True),
    )


def _fits(e: Evidence, order: tuple[int, ...]) -> bool:
    try:
        return np.array_equal(_merged(e, order), e.reference)
    except ValueError:
        return False


def _named(order: tuple[int, ...]) -> str:
    return ", ".join(str(_QUARTERS[i]) for i in order)


def _merged(
    e: Evidence,
    order: tuple[int, ...],
    front: bool = False,
    exchanged: bool = False,
    dropped: bool = False,
) -> np.ndarray:
    x = _x(e)
    odd = [x.shape[1] % 2, x.shape[2] % 2]
    odd = odd[::-1] if exchanged else odd
    if dropped:
        x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    else:
        x = np.pad(x, ((0, 0), *(((o, 0) if front else (0, o)) for o in odd), (0, 0)))
    parts = [x[:, r::2, c::2] for r, c in (_QUARTERS[i] for i in order)]
    h, w = (min(p.shape[a] for p in parts) for a in (1, 2))
    y = np.concatenate([p[:, :h, :w] for p in parts], axis=-1)
    return y if y.shape == e.reference.shape else y.reshape(e.reference.shape)


# -- flattening ------------------------------------------------------------------------------------


@register("forward")
def flattened(e: Evidence) -> Iterator[Proposal]:
    """A reshape of the input with its axes in another order first."""
    if not _moves(e) or not 3 <= _x(e).ndim <= 5:
        return
    rest = range(1, _x(e).ndim)
    orders = [(0, *axes) for axes in itertools.permutations(rest)]
    ours = next((o for o in orders if np.array_equal(_reshaped(e, o), e.reference)), None)
    for order in orders if ours else ():
        if order != ours:
            yield Proposal(
                "flatten_order",
                f"axes {_axes(order)} are put together in this order, for {_axes(ours or ())}",
                functools.partial(_reshaped, order=order),
            )


def _axes(order: tuple[int, ...]) -> str:
    return ", ".join(map(str, order[1:]))


def _reshaped(e: Evidence, order: tuple[int, ...]) -> np.ndarray:
    return _x(e).transpose(order).reshape(e.reference.shape)


@register("forward")
def picked_step(e: Evidence) -> Iterator[Proposal]:
    """The first or the last step of a sequence, for each half of the features (directions)."""
    x = e.x
    if x is None or e.parameters or x.ndim != 3 or e.reference.shape != (x.shape[0], x.shape[2]):
        return
    choices = [(one, two) for one in (0, -1) for two in (0, -1)]
    ours = next((c for c in choices if np.array_equal(_picked(e, c), e.reference)), None)
    for steps in choices if ours is not None else ():
        if steps != ours:
            yield Proposal(
                "recurrent_state",
                f"the halves of the features are those of the {_step(steps)} step, "
                f"for the {_step(ours or steps)}",
                functools.partial(_picked, steps=steps),
            )


def _picked(e: Evidence, steps: tuple[int, int]) -> np.ndarray:
    half = _x(e).shape[2] // 2
    return np.concatenate([_x(e)[:, steps[0], :half], _x(e)[:, steps[1], half:]], axis=1)


def _step(steps: tuple[int, int]) -> str:
    one, two = ("first" if step == 0 else "last" for step in steps)
    return one if one == two else f"{one} and {two}"


@register("forward")
def interleaved(e: Evidence) -> Iterator[Proposal]:
    """One axis of any layer's value: packed parts read in turn for one after the other."""
    for axis, length in enumerate(e.reference.shape):
        for count in range(2, min(length // 2, MOST_PARTS) + 1) if axis else ():
            order = np.arange(length).reshape(count, -1).T if length % count == 0 else None
            if order is not None and is_order(e, axis, order.reshape(-1)):
                yield Proposal(
                    "interleaved",
                    f"axis {axis} is read as {count} x {length // count} with the two exchanged",
                    functools.partial(_in_order, axis=axis, order=order.reshape(-1)),
                )


@register("forward")
def exchanged_parts(e: Evidence) -> Iterator[Proposal]:
    """Two, three or four equal parts of an axis in another order: directions, gates, quarters."""
    for axis, count in itertools.product(range(1, e.reference.ndim), (2, 3, 4)):
        length = e.reference.shape[axis]
        if length % count or length == count or not length:
            continue
        for parts in itertools.permutations(range(count)):
            order = np.arange(length).reshape(count, -1)[list(parts)].reshape(-1)
            if parts in (tuple(range(count)), _HALVES_IN_FOUR):
                continue
            if is_order(e, axis, order):
                yield Proposal(
                    "exchanged_parts",
                    f"the {count} parts of axis {axis} stand in the order {parts}",
                    functools.partial(_in_order, axis=axis, order=order),
                )


@register("forward")
def exchanged_pair(e: Evidence) -> Iterator[Proposal]:
    """Two parts of any lengths, joined in the other order; one element more or less is `rolled`."""
    for axis in range(1, e.reference.ndim):
        length = e.reference.shape[axis]
        for first in range(2, length - 1) if length <= MOST_SPLITS else ():
            order = np.roll(np.arange(length), -first)
            if 2 * first != length and is_order(e, axis, order):
                yield Proposal(
                    "exchanged_parts",
                    f"the first {first} of {length} along axis {axis} stand behind the others",
                    functools.partial(_in_order, axis=axis, order=order),
                )


_HALVES_IN_FOUR = (2, 3, 0, 1)  # the two parts of an axis exchanged


def _in_order(e: Evidence, *, axis: int, order: np.ndarray) -> np.ndarray:
    return np.asarray(np.take(e.reference, order, axis=axis))


def is_order(e: Evidence, axis: int, order: np.ndarray) -> bool:
    """Whether an order of one axis takes most of the error away, at a few places of the others."""
    right, wrong = (_lines(value, axis) for value in (e.reference, e.candidate))
    with np.errstate(all="ignore"):
        rest = np.linalg.norm(right[order] - wrong)
        return not rest > SHARE * np.linalg.norm(right - wrong)


def _lines(value: np.ndarray, axis: int) -> np.ndarray:
    """A few lines along one axis, (length, lines), taken before anything is copied."""
    each = max(1, round(LINES ** (1.0 / max(value.ndim - 1, 1))))
    places = [slice(None, None, max(1, n // each)) for n in value.shape]
    places[axis] = slice(None)
    few = np.moveaxis(value[tuple(places)], axis, 0)
    return few.reshape(few.shape[0], -1)
