"""One check of two sides on one set of inputs: the stages in order.

adapt -> transfer -> feed -> run -> align -> compare -> judge -> locate -> explain -> report
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crosscheck.adapters.base import Adapter
from crosscheck.adapters.trace import TraceAdapter
from crosscheck.aligning.align import Aligner
from crosscheck.assemble import Findings, report_of
from crosscheck.candidate_inputs import inputs_of_candidate
from crosscheck.devices import place
from crosscheck.errors import CannotCompare
from crosscheck.explain.stage import explained
from crosscheck.exported import keeping_own
from crosscheck.free import FreeRuns, aligner_of, run_candidate, run_reference, telling_what_agreed
from crosscheck.judging.accumulated import seen_only_free
from crosscheck.judging.evidence import Evidence, Judged
from crosscheck.judging.parts import require_splittable
from crosscheck.judging.quick import escalation, look_quickly
from crosscheck.judging.uses import used_otherwise
from crosscheck.locating.locate import Locator
from crosscheck.locating.reparametrised import without_reparametrised
from crosscheck.locating.severed import Severed
from crosscheck.locating.zoom import zoom as look_closer
from crosscheck.losses.judging import judge_loss
from crosscheck.losses.stage import LossStage, loss_stage
from crosscheck.pipeline import force, judge_all, verify_weights
from crosscheck.request import Request
from crosscheck.results import PHASES, Report, SiteResult
from crosscheck.run import Runner
from crosscheck.trace import Trace
from crosscheck.traces.stages import compare_recorded, fed, judge_of, known_weights
from crosscheck.training.stage import Trained, in_order, trained
from crosscheck.weights import Match

__all__ = ["Outcome", "check_once", "run_as_it_can", "run_once"]

Sides = tuple[Adapter, Adapter]


@dataclass(frozen=True)
class Outcome:
    """A report, and the runs that it was made of; none where the candidate is a recording."""

    report: Report
    evidence: Evidence | None = None

    @property
    def oracle(self) -> Trace | None:
        """The reference in float64, forced at the aligned sites; None without one."""
        return None if self.evidence is None else self.evidence.whole_oracle


def check_once(sides: Sides, inputs: Any, request: Request) -> Report:
    """Check one candidate on one set of inputs; see `crosscheck.check`.

    Raises:
        InvalidArgument, CannotCompare, DeviceUnavailable, MissingFramework, SideFailed.
    """
    return run_once(sides, inputs, request).report


def run_once(sides: Sides, inputs: Any, request: Request, *, match: Match | None = None) -> Outcome:
    """`check_once`, with its evidence.

    Args:
        match: of an earlier check of the same two sides, whose parameters still hold what it
            loaded; nothing is matched or copied then.
    """
    check = _begun(sides, inputs, request)
    if isinstance(sides[1], TraceAdapter):
        asked = replace(request, seed=check.seed, train=check.train)
        return Outcome(compare_recorded(sides, check.inputs, asked))
    runs, before = _run(check, match), []
    weights = verify_weights(known_weights(runs.match, sides[0]), sides[1])
    if request.effort == "quick":
        quick = look_quickly(sides, runs, request, check.loss, weights, backward=check.backward)
        if quick[0].verdict == "agree":
            return Outcome(*quick)
        before = [escalation(quick[0])]
        request.say(before[0])
    runs = replace(runs, reference=runs.reference.with_vjps())
    evidence, judged = _judged(check, runs)
    found = _with_steps(check, evidence, _found(check, runs, evidence, judged, weights))
    return Outcome(report_of(sides, request, evidence, found, before), evidence)


def run_as_it_can(sides: Sides, inputs: Any, request: Request) -> tuple[Outcome, Request]:
    """`run_once`, and again with the weights that both sides have where a copy cannot be made of a
    file that holds the reference's; and the request that it came to.

    Raises:
        As `check_once`.
    """
    try:
        return run_once(sides, inputs, request), request
    except CannotCompare:
        asked = keeping_own(sides, request)
        if asked is request:
            raise
    return run_once(sides, inputs, asked), asked


# -- the stages ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Check:
    """What all stages of one check are given.

    Attributes:
        inputs: the reference's.
        backward: whether both sides make a backward pass.
    """

    sides: Sides
    request: Request
    inputs: dict[str, np.ndarray]
    seed: int
    train: bool
    loss: LossStage | None
    backward: bool


def _begun(sides: Sides, inputs: Any, request: Request) -> _Check:
    """Adapt and feed."""
    require_splittable(sides, request.part)
    place(sides, request.device)
    ours, seed, train = fed(sides, inputs, seed=request.seed, train=request.train)
    loss = loss_stage(request.loss, request.targets, sides, seed=seed)
    backward = request.gradients and all(side.capabilities.cotangents for side in sides)
    return _Check(sides, request, ours, seed, train, loss, backward)


def _run(check: _Check, match: Match | None) -> FreeRuns:
    """Transfer, and run both sides on their own values."""
    request, (first, second) = check.request, check.sides
    theirs, notes = inputs_of_candidate(request.candidate_inputs, check.inputs, check.seed, second)
    reference = Runner("reference", first, check.inputs, None, check.train, check.seed)
    truth = run_reference(reference, request, check.loss, backward=check.backward)
    candidate = Runner("candidate", second, theirs, None, check.train, check.seed)
    runs = run_candidate(check.sides, candidate, truth, request, match)
    return replace(runs, notes=(*request.told, *notes, *runs.notes))


def _judged(check: _Check, runs: FreeRuns) -> tuple[Evidence, Judged]:
    """Align, force, compare and judge; once more where cotangents turn out not to be comparable."""
    request = check.request
    request.say("align, and force the candidate onto the reference's values")
    aligner = aligner_of(runs, request)
    while True:
        evidence = _forced(check, runs, aligner)
        count = len(evidence.alignment.pairs)
        request.say(f"compare and judge {count} sites against the float64 oracle")
        judged = judge_all(evidence, backward=check.backward)
        others = used_otherwise(judged.by_item, evidence) if check.backward else frozenset()
        if not others:
            return evidence, judged
        request.say(f"force again, without {len(others)} cotangents of values used otherwise")
        aligner.compare_forward_only(others)


def _forced(check: _Check, runs: FreeRuns, aligner: Aligner) -> Evidence:
    """Force the candidate onto the reference's values, and align what matches then."""
    request, truth = check.request, runs.reference
    draft = Evidence(
        truth.runner,
        runs.candidate,
        aligner.alignment(),
        truth.free,
        runs.free,
        runs.free,
        runs.match,
        request.tolerance,
        check.seed,
        make_judge=judge_of(check.sides[0]),
        free_float64=truth.in_float64,
        part=request.part,
        keeps_gradients=request.optimizer is not None,
    )
    with telling_what_agreed(runs):
        return force(draft, aligner, backward=check.backward)


def _found(
    check: _Check, runs: FreeRuns, e: Evidence, judged: Judged, weights: Sequence[SiteResult]
) -> Findings:
    """Judge the loss, locate and explain."""
    request, loss = check.request, check.loss
    e.loss, losses, missing = judge_loss(
        loss,
        e.alignment,
        e.free_reference,
        e.free_candidate,
        None if loss is None else e.free_oracle,
        tolerance=request.tolerance,
        backward=check.backward,
    )
    severed = Severed(e.free_reference, e.forced, judged.results)
    results = [*weights, *losses, *severed.kept]
    results.sort(key=lambda r: PHASES.index(r.phase))
    if request.weights == "keep":
        results, others = without_reparametrised(results, e)
        missing = [*missing, *others]
    divergences = Locator(e.alignment, e.free_reference, e.forced).locate(results)
    if request.explain:
        divergences = explained(divergences, results, e, judged.judge)
    unseen = seen_only_free(e, judged.judge, judged.by_item, divergences)
    return Findings(
        judged,
        results,
        divergences,
        unseen,
        missing=[*missing, *judged.not_compared, *severed.not_compared],
        notes=[*runs.notes],
    )


def _with_steps(check: _Check, e: Evidence, found: Findings) -> Findings:
    """Step: what the optimizers make of it; and a closer look at what was found by then."""
    stepped = Trained()
    if check.request.optimizer is not None:
        stepped = trained(check.sides, e, check.request, found.results)
        found = replace(
            found,
            results=in_order([*found.results, *stepped.results]),
            divergences=tuple(in_order([*found.divergences, *stepped.divergences])),
        )
    said = () if check.loss is None else check.loss.notes
    closer = check.request.zoom
    return replace(
        found,
        closer=look_closer(e, found.divergences, found.results) if closer else [],
        missing=[*found.missing, *stepped.not_compared],
        notes=[*found.notes, *said, *stepped.notes],
        details=stepped.details,
    )
