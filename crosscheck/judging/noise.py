"""Stage 7, judge: differences and the oracle -> noise floor η, ratio ρ, verdict.

For one value let y64 be the oracle's, y_r the reference's, y_c the candidate's, all computed from
the same forced inputs, and N its number of elements. Errors are taken in two norms, so that a
small error everywhere and a large error in one place are both seen. In the 2-norm

    η = max( ‖y_r − y64‖, e_pert, max(½√n, 1)·u·S ) ,   S = max(‖y64‖, scale)

and in the maximum norm

    η∞ = max( max|y_r − y64|, e_pert∞, ½√n·u·(S/√N)·√(2 ln N), u·max|y64| ) .

* u: unit roundoff of the side that rounds more: 2⁻²⁴ (float32), 2⁻¹¹ (float16), 2⁻⁸ (bfloat16),
  2⁻⁴ and 2⁻³ (float8 with three and two bits behind the point).
* n: length of the reductions behind the value. Rounding errors of a sum of n terms grow as √n
  (Higham & Mary, SIAM J. Sci. Comput. 41, 2019); √(2 ln N) is the expected maximum of N normals.
* e_pert: root mean square response of the oracle to relative perturbations of size u of everything
  that goes into the stretch (values and weights): what ill-conditioning makes of rounding.
  It costs oracle runs, so it is asked for only where ρ exceeds 8 without it.
* scale: size of the terms that were summed, where the sum itself may cancel to nothing
  (gradients: the bias in front of a BatchNorm has true gradient zero).

ρ is the larger of the two ratios ‖y_c − y64‖/η. ρ ≤ 8 agrees, ρ ≤ 32 is suspect, above diverges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from typing import Any, NamedTuple

import numpy as np

from crosscheck.compare import Difference, Differences
from crosscheck.results import Verdict

__all__ = [
    "AGREE",
    "DIVERGE",
    "Floor",
    "Judgement",
    "Terms",
    "Tolerance",
    "floors",
    "judge",
    "judge_each",
    "unit_roundoff",
]

AGREE = 8.0
DIVERGE = 32.0
_UNDERFLOW = {"float64": 2.3e-308, "float32": 1.2e-38, "bfloat16": 1.2e-38}


@dataclass(frozen=True)
class Tolerance:
    """Instead of the measured floor: |candidate − reference| ≤ atol + rtol·|reference|.

    Both must be given: a tolerance of which one half is a default is half a guess.
    """

    rtol: float
    atol: float

    def __post_init__(self) -> None:
        from crosscheck.errors import InvalidArgument

        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not (math.isfinite(value) and value >= 0.0):
                raise InvalidArgument(f"Tolerance {name} is {value}: give a finite number ≥ 0")


@dataclass(frozen=True)
class Floor:
    """What an honest implementation may be off by, before ill-conditioning is measured.

    Attributes:
        unit: unit roundoff u.
        reduction: n, number of terms summed into one element.
        scale: S is at least this (absolute 2-norm).
        pert_l2, pert_max: e_pert in the two norms, zero until measured.
        tiny: what underflow may lose in the storage type: it is rounding too.
    """

    unit: float
    reduction: float = 1.0
    scale: float = 0.0
    pert_l2: float = 0.0
    pert_max: float = 0.0
    tiny: float = 1.2e-38

    def with_perturbation(self, l2: float, maximum: float) -> Floor:
        """The same floor with e_pert measured."""
        return replace(self, pert_l2=l2, pert_max=maximum)


Terms = tuple[float, float, float, float, float, float]
"""The attributes of a `Floor`, in their order."""


class Judgement(NamedTuple):
    """η relative to the value's scale, ρ, and what follows."""

    noise_floor: float
    ratio: float
    verdict: Verdict


def unit_roundoff(*dtypes: np.dtype) -> float:
    """The largest unit roundoff among floating-point dtypes; 0 if there is none."""
    return max((_unit(np.dtype(d)) for d in dtypes), default=0.0)


@cache
def _unit(dtype: np.dtype) -> float:
    return float(_finfo(dtype).eps) / 2.0 if _rounds(dtype) else 0.0


@cache
def underflow(dtype: np.dtype) -> float:
    """What underflow may lose: the smallest normal number where hardware flushes to zero; in
    float16 and below, whose small gradients live under that and which nobody flushes, the
    smallest of all.
    """
    dtype = np.dtype(dtype)
    if dtype.name in _UNDERFLOW or not _rounds(dtype):
        return _UNDERFLOW.get(dtype.name, 1.2e-38)
    return float(_finfo(dtype).smallest_subnormal)


def _rounds(dtype: np.dtype) -> bool:
    """Floating point, or complex: then what is said holds for each of the two parts."""
    return "float" in dtype.name or dtype.kind == "c"


def _finfo(dtype: np.dtype) -> Any:
    import ml_dtypes

    return np.finfo(dtype) if dtype.kind in "fc" else ml_dtypes.finfo(dtype)


def judge(candidate: Difference, reference: Difference, floor: Floor) -> Judgement:
    """Judge the candidate's error against the oracle by the reference's and the floor."""
    scale = max(reference.truth_l2, floor.scale)
    eta, eta_max = floors(reference, floor)
    ratio = max(candidate.l2 / eta, candidate.maximum / eta_max)
    if candidate.mismatch:
        ratio = math.inf
    return Judgement(
        noise_floor=eta / scale if scale > 0.0 else 0.0, ratio=ratio, verdict=verdict_of(ratio)
    )


def judge_each(
    candidate: Differences, reference: Differences, floors: Sequence[Terms]
) -> list[Judgement]:
    """`judge` for many values: the same bits, in a few calls."""
    floor = _Columns(floors)
    spread = np.array([_spread(size) for size in reference.size.tolist()])
    scale = np.maximum(reference.truth_l2, floor.scale)
    with np.errstate(all="ignore"):
        eta, eta_max = _floors(reference, floor, spread, np.sqrt, _largest)
        ratio = np.maximum(candidate.l2 / eta, candidate.maximum / eta_max)
        relative = np.where(scale > 0.0, eta / scale, 0.0)
    ratio[candidate.mismatch > 0] = math.inf
    ratios = ratio.tolist()
    judged = zip(relative.tolist(), ratios, map(verdict_of, ratios), strict=True)
    return [*map(Judgement._make, judged)]


class _Columns:
    """The attributes of many `Floor`, each an array."""

    def __init__(self, floors: Sequence[Terms]) -> None:
        columns = np.array(floors, np.float64).reshape(-1, 6).T
        self.unit, self.reduction, self.scale, self.pert_l2, self.pert_max, self.tiny = columns


def floors(reference: Difference, floor: Floor) -> tuple[float, float]:
    """η in the 2-norm and in the maximum norm."""
    found: tuple[float, float]
    found = _floors(reference, floor, _spread(reference.size), math.sqrt, max)
    return found


def _floors(
    reference: Any, floor: Any, spread: Any, sqrt: Callable[..., Any], largest: Callable[..., Any]
) -> tuple[Any, Any]:
    """Of one value, or of columns of many, by the functions for one or the other."""
    size = largest(reference.size, 1)
    scale = largest(reference.truth_l2, floor.scale)
    growth = 0.5 * sqrt(largest(floor.reduction, 1.0))
    eta = largest(
        reference.l2,
        floor.pert_l2,
        largest(growth, 1.0) * floor.unit * scale,
        floor.tiny * sqrt(size),
    )
    eta_max = largest(
        reference.maximum,
        floor.pert_max,
        growth * floor.unit * scale / sqrt(size) * spread,
        floor.unit * reference.truth_max,
        floor.tiny,
    )
    return eta, eta_max


def _largest(*columns: Any) -> Any:
    return reduce(np.maximum, columns)


@cache
def _spread(size: float) -> float:
    """√(2 ln N)."""
    return math.sqrt(2.0 * math.log(max(size, 2)))


def verdict_of(ratio: float) -> Verdict:
    """ρ ≤ 8 agree, ρ ≤ 32 suspect, else (also NaN) diverge."""
    if ratio <= AGREE:
        return "agree"
    return "suspect" if ratio <= DIVERGE else "diverge"


def within(tolerance: Tolerance, candidate: np.ndarray, reference: np.ndarray) -> Judgement:
    """Judge by an explicit tolerance; the ratio is the largest |c − r| / (atol + rtol·|r|)."""
    wide = np.complex128 if "c" in candidate.dtype.kind + reference.dtype.kind else np.float64
    c, r = candidate.astype(wide), reference.astype(wide)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        same = (c == r) | (np.isnan(c) & np.isnan(r))
        allowed = tolerance.atol + tolerance.rtol * np.abs(r)
        ratios = np.where(same, 0.0, np.abs(c - r) / allowed)
    ratios = np.where(np.isnan(ratios), np.inf, ratios)
    ratio = float(ratios.max(initial=0.0))
    return Judgement(
        noise_floor=tolerance.rtol, ratio=ratio, verdict="agree" if ratio <= 1.0 else "diverge"
    )
