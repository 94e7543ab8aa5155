"""Stage 7 for the optimizer step: what it makes of the reference's parameters and gradients.

Both optimizers are given the reference's θ and g, the candidate's in its own layout. What is judged
is the change Δ = θ′ − θ, element by element, since optimizers work element by element, against the
reference's optimizer in float64. An honest float32 step may be off by

    η = u · ( max(|θ|, |θ′|) + max(|Δ|, 0.05 rms Δ) )

of which the first term, rounding of what is stored, can be larger than Δ itself and would hide a
wrong step. So the step is made a second time with θ and the state in float64, where only

    η₆₄ = u · max(|Δ|, 0.05 rms Δ) + 4 u₆₄ |θ|

is left: constants may still be float32's (Keras keeps its learning rate so), but a wrong eps or a
missing term stands out whatever θ is. What stands out is judged again with the response of the
definition to rounding of everything that it rounds (`Conditioning`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.compare import describe
from crosscheck.judging.noise import AGREE, Tolerance, underflow, unit_roundoff, verdict_of, within
from crosscheck.optimizers.definition import Definition, mean_of, norm_of
from crosscheck.optimizers.rules import Rounding, Rule
from crosscheck.results import SiteResult, Verdict
from crosscheck.weights import Matched

__all__ = [
    "Conditioning",
    "Given",
    "Past",
    "Stepped",
    "floor_of",
    "judge_update",
    "ratio_of",
    "replay",
]

SETTLED = 128.0
"""Ratio up to which a step in float64 decides; beyond, it may be a lower precision somewhere."""
HIDDEN = "seen with the parameters in float64: in float32 rounding of what is stored hides it"
DRAWS = 4
SHARE = 0.05
CONSTANTS = 3.0  # unit roundoffs that a constant may be off by: stored, then raised to a power
UNIT = 2.0**-24
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Stepped:
    """One parameter's changes in one step, float64, in the reference's layout.

    Attributes:
        before: θ; ``reference``, ``candidate``: Δ as the optimizers made it.
        truth: Δ of the reference's optimizer in float64; of the float32 one where there is none.
        wide: Δ of the candidate's optimizer in float64; None where there is none.
    """

    before: np.ndarray
    reference: np.ndarray
    candidate: np.ndarray
    truth: np.ndarray
    wide: np.ndarray | None


class Given(NamedTuple):
    """What the optimizers were given in one step, by the reference's names: θ, and g of every
    micro-batch (the two sides may accumulate otherwise)."""

    values: Arrays
    reference: tuple[Arrays, ...]
    candidate: tuple[Arrays, ...]

    def of(self, side: str) -> tuple[Arrays, ...]:
        """The gradients of one side."""
        return self.reference if side == "reference" else self.candidate


@dataclass(frozen=True)
class Past:
    """Everything that the optimizers were given so far."""

    steps: tuple[Given, ...] = ()

    def then(self, given: Given) -> Past:
        """One step later."""
        return Past((*self.steps, given))

    def norms(self, side: str) -> list[float]:
        """‖g‖ over all parameters in every step."""
        return [norm_of(mean_of(step.of(side))) for step in self.steps]


def floor_of(before: np.ndarray, delta: np.ndarray, unit: float, *, wide: bool) -> np.ndarray:
    """η of every element, see the module."""
    size = np.maximum(np.abs(delta), SHARE * _rms(delta))
    if wide:
        return np.asarray(UNIT * size + 4.0 * 2.0**-53 * np.abs(before) + underflow(delta.dtype))
    stored = np.maximum(np.abs(before), np.abs(before + delta))
    return np.asarray(max(unit, UNIT) * (stored + size) + 1.2e-38)


def ratio_of(delta: np.ndarray, truth: np.ndarray, floor: np.ndarray) -> float:
    """The largest |Δ − truth| / η; infinite where non-finite values differ."""
    with np.errstate(all="ignore"):
        apart = np.where(delta == truth, 0.0, np.abs(delta - truth))
        same = np.isnan(delta) & np.isnan(truth)
        ratios = np.where(same, 0.0, apart / floor)
    return float(np.where(np.isnan(ratios), np.inf, ratios).max(initial=0.0))


def _rms(value: np.ndarray) -> float:
    finite = value[np.isfinite(value)]
    return float(np.sqrt(np.mean(finite * finite))) if finite.size else 0.0


@dataclass(frozen=True)
class Conditioning:
    """What rounding inside an honest float32 optimizer does to Δ at the last step.

    Attributes:
        everything: RMS response to rounding of all that float32 code rounds.
        values: the same without constants.
        constants: response to each constant (η, β₁ᵗ, β₂ᵗ) moved by u, one after the other. A step
            in float64 has them, too, where a framework keeps constants in float32, and 1 − β₂ᵗ
            makes that a hundred times as large; but then they act on all elements as one.
    """

    everything: np.ndarray
    values: np.ndarray
    constants: np.ndarray

    @classmethod
    def of(cls, rule: Rule, exempt: frozenset[str], name: str, past: Past) -> Conditioning:
        """By replaying the definition."""
        exact = replay(rule, exempt, name, past)
        responses: list[list[np.ndarray]] = [[], []]
        for draw in range(DRAWS):
            for kind, squares in enumerate(responses):
                noise = _Noise(draw, constants=kind == 0)
                made = replay(rule, exempt, name, past, rounded=noise)
                squares.append((made - exact) ** 2)
        count = _One(-1, 1)
        replay(rule, exempt, name, past, rounded=count)
        each = count.seen // len(past.steps)
        moved = [replay(rule, exempt, name, past, rounded=_One(k, each)) for k in range(each)]
        everything, values = (np.sqrt(np.mean(squares, axis=0)) for squares in responses)
        return cls(everything, values, np.array([m - exact for m in moved]))

    def ratio(self, delta: np.ndarray, truth: np.ndarray, floor: np.ndarray) -> float:
        """As `ratio_of`, of what is left when constants may be rounded."""
        plain = ratio_of(delta, truth, floor)
        apart = ((delta - truth) / floor).ravel()
        basis = (self.constants / floor).reshape(len(self.constants), -1)
        if plain <= AGREE or not (np.isfinite(apart).all() and np.isfinite(basis).all()):
            return plain
        # Errors are near 1 in units of the floor, and so are constants in units of u: a ridge.
        sizes = np.linalg.solve(basis @ basis.T + np.eye(len(basis)), basis @ apart)
        sizes = np.clip(sizes, -CONSTANTS, CONSTANTS)
        return min(plain, float(np.abs(apart - sizes @ basis).max(initial=0.0)))


class _Noise:
    """Moves everything that is rounded by u · ξ."""

    def __init__(self, seed: int, *, constants: bool) -> None:
        self._random, self._constants = np.random.default_rng(seed), constants

    def __call__(self, x: Any) -> Any:
        if isinstance(x, float) and not self._constants:
            return x
        return x * (1.0 + UNIT * self._random.standard_normal(np.shape(x)))


class _One:
    """Moves the k-th constant of every step by u."""

    def __init__(self, k: int, each: int) -> None:
        self._k, self._each, self.seen = k, each, 0

    def __call__(self, x: Any) -> Any:
        if not isinstance(x, float):
            return x
        self.seen += 1
        return x * (1.0 + UNIT) if (self.seen - 1) % self._each == self._k else x


def replay(
    rule: Rule,
    exempt: frozenset[str],
    name: str,
    past: Past,
    *,
    side: str = "reference",
    rounded: Rounding = lambda x: x,
) -> np.ndarray:
    """Δ of one parameter at the last step, by a definition in float64.

    Args:
        side: whose micro-batches.
        rounded: see `crosscheck.optimizers.rules`.
    """
    own = Definition(rule, exempt, rounded)
    norms: Sequence[float | None] = [None] * len(past.steps)
    if rule.clip_norm is not None:
        norms = past.norms(side)
    delta = np.zeros(0)
    with np.errstate(all="ignore"):
        for step, norm in zip(past.steps, norms, strict=True):
            before = {name: step.values[name].astype(np.float64)}
            micro = [{name: g[name].astype(np.float64)} for g in step.of(side)]
            delta = own.step(before, micro, norm)[name] - before[name]
    return delta


@dataclass(frozen=True)
class _Verdict:
    """What came out, and the change that shows it."""

    verdict: Verdict
    ratio: float
    shown: np.ndarray
    floor: np.ndarray
    notes: tuple[str, ...] = ()


def judge_update(
    parameter: Parameter,
    held: Sequence[Matched],
    s: Stepped,
    *,
    step: int,
    tolerance: Tolerance | None = None,
    measured: Callable[[], Conditioning | None] = lambda: None,
) -> SiteResult:
    """Judge one parameter's step.

    Args:
        measured: asked for only where something stands out; None where no rule is known.
    """
    unit = unit_roundoff(parameter.value.dtype, *(m.candidate.value.dtype for m in held))
    found = _judged(s, unit, measured) if tolerance is None else _within(s, unit, tolerance)
    size, only = _rms(s.truth), held[0].candidate.value
    return SiteResult(
        phase="update",
        kind="parameter",
        reference=parameter.name,
        candidate=", ".join(m.candidate.name for m in held),
        shape=tuple(parameter.value.shape),
        dtype=parameter.value.dtype.name,
        verdict=found.verdict,
        noise_floor=_rms(found.floor) / size if size > 0.0 and math.isfinite(size) else 0.0,
        ratio=found.ratio,
        free_ratio=None,
        metrics=describe(found.shown, s.truth),
        candidate_shape=tuple(only.shape if len(held) == 1 else parameter.value.shape),
        candidate_dtype=only.dtype.name,
        aligned_by="parameter",
        notes=found.notes,
        step=step,
    )


def _within(s: Stepped, unit: float, tolerance: Tolerance) -> _Verdict:
    judged = within(tolerance, s.before + s.candidate, s.before + s.reference)
    floor = floor_of(s.before, s.truth, unit, wide=False)
    return _Verdict(judged.verdict, judged.ratio, s.candidate, floor)


def _judged(s: Stepped, unit: float, measured: Callable[[], Conditioning | None]) -> _Verdict:
    narrow = _Measured(s.candidate, s.truth, floor_of(s.before, s.truth, unit, wide=False))
    wide = None
    if s.wide is not None:
        wide = _Measured(s.wide, s.truth, floor_of(s.before, s.truth, unit, wide=True))
    known = None
    if narrow.ratio > AGREE or (wide is not None and wide.ratio > AGREE):
        known = measured()
    if known is not None:
        narrow = replace(narrow, floor=np.maximum(narrow.floor, known.everything))
        if wide is not None:
            wide = replace(wide, floor=np.maximum(wide.floor, known.values), known=known)
    if wide is None or max(wide.ratio, narrow.ratio) <= AGREE:
        return narrow.judged(verdict_of(narrow.ratio))
    if wide.ratio <= AGREE:
        if narrow.ratio <= SETTLED:
            return narrow.judged("agree", "rounding: it vanishes in float64")
        return narrow.judged("diverge")
    # Whatever float32 may have rounded is in the floor: the rest is no rounding.
    verdict = "diverge" if known is not None else verdict_of(max(wide.ratio, narrow.ratio))
    if narrow.ratio >= wide.ratio:
        return narrow.judged(verdict)
    return wide.judged(verdict, *([HIDDEN] if narrow.ratio <= AGREE else []))


@dataclass(frozen=True)
class _Measured:
    delta: np.ndarray
    truth: np.ndarray
    floor: np.ndarray
    known: Conditioning | None = None

    @cached_property
    def ratio(self) -> float:
        if self.known is not None:
            return self.known.ratio(self.delta, self.truth, self.floor)
        return ratio_of(self.delta, self.truth, self.floor)

    def judged(self, verdict: Verdict, *notes: str) -> _Verdict:
        return _Verdict(verdict, self.ratio, self.delta, self.floor, notes)
