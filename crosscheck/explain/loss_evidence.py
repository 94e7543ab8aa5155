"""Evidence at the loss: what it was on the reference's outputs, and on others.

A loss is a single number, and a single number is soon explained by something. So the evidence on
its value is the loss at several points: the reference's outputs, and alterations of them. The loss
runs outside the model, so that costs no further run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from crosscheck.compare import compare
from crosscheck.errors import CrosscheckError, InvalidArgument
from crosscheck.explain.evidence import Evidence
from crosscheck.explain.fresh import fresh_inputs
from crosscheck.losses.evaluate import evaluate
from crosscheck.losses.judging import LossJudge, pick
from crosscheck.losses.sides import wide
from crosscheck.losses.spec import NAMES, parse
from crosscheck.losses.targets import Outputs, Resolved, resolve
from crosscheck.results import SiteResult

__all__ = ["LossEvidence", "at_loss"]

POINTS = 8
LARGEST = 1_000_000  # elements of the outputs
SAME = 1e-9  # relative distance of two float64 computations of one loss


@dataclass(frozen=True, kw_only=True)
class LossEvidence(Evidence):
    """A divergence of the loss.

    ``reference`` and ``candidate`` hold the loss at every point, or its gradient at the first.

    Attributes:
        points: outputs of the reference, in float64.
        terms: the named loss that the reference computes; none where that is unknown.
        wrt: the output of a gradient.
        candidate_value: the candidate's loss at the first point.
        value_at: the reference's loss in float64 at any outputs.
    """

    points: tuple[Outputs, ...]
    terms: tuple[Resolved, ...] = ()
    wrt: str = ""
    candidate_value: float = float("nan")
    value_at: Callable[[Outputs], float] = field(default=lambda outputs: float("nan"))


def at_loss(judge: LossJudge, result: SiteResult, *, fresh: bool = False) -> LossEvidence | None:
    """The evidence at a result of the loss; ``fresh``: on other outputs, with the same targets.

    None where the outputs are too large to look at them often, or have no alterations.
    """
    if sum(value.size for value in judge.outputs.values()) > LARGEST:
        return None
    site = judge.output_of(result)
    points = _points(judge.outputs, 1 if site else POINTS, fresh)
    if points is None:
        return None
    try:
        return _evidence(judge, result, site, points)
    except CrosscheckError:
        return None  # a loss that cannot take them: nothing is verified


def _points(outputs: Outputs, count: int, fresh: bool) -> list[Outputs] | None:
    """Outputs of the same kind; the very ones first, unless fresh ones are asked for."""
    seeds = range(count, 2 * count) if fresh else range(1, count)
    made = [fresh_inputs(outputs, seed=100 * seed) for seed in seeds]
    if any(one is None for one in made):
        return None
    found: list[Outputs] = [one for one in made if one is not None]
    return found if fresh else [outputs, *found]


def _evidence(
    judge: LossJudge, result: SiteResult, site: str, points: Sequence[Outputs]
) -> LossEvidence:
    stage = judge.stage
    truth = np.array([pick(stage.truth(p), site) for p in points], np.float64)
    own = np.array([pick(stage.reference(p), site) for p in points], np.float64)
    seen = np.array([pick(stage.candidate(p), site) for p in points], np.float64)
    if site:
        truth, own, seen = truth[0], own[0], seen[0]
    floor = judge.floor(site)
    if not site:  # of one number so far; here there are several
        spread = floor.pert_l2 * float(np.sqrt(len(points)))
        floor = floor.with_perturbation(spread, floor.pert_max)
    return LossEvidence(
        phase=result.phase,
        kind=result.kind,
        reference=truth,
        candidate=seen,
        floor=floor,
        own=compare(own, truth),
        layer=stage.loss.name,
        points=tuple(wide(p) for p in points),
        terms=_definition(judge),
        wrt=site,
        candidate_value=float(stage.candidate(points[0]).value),
        value_at=lambda outputs: float(stage.truth(outputs).value),
    )


def _definition(judge: LossJudge) -> tuple[Resolved, ...]:
    """The named loss that the reference's is: as it was given, or recognised by its values."""
    stage = judge.stage
    if stage.by_definition:
        return stage.terms(judge.outputs)
    texts = [stage.loss.name, *_guesses()]
    for text in texts:
        try:
            terms = resolve(parse(text), judge.outputs, stage.targets, classes_at=-1)
        except (InvalidArgument, AttributeError):  # another loss, or targets of another kind
            continue
        if _reproduces(judge, terms):
            return terms
    return ()


def _guesses() -> list[str]:
    names = [name for name in NAMES if name not in ("ctc", "gaussian_kl")]
    return [*names, *(f"{name}(reduction=sum)" for name in names)]


def _reproduces(judge: LossJudge, terms: tuple[Resolved, ...]) -> bool:
    other = fresh_inputs(judge.outputs, seed=1)
    for outputs in (judge.outputs, *([] if other is None else [other])):
        truth = judge.stage.truth(outputs)
        with np.errstate(all="ignore"):
            made = evaluate(terms, wide(outputs))
        if abs(float(made.value) - float(truth.value)) > SAME * abs(float(truth.value)):
            return False
    return True
