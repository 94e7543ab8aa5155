"""Errors that a sound formula makes: they clear a suspect where float64 cannot be asked.

A variance in one pass, E[x²] − E[x]², loses about u·(m² + v) to rounding: at a mean of a hundred
deviations that is thousands of units of the result. Its error has a shape: every group that is
normalised together is scaled (and, where the mean is folded into the bias, shifted) by a number of
its own, of that size and of either sign. A mistake like another eps shifts all groups the same way.
"""

from __future__ import annotations

import math

import numpy as np

from crosscheck.explain.evidence import Evidence
from crosscheck.explain.norms import Norm, reference_norm
from crosscheck.judging.evidence import Evidence as Check
from crosscheck.judging.judge import Judge
from crosscheck.judging.noise import AGREE
from crosscheck.results import SiteResult

__all__ = ["ONE_PASS", "excuse", "is_one_pass_variance"]

ONE_PASS = (
    "rounding: a variance taken in one pass (E[x²] − E[x]²) has an error of this size and shape"
)
FEWEST = 6  # groups, to tell noise from a mistake that all of them share
SIGMAS = 3.0
LARGEST = 0.05  # relative error; beyond, nothing is excused


def excuse(check: Check, judge: Judge, result: SiteResult) -> str | None:
    """A note on a layer's output whose error is no mistake; None for every other.

    Args:
        check: both sides, the alignment and the traces.
        judge: of the check.
        result: a comparison that does not agree.
    """
    if (result.phase, result.kind) != ("forward", "activation") or not _is_small(result):
        return None
    from crosscheck.explain.gather import Sites  # it reads the pipeline, which settles

    evidence = Sites(check, check.free_reference, check.forced, judge, False).at(result)
    if evidence is None:
        return None
    with np.errstate(all="ignore"):
        return ONE_PASS if is_one_pass_variance(evidence) else None


def _is_small(result: SiteResult) -> bool:
    """An error that rounding could make at all."""
    return result.metrics is not None and result.metrics.rel_l2 < LARGEST


def is_one_pass_variance(e: Evidence) -> bool:
    """Whether the candidate's error at a norm is the rounding of a variance taken in one pass."""
    norm = reference_norm(e, e.reference, lambda value: e.ratio(value, e.reference))
    if norm is None or norm.running or e.floor.unit == 0.0:
        return False
    fitted = _by_group(e, norm)
    if fitted is None:
        return False
    prediction, variance_errors, size = fitted
    if e.ratio(prediction) > AGREE:
        return False
    count = math.prod(norm._cut(_x(e)).shape[a] for a in norm.axes)
    unit = e.floor.unit * max(1.0, 0.5 * math.sqrt(count))
    noise = variance_errors / (unit * size)
    if noise.size < FEWEST or np.max(np.abs(noise)) > AGREE:
        return False
    return bool(abs(noise.mean()) <= SIGMAS * noise.std() / math.sqrt(noise.size))


def _x(e: Evidence) -> np.ndarray:
    assert e.x is not None
    return e.x


def _by_group(e: Evidence, norm: Norm) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The norm with a scale and a shift of each group's own, the errors of the variance that the
    scales mean, and m² + v; None where a group is too small for two numbers."""
    x = norm._cut(_x(e))
    axes = norm.axes
    if math.prod(x.shape[a] for a in axes) < 8:
        return None
    mean, variance = norm.statistics(e)
    weight = norm.spread(e.value("weight"), _x(e))
    ones = np.ones(_x(e).shape)
    slope = norm._cut(ones if weight is None else ones * weight)
    bias = norm.spread(e.value("bias"), _x(e))
    rest = norm._cut(e.candidate - (0.0 if bias is None else bias))
    scaled = (x - mean) * slope
    scale, shift = _line(rest, scaled, slope, axes)
    made = (scale * scaled + shift * slope).reshape(_x(e).shape)
    prediction = made if bias is None else made + bias
    errors = 1.0 / scale**2 - (variance + norm.eps)
    size = mean * mean + variance
    return prediction, errors.reshape(-1), np.broadcast_to(size, errors.shape).reshape(-1)


def _line(
    value: np.ndarray, a: np.ndarray, b: np.ndarray, axes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """(k, c) of value ≈ k·a + c·b over ``axes``, by least squares."""

    def dot(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.asarray((u * v).sum(axes, keepdims=True))

    aa, ab, bb, av, bv = dot(a, a), dot(a, b), dot(b, b), dot(a, value), dot(b, value)
    under = aa * bb - ab * ab
    return (av * bb - bv * ab) / under, (bv * aa - av * ab) / under
