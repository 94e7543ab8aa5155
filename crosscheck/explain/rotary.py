"""Hypotheses on rotary position embeddings: pairs of features, turned by position times frequency.

Feature pairs (interleaved: 2i, 2i + 1; half-split: i, i + D/2) are turned by t · base^(−2i/D) at
position t (Su et al. 2021). Which axis counts positions, which features turn, and the base are
found by reproducing the reference.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.numbers import tidy
from crosscheck.explain.registry import register

__all__ = ["BASES", "Rotary", "ways"]

BASES = (1e4, 5e5, 1e6, 1e5, 1e3, 100.0, 10.0)


@dataclass(frozen=True)
class Rotary:
    """One way to turn.

    Attributes:
        time: the axis of positions; features run along the last.
        base: of the frequencies.
        pairs, angles: ``"half"`` or ``"interleaved"``: which features belong together, and how
            the table of angles is laid out. Only equal ones make a rotation.
        start: position of the first element.
        sign: −1 turns the other way.
        part: so many features turn, the rest stays.
        width: what D is in the frequencies.
    """

    time: int
    base: float = 1e4
    pairs: str = "half"
    angles: str = "half"
    start: float = 0.0
    sign: float = 1.0
    part: int = 0
    width: int = 0

    def __call__(self, e: Evidence) -> np.ndarray:
        """The input, turned."""
        return self.turn(_turning(e))

    def turn(self, x: np.ndarray) -> np.ndarray:
        """A value, turned."""
        size = self.part or x.shape[-1]
        frequency = self.base ** (-np.arange(0, size, 2) / (self.width or size))
        angle = self.sign * np.outer(self.start + np.arange(x.shape[self.time]), frequency)
        if self.angles == "half":
            table = np.concatenate([angle, angle], axis=1)
        else:
            table = np.repeat(angle, 2, axis=1)
        shape = [1] * x.ndim
        shape[self.time], shape[-1] = x.shape[self.time], size
        table = table.reshape(shape)
        turned, rest = x[..., :size], x[..., size:]
        y = turned * np.cos(table) + self._across(turned) * np.sin(table)
        return np.concatenate([y, rest], axis=-1)

    def _across(self, x: np.ndarray) -> np.ndarray:
        """(a, b) of every pair to (−b, a)."""
        if self.pairs == "half":
            a, b = np.split(x, 2, axis=-1)
            return np.concatenate([-b, a], axis=-1)
        across = np.empty_like(x)
        across[..., 0::2], across[..., 1::2] = -x[..., 1::2], x[..., 0::2]
        return across


def _turning(e: Evidence) -> np.ndarray:
    """The input of the value's shape; tables of angles may be given beside it."""
    return next(x for x in e.inputs if x.dtype.kind == "f" and x.shape == e.reference.shape)


@register("forward")
def rotary(e: Evidence) -> Iterator[Proposal]:
    """Another pairing, table, base, start or direction."""
    ours = _reference(e)
    if ours is None:
        return
    yield from ways(ours)
    for start in (1.0, -1.0, 2.0):
        text = f"positions are counted from {ours.start + start:g} instead of {ours.start:g}"
        yield Proposal("rotary_start", text, replace(ours, start=ours.start + start))
    yield Proposal("rotary_missing", "nothing is turned", lambda e: _turning(e))
    for time in range(e.reference.ndim - 1):
        if time != ours.time:
            text = f"positions are counted along axis {time}, not along axis {ours.time}"
            yield Proposal("rotary_axis", text, replace(ours, time=time))
    yield from _other_base(e, ours)


def ways(ours: Rotary) -> Iterator[Proposal]:
    """Other rotations at the same positions; a `Rotary` predicts each."""
    for pairs, angles in itertools.product(_TEXT, _TEXT):
        if (pairs, angles) != (ours.pairs, ours.angles):
            text = f"pairs are {_TEXT[pairs]} and angles laid out {_TEXT[angles]}; the reference "
            text += f"has pairs {_TEXT[ours.pairs]} and angles {_TEXT[ours.angles]}"
            yield Proposal("rotary_layout", text, replace(ours, pairs=pairs, angles=angles))
    text = "the rotation is in the other direction"
    yield Proposal("rotary_sign", text, replace(ours, sign=-ours.sign))
    if ours.part:
        text = f"all features are turned, not the first {ours.part} alone"
        yield Proposal("rotary_part", text, replace(ours, part=0))


@register("backward")
def rotary_backward(e: Evidence) -> Iterator[Proposal]:
    """The way back turns as forward does, or other pairs than forward."""
    if e.kind != "input_cotangent" or e.given is None:
        return
    ours = _reference(replace(e, inputs=(e.given,)))  # the VJP of a rotation is one, too
    if ours is None:
        return
    text = "the way back turns in the direction of forward, not against it"
    yield Proposal("rotary_sign", text, _Back(replace(ours, sign=-ours.sign)))
    other = "interleaved" if ours.pairs == "half" else "half"
    back = replace(ours, pairs=other, angles=other)
    text = f"the way back turns {_TEXT[other]} pairs, forward {_TEXT[ours.pairs]} ones"
    yield Proposal("rotary_layout", text, _Back(back))


@dataclass(frozen=True)
class _Back:
    """A rotation of the cotangent."""

    rotary: Rotary

    def __call__(self, e: Evidence) -> np.ndarray:
        assert e.given is not None
        return self.rotary(replace(e, inputs=(e.given,)))


_TEXT = {"half": "half-split", "interleaved": "interleaved"}


def _other_base(e: Evidence, ours: Rotary) -> Iterator[Proposal]:
    base = _solved(e.candidate, e, ours)
    if not math.isfinite(base) or base <= 1.0:
        return
    best = min((base, *BASES), key=lambda b: e.ratio(replace(ours, base=b)(e)))
    number, text = tidy(best, lambda b: e.fits_candidate(replace(ours, base=b)(e)))
    statement = f"base {text} instead of {ours.base:g}"
    yield Proposal("rotary_base", statement, replace(ours, base=number), constants=1)


def _solved(value: np.ndarray, e: Evidence, like: Rotary) -> float:
    """The base by the angle of the second pair at the second position."""
    x = _turning(e)
    at = [slice(None)] * x.ndim
    at[like.time] = slice(1, 2)
    size = like.part or x.shape[-1]
    one, two = (1, 1 + size // 2) if like.pairs == "half" else (2, 3)
    if size < 4 or x.shape[like.time] < 2:
        return math.nan
    before, after = (v[tuple(at)] for v in (x, value))
    a, b, c, d = before[..., one], before[..., two], after[..., one], after[..., two]
    angle = math.atan2(float(np.sum(a * d - b * c)), float(np.sum(a * c + b * d)))
    angle /= like.sign * (1.0 + like.start)
    return angle ** (-(like.width or size) / 2.0) if angle > 0 else math.nan


def _reference(e: Evidence) -> Rotary | None:
    """The rotation that the reference is; None if it is none."""
    if e.parameters or not 3 <= e.reference.ndim <= 4 or e.reference.shape[-1] % 2:
        return None
    same = [x for x in e.inputs if x.dtype.kind == "f" and x.shape == e.reference.shape]
    if not same or not _keeps_lengths(same[0], e.reference):
        return None
    width = e.reference.shape[-1]
    parts = [0, *(p for p in (width // 2, width // 4) if p % 2 == 0 and p)]
    for pairs, time, part in itertools.product(_TEXT, range(e.reference.ndim - 1), parts):
        for width_ in {0, width} if part else {0}:
            kind = Rotary(time, pairs=pairs, angles=pairs, part=part, width=width_)
            solved = _solved(e.reference, e, kind)
            bases = [*BASES, *([solved] if math.isfinite(solved) and solved > 1.0 else [])]
            for sign, base in itertools.product((1.0, -1.0), bases):
                made = replace(kind, base=base, sign=sign)
                if e.fits_reference(made(e)):
                    return made
    return None


def _keeps_lengths(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether features were turned at most: every vector keeps its length, and some change."""
    before, after = (np.sum(v * v, axis=-1) for v in (x, y))
    return bool(np.allclose(before, after, rtol=1e-4)) and not np.array_equal(x, y)
