"""Hypotheses on pooling; the geometry is found as in `windows`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.registry import register
from crosscheck.explain.windows import MOST_WORK, Window, geometries, geometry, scatter, taps

__all__ = ["Pool", "reference_pool"]

SIZES = (2, 3, 4, 5, 7)


@dataclass(frozen=True)
class Pool:
    """Maximum or mean over windows.

    Attributes:
        border: what a maximum takes the border for.
        counted: of a mean, which parts of the border count in the divisor, for each inner axis:
            "", "before", "after", or both, "before after".
        count: of windows along each inner axis, where it is not the reference's.
        corners: what counts of one axis' border counts along all of the others' as well.
    """

    windows: tuple[Window, ...]
    first: bool
    mean: bool = False
    border: float = -np.inf
    counted: tuple[str, ...] = ("", "", "")
    corners: bool = False
    count: tuple[int, ...] = ()

    def __call__(self, e: Evidence) -> np.ndarray:
        """The pooled input, in its layout."""
        assert e.x is not None
        x = e.x if self.first else np.moveaxis(e.x, -1, 1)
        shape = e.reference.shape if e.output is None else e.output.shape
        out = self.count or (shape[2:] if self.first else shape[1:-1])
        inner = tuple(range(2 + len(out), 2 + 2 * len(out)))
        if self.mean:
            seen = taps(x, self.windows, out, mode="constant", value=0.0)
            y = seen.sum(inner) / self.divisor(x, out)
        else:
            seen = taps(x, self.windows, out, mode="constant", value=self.border)
            y = seen.max(inner)
        return np.asarray(y if self.first else np.moveaxis(y, 1, -1))

    def divisor(self, x: np.ndarray, out: tuple[int, ...]) -> np.ndarray:
        """How many elements each window counts."""
        if self.corners:
            return self._stretched(x, out)
        total = np.ones((1, 1, *(1 for _ in out)))
        for axis, (w, n, o) in enumerate(zip(self.windows, x.shape[2:], out, strict=True)):
            starts = np.arange(o) * w.stride - w.before
            ends = starts + w.size
            low = -w.before if "before" in self.counted[axis] else 0
            high = n + w.after(n, o) if "after" in self.counted[axis] else n
            count = np.minimum(ends, high) - np.maximum(starts, low)
            shape = [1] * total.ndim
            shape[2 + axis] = o
            total = total * count.reshape(shape)
        return total

    def _stretched(self, x: np.ndarray, out: tuple[int, ...]) -> np.ndarray:
        lengths = x.shape[2:]
        counts = np.zeros(
            [
                n + w.before + w.after(n, o)
                for w, n, o in zip(self.windows, lengths, out, strict=True)
            ]
        )
        counts[
            tuple(slice(w.before, w.before + n) for w, n in zip(self.windows, lengths, strict=True))
        ] = 1.0
        for axis, (w, n) in enumerate(zip(self.windows, lengths, strict=True)):
            at = np.moveaxis(counts, axis, 0)
            at[: w.before if "before" in self.counted[axis] else 0] = 1.0
            at[w.before + n if "after" in self.counted[axis] else len(at) :] = 1.0
        inner = tuple(replace(w, before=0) for w in self.windows)
        seen = taps(counts[None, None], inner, out, mode="constant", value=0.0)
        return np.asarray(seen.sum(tuple(range(2 + len(out), 2 + 2 * len(out)))))


def reference_pool(e: Evidence, value: np.ndarray, near: float) -> Pool | None:
    """The pooling that makes ``value`` of the layer's input, up to a relative error."""
    pools = _pools(e, value)
    for pool in pools:
        if np.linalg.norm(pool(e) - value) <= near * np.linalg.norm(value):
            return pool
    return None


def _pools(e: Evidence, value: np.ndarray) -> list[Pool]:
    x = e.x
    if x is None or e.parameters or x.ndim != value.ndim or x.ndim < 3 or x.shape == value.shape:
        return []
    first = x.shape[:2] == value.shape[:2]
    if not first and (x.shape[0], x.shape[-1]) != (value.shape[0], value.shape[-1]):
        return []
    lengths, out = (s[2:] if first else s[1:-1] for s in (x.shape, value.shape))
    found = []
    for size in SIZES:
        windows = [
            ws
            for ws in geometries((size,) * len(out), lengths, out)
            if ws[0].dilation == 1
            and ws[0].stride <= size
            and len({w.before for w in ws}) == 1
            and ws[0].before <= size // 2
        ]
        for ws in windows:
            found.append(Pool(ws, first))
            found.append(Pool(ws, first, border=0.0))
            found += [Pool(ws, first, mean=True, counted=counted) for counted in _COUNTED]
            found += [
                Pool(ws, first, mean=True, counted=counted, corners=True) for counted in _LAST
            ]
    return found if value.size * max(SIZES) ** 2 * len(found) <= MOST_WORK else []


@register("forward")
def pooling(e: Evidence) -> Iterator[Proposal]:
    """A border that counts or holds zeros, another place of the windows, mean for maximum."""
    pools = _pools(e, e.reference)
    ours = next((p for p in pools if e.fits_reference(p(e))), None)
    if ours is None:
        return
    if e.candidate.shape != e.reference.shape:
        yield from _other_count(e, ours)
        return
    for pool in pools:
        if pool.windows == ours.windows and pool != ours:
            yield Proposal("pool_border", _difference(pool, ours), pool)
        elif replace(pool, windows=ours.windows) == ours:
            size = "" if pool.windows[0].size == ours.windows[0].size else "another size, "
            text = f"{size}{geometry(pool.windows)} instead of {geometry(ours.windows)}"
            yield Proposal("pool_geometry", text, pool)


def _other_count(e: Evidence, ours: Pool) -> Iterator[Proposal]:
    """More windows than fit, or fewer: what a ceil mode decides."""
    theirs, right = (
        s[2:] if ours.first else s[1:-1] for s in (e.candidate.shape, e.reference.shape)
    )
    more = sum(theirs) > sum(right)
    text = (
        "a window that hangs over the end is kept (ceil_mode)"
        if more
        else "a window that hangs over the end is left out (no ceil_mode)"
    )
    yield Proposal("pool_windows", text, replace(ours, count=theirs))


def _difference(pool: Pool, ours: Pool) -> str:
    if pool.mean != ours.mean:
        return "takes the mean for the maximum" if pool.mean else "takes the maximum for the mean"
    if not pool.mean:
        return (
            "the border holds 0 for -inf" if pool.border == 0.0 else "the border holds -inf for 0"
        )
    corners = ", corners included" if pool.corners else ""
    return (
        f"the mean counts {_COUNTED[pool.counted]}{corners}; the reference counts "
        f"{_COUNTED[ours.counted]}"
    )


_COUNTED: dict[tuple[str, ...], str] = {
    ("", "", ""): "no border",
    ("before after",) * 3: "the border (count_include_pad)",
    ("before",) * 3: "the border in front, not the one behind",
    ("after",) * 3: "the border behind, not the one in front",
    ("after", "", ""): "the border behind the first inner axis alone",
    ("", "after", "after"): "the border behind the last inner axis alone",
}


_LAST = (("after", "", ""), ("", "after", "after"))


@register("backward")
def pooling_backward(e: Evidence) -> Iterator[Proposal]:
    """Tied maxima, and means that are divided by another count on the way back."""
    if e.kind != "input_cotangent" or e.output is None or e.given is None:
        return
    pool = reference_pool(e, e.output, 1e-6)
    if pool is None:
        return
    if pool.mean:
        for counted in _COUNTED:
            if counted != pool.counted:
                text = f"divides by windows that count {_COUNTED[counted]}, unlike forward"
                yield Proposal(
                    "pool_divisor",
                    text,
                    functools.partial(_mean_backward, pool=replace(pool, counted=counted)),
                )
        return
    for who, text in (
        ("shared", "tied maxima share the gradient"),
        ("all", "every one of tied maxima receives the gradient"),
        ("last", "the last of tied maxima receives the gradient"),
        ("first", "the first of tied maxima receives the gradient"),
    ):
        yield Proposal("pool_ties", text, functools.partial(_max_backward, pool=pool, who=who))


def _mean_backward(e: Evidence, *, pool: Pool) -> np.ndarray:
    assert e.x is not None and e.given is not None
    x, dy = (a if pool.first else np.moveaxis(a, -1, 1) for a in (e.x, e.given))
    out = dy.shape[2:]
    sizes = tuple(w.size for w in pool.windows)
    share = dy / pool.divisor(x, out)
    shares = np.broadcast_to(share.reshape(*share.shape, *(1 for _ in sizes)), (*dy.shape, *sizes))
    dx = scatter(shares, x.shape, pool.windows)
    return dx if pool.first else np.moveaxis(dx, 1, -1)


def _max_backward(e: Evidence, *, pool: Pool, who: str) -> np.ndarray:
    assert e.x is not None and e.given is not None
    x, dy = (a if pool.first else np.moveaxis(a, -1, 1) for a in (e.x, e.given))
    seen = taps(x, pool.windows, dy.shape[2:], mode="constant", value=pool.border)
    flat = seen.reshape(*dy.shape, -1)
    tied = flat == flat.max(-1, keepdims=True)
    if who == "shared":
        share = tied / tied.sum(-1, keepdims=True)
    elif who == "all":
        share = tied.astype(np.float64)
    else:
        index = (
            tied.argmax(-1) if who == "first" else tied.shape[-1] - 1 - tied[..., ::-1].argmax(-1)
        )
        share = np.arange(tied.shape[-1]) == index[..., None]
    dx = scatter((share * dy[..., None]).reshape(seen.shape), x.shape, pool.windows)
    return dx if pool.first else np.moveaxis(dx, 1, -1)
