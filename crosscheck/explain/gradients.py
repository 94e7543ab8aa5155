"""Hypotheses on parameter gradients and on buffers after a step."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal, Use
from crosscheck.explain.numbers import slope, tidy
from crosscheck.explain.registry import register

__all__: list[str] = []


@register("parameter_gradient")
def flipped_kernel(e: Evidence) -> Iterator[Proposal]:
    """The gradient of a kernel, flipped in its inner axes."""
    axes = e.parameter.axes if e.parameter is not None else None
    inner = tuple(i for i, a in enumerate(axes or ()) if a in ("d", "h", "w"))
    if inner:
        yield Proposal(
            "flipped",
            "the kernel's gradient is flipped in its inner axes",
            lambda e: np.flip(e.reference, inner),
        )


@register("parameter_gradient")
def frozen_rows(e: Evidence) -> Iterator[Proposal]:
    """One row of a table, or a few, that a lookup sends nothing to (padding_idx)."""
    lookups = [i for i, use in enumerate(e.uses) if use.kind == "embedding"]
    if e.reference.ndim != 2 or not lookups:
        return
    apart = np.abs(e.candidate - e.reference).max(axis=1)
    rows = np.flatnonzero(apart > 1e-3 * np.abs(e.reference).max())
    if not 0 < len(rows) <= 3:
        return
    which = f"row {rows[0]}" if len(rows) == 1 else f"rows {', '.join(map(str, rows))}"
    for sign, text in (
        (-1.0, "sends no gradient, as with a padding index"),
        (1.0, "sends a gradient, which the reference's padding index stops"),
    ):
        yield Proposal(
            "frozen_row",
            f"looking up {which} {text}",
            functools.partial(_with_rows, lookups=lookups, rows=rows, sign=sign),
            constants=len(rows),
        )


def _with_rows(e: Evidence, *, lookups: list[int], rows: np.ndarray, sign: float) -> np.ndarray:
    changed = e.reference.copy()
    changed[rows] += sign * _shares(e, lookups)[rows]
    return changed


@register("parameter_gradient")
def repeated_rows(e: Evidence) -> Iterator[Proposal]:
    """Of a row of a table that is looked up several times, the last time alone counts."""
    lookups = [i for i, use in enumerate(e.uses) if use.kind == "embedding"]
    for lookup in lookups if e.reference.ndim == 2 else ():
        yield Proposal(
            "repeated_row",
            "a row that is looked up several times gets the gradient of the last time alone "
            "(`dW[ids] += dy` adds one for each row, `np.add.at(dW, ids, dy)` all)",
            functools.partial(_last_alone, lookup=lookup),
        )


def _last_alone(e: Evidence, *, lookup: int) -> np.ndarray:
    use = e.uses[lookup]
    if use.given is None:
        raise ValueError("no cotangent")
    last = np.zeros(e.reference.shape)
    last[use.inputs[0].reshape(-1)] = use.given.reshape(-1, use.given.shape[-1])
    changed = e.reference + last - _share(use, e.reference.shape)
    return np.where(e.reference.any(axis=1, keepdims=True), changed, 0.0)  # a padding index


@register("parameter_gradient")
def untied(e: Evidence) -> Iterator[Proposal]:
    """A tied parameter of which one use sends no gradient."""
    if len(e.uses) < 2 or e.reference.ndim != 2:
        return
    if not e.fits_reference(_shares(e, range(len(e.uses)))):
        return
    for left_out, use in enumerate(e.uses):
        rest = [i for i in range(len(e.uses)) if i != left_out]
        yield Proposal(
            "untied",
            f"what the {use.kind} layer that shares the parameter sends is missing",
            functools.partial(_shares, which=rest),
        )


def _shares(e: Evidence, which: range | list[int]) -> np.ndarray:
    """The sum of what some of the uses of a matrix send to it."""
    total = np.zeros(e.reference.shape)
    for i in which:
        share = _share(e.uses[i], e.reference.shape)
        total += share
    return total


def _share(use: Use, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient of one embedding or dense layer with respect to its matrix."""
    (x,), dy = use.inputs, use.given
    if dy is None:
        raise ValueError("no cotangent")
    flat = dy.reshape(-1, dy.shape[-1])
    if x.dtype.kind in "iu":
        rows = np.zeros(shape)
        np.add.at(rows, x.reshape(-1), flat)
        return rows
    into = x.reshape(-1, x.shape[-1])
    product = np.asarray(flat.T @ into)  # (out, in)
    return product if product.shape == shape else product.T


# -- buffers ---------------------------------------------------------------------------------------


@register("buffer")
def not_updated(e: Evidence) -> Iterator[Proposal]:
    """Statistics that training leaves as they were."""
    yield Proposal("not_updated", "the buffer is not updated", _before)


@register("buffer")
def momentum(e: Evidence) -> Iterator[Proposal]:
    """Another share of the new statistics; often the share of the old ones."""
    moved = e.reference - _before(e)
    k = slope(e.candidate - _before(e), moved)
    if not math.isfinite(k) or k == 0.0:
        return
    ours = _momentum(e)
    if ours is not None:
        share, text = tidy(k * ours, lambda m: e.fits_candidate(_moved(e, m / ours)))
        k, what = share / ours, f"momentum {text} instead of {tidy(ours, lambda m: True)[1]}"
        if math.isclose(share, 1.0 - ours, rel_tol=1e-3):
            what += ": the share of the old value is taken for that of the new one"
    else:
        k, text = tidy(k, lambda k: e.fits_candidate(_moved(e, k)))
        what = f"the update is {text} times the reference's"
    yield Proposal("momentum", what, lambda e: _moved(e, k), constants=1)


def _before(e: Evidence) -> np.ndarray:
    assert e.before is not None
    return e.before


def _moved(e: Evidence, k: float) -> np.ndarray:
    return np.asarray(_before(e) + k * (e.reference - _before(e)))


def _batch(e: Evidence) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Mean, biased variance and count of each channel of the layer's input."""
    x, before = e.x, _before(e)
    if x is None or before.ndim != 1:
        return None
    channel = 1 if x.shape[1] == before.size else x.ndim - 1
    if x.shape[channel] != before.size:
        return None
    rest = tuple(a for a in range(x.ndim) if a != channel)
    return x.mean(rest), x.var(rest), x.size // before.size


def _momentum(e: Evidence) -> float | None:
    """The share of the batch's statistics in the reference's update."""
    batch, role = _batch(e), e.parameter.role if e.parameter is not None else ""
    if batch is None or role not in ("mean", "variance"):
        return None
    mean, variance, n = batch
    targets = [mean] if role == "mean" else [variance * n / max(n - 1, 1), variance]
    for target in targets:
        step = target - _before(e)
        share = slope(e.reference - _before(e), step)
        if e.fits_reference(_before(e) + share * step):
            accept = functools.partial(_is_share, e, step)
            return tidy(share, accept)[0]
    return None


def _is_share(e: Evidence, step: np.ndarray, share: float) -> bool:
    return e.fits_reference(_before(e) + share * step)


@register("buffer")
def biased_variance(e: Evidence) -> Iterator[Proposal]:
    """The batch's variance divided by n for n − 1, or the reverse."""
    share = _momentum(e)
    if share is None or e.parameter is None or e.parameter.role != "variance":
        return
    for ours, theirs, text in (
        (True, False, "the running variance is biased: divided by n for n - 1"),
        (False, True, "the running variance is unbiased: divided by n - 1 for n"),
    ):
        if e.fits_reference(_followed(e, share, ours)):
            yield Proposal("biased_variance", text, lambda e, u=theirs: _followed(e, share, u))


def _followed(e: Evidence, share: float, unbiased: bool) -> np.ndarray:
    batch = _batch(e)
    assert batch is not None
    _, variance, n = batch
    target = variance * n / (n - 1) if unbiased else variance
    return np.asarray(_before(e) + share * (target - _before(e)))
