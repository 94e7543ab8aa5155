"""From hypotheses to causes: a cause is verified only if reproducing it, twice, gave the value.

The candidate's value is predicted from what the reference's layer was given, in float64. The
residual, over the noise floor η of the site, must stay within 8, the bound under which two
implementations agree, on the inputs of the check and on fresh ones for which nothing was fitted.
Where the error itself is hardly larger (a suspect), most of it must be gone as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.registry import hypotheses
from crosscheck.judging.noise import AGREE
from crosscheck.results import Cause

__all__ = ["causes"]

CLOSER = 0.3  # an explanation leaves at most this share of the error
MUCH_CLOSER = 0.02  # and a factor this share, of the value as well: anything small has one
MOST = 4
UNDECIDED = 0.05  # share of elements that a prediction may leave open, each between two values
FAR_CLOSER = 3.0  # times closer, and a mistake stands without descriptions of what it looks like
ELEMENTS_PER_CONSTANT = 4  # what is fitted to as few numbers as it has itself explains nothing


def causes(first: Evidence, fresh: Callable[[], Evidence | None]) -> tuple[Cause, ...]:
    """What explains a divergence, best first.

    Args:
        first: on the inputs of the check.
        fresh: the same site on other inputs, asked for once and only if something fits; None where
            there is none, and then nothing is verified. Weights do not depend on inputs: ``first``
            itself is right for them.
    """
    with np.errstate(all="ignore"):
        original = first.ratio(first.reference)
        tried = [(p, _residual(p, first)) for p in _proposals(first)]
        bound = min(AGREE, CLOSER * original)
        fitting = [(p, r) for p, r in tried if r <= bound and _is_determined(p, first)]
        second = fresh() if fitting else None
        verified = [] if second is None else _confirmed(fitting, second)
        if verified:
            return tuple(_unique(verified))[:MOST]
        return tuple(_unique(_closest(tried, first)))[:1]


def _proposals(evidence: Evidence) -> list[Proposal]:
    found: list[Proposal] = []
    for hypothesis in hypotheses(evidence.phase):
        try:
            found.extend(hypothesis(evidence))
        except Exception:  # noqa: BLE001, S112  (anybody's code; a report must not fail over it)
            continue
    return found


def _residual(proposal: Proposal, evidence: Evidence) -> float:
    """The residual ratio of a prediction; infinite where it cannot be made."""
    if proposal.predict is None:
        return math.inf
    try:
        ratio = evidence.ratio(_settled(proposal.predict(evidence.blind()), evidence.candidate))
    except Exception:  # noqa: BLE001  (as above)
        return math.inf
    return ratio if ratio == ratio else math.inf


def _settled(made: np.ndarray | tuple[np.ndarray, np.ndarray], candidate: np.ndarray) -> np.ndarray:
    """A prediction; of one that leaves a few elements open, the nearer of the two values."""
    if not isinstance(made, tuple):
        return np.asarray(made)
    low, high = made
    if np.mean(low != high) > UNDECIDED:
        raise ValueError("most of it is open")
    return np.where(np.abs(low - candidate) <= np.abs(high - candidate), low, high)


def _is_determined(proposal: Proposal, evidence: Evidence) -> bool:
    return evidence.reference.size >= ELEMENTS_PER_CONSTANT * proposal.constants


def _confirmed(fitting: list[tuple[Proposal, float]], second: Evidence) -> list[Cause]:
    """Those that reproduce the fresh value too; fewer solved constants first, mistakes before
    descriptions, then the closest.

    A reproduction counts only where the fresh value is wrong as well: a prediction that equals
    the reference there (a ReLU for an identity, where all is positive) has shown nothing. A
    description that comes near, where a mistake comes far nearer, says only what that looks like.
    """
    original = second.ratio(second.reference)
    if original <= AGREE:
        return []
    bound = min(AGREE, CLOSER * original)
    found = []
    for proposal, ratio in fitting:
        again = _residual(proposal, second)
        if again <= bound:
            cause = Cause(proposal.name, proposal.statement, True, max(ratio, again))
            rank = (proposal.constants, proposal.descriptive, cause.residual_ratio)
            found.append((rank, cause))
    mistakes = [cause.residual_ratio for (_, descriptive, _), cause in found if not descriptive]
    least = max(1.0, FAR_CLOSER * min(mistakes, default=math.inf))
    return [
        cause
        for (_, descriptive, _), cause in sorted(found, key=lambda row: row[0])
        if not descriptive or cause.residual_ratio <= least
    ]


def _closest(tried: list[tuple[Proposal, float]], first: Evidence) -> list[Cause]:
    original = first.ratio(first.reference)
    size = first.ratio(np.zeros_like(first.reference))
    described_by = max(AGREE, MUCH_CLOSER * min(original, size))
    nearer = max(AGREE, CLOSER * min(original, size))  # than the reference, and than nothing at all
    near = sorted(
        (
            (ratio, p)
            for p, ratio in tried
            if ratio < min(nearer, described_by if p.descriptive else math.inf)
        ),
        key=lambda row: row[0],
    )
    if near:
        return [Cause(p.name, p.statement, False, ratio) for ratio, p in near]
    described = [p for p, _ in tried if p.predict is None]
    return [Cause(p.name, p.statement, False, original) for p in described]


def _unique(found: list[Cause]) -> list[Cause]:
    return list({cause.statement: cause for cause in reversed(found)}.values())[::-1]
