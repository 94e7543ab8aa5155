"""One check of two sides on one set of inputs: the stages in order.

adapt -> transfer -> feed -> run -> align -> compare -> judge -> locate -> explain -> report
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crosscheck.adapters.base import Adapter
from crosscheck.adapters.trace import TraceAdapter
from crosscheck.assemble import (
    adapter_notes,
    backward_missing,
    coverage_of,
    environment_of,
    side_of,
)
from crosscheck.details.stage import details
from crosscheck.devices import place
from crosscheck.errors import InvalidArgument
from crosscheck.explain.stage import explained
from crosscheck.free import aligner_of, run_candidate, run_reference, telling_what_agreed
from crosscheck.inputs import make_inputs
from crosscheck.judging.accumulated import seen_only_free
from crosscheck.judging.precision import dtype_notes
from crosscheck.judging.quick import escalation, look_quickly
from crosscheck.locating.locate import Locator
from crosscheck.locating.severed import Severed
from crosscheck.locating.zoom import zoom as look_closer
from crosscheck.losses.judging import judge_loss
from crosscheck.losses.stage import loss_stage
from crosscheck.pipeline import (
    Evidence,
    force,
    judge_all,
    verify_weights,
)
from crosscheck.request import Request
from crosscheck.results import PHASES, Report, worst
from crosscheck.run import Runner
from crosscheck.trace import Trace
from crosscheck.traces.stages import (
    compare_recorded,
    fed,
    judge_of,
    known_weights,
    unrecorded,
)
from crosscheck.training.stage import Trained, in_order, trained
from crosscheck.weights import Match

__all__ = ["Outcome", "check_once", "inputs_of_candidate", "run_once"]

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
    place(sides, request.device)
    ours, seed, train = fed(sides, inputs, seed=request.seed, train=request.train)
    loss = loss_stage(request.loss, request.targets, sides, seed=seed)
    if isinstance(sides[1], TraceAdapter):
        if request.optimizer is not None:
            raise InvalidArgument(
                "optimizer=: the candidate is a recorded run, which cannot make a step; give the "
                "model itself"
            )
        return Outcome(_with_recorded_candidate(sides, ours, seed, train, request))
    theirs = inputs_of_candidate(request.candidate_inputs, ours, seed)
    backward = request.gradients and all(side.capabilities.cotangents for side in sides)

    truth = run_reference(
        Runner("reference", sides[0], ours, None, train, seed), request, loss, backward=backward
    )
    second = Runner("candidate", sides[1], theirs, None, train, seed)
    runs = run_candidate(sides, second, truth, request, match)
    match, free_candidate = runs.match, runs.free
    weight_results = verify_weights(known_weights(match, sides[0]), sides[1])

    notes: list[str] = []
    if request.effort == "quick":
        quick = look_quickly(sides, runs, request, loss, weight_results, backward=backward)
        if quick[0].verdict == "agree":
            return Outcome(*quick)
        notes = [escalation(quick[0])]
        request.say(notes[0])
    truth = truth.with_vjps()
    runs = replace(runs, reference=truth)

    request.say("align, and force the candidate onto the reference's values")
    aligner = aligner_of(runs, request)
    draft = Evidence(
        truth.runner,
        second,
        aligner.alignment(),
        truth.free,
        free_candidate,
        free_candidate,
        match,
        request.tolerance,
        seed,
        make_judge=judge_of(sides[0]),
        free_float64=truth.in_float64,
        part=request.part,
        keeps_gradients=request.optimizer is not None,
    )
    with telling_what_agreed(runs):
        evidence = force(draft, aligner, backward=backward)
    alignment, forced = evidence.alignment, evidence.forced
    free_oracle = None
    if evidence.free_bounds is None or loss is not None:
        request.say("the float64 oracle, free")
        free_oracle = evidence.free_oracle

    evidence.loss, loss_results, loss_missing = judge_loss(
        loss,
        alignment,
        truth.free,
        free_candidate,
        free_oracle,
        tolerance=request.tolerance,
        backward=backward,
    )

    request.say(f"compare and judge {len(alignment.pairs)} sites against the float64 oracle")
    judged = judge_all(evidence, free_oracle, backward=backward)

    severed = Severed(truth.free, forced, judged.results)
    results = [*weight_results, *loss_results, *severed.kept]
    results.sort(key=lambda r: PHASES.index(r.phase))
    divergences = Locator(alignment, truth.free, forced).locate(results)
    if request.explain:
        divergences = explained(divergences, results, evidence, judged.judge)
    unseen = seen_only_free(evidence, judged.judge, judged.by_item, divergences)
    stepped = Trained()
    if request.optimizer is not None:
        stepped = trained(sides, evidence, request, results)
        results = in_order([*results, *stepped.results])
        divergences = tuple(in_order([*divergences, *stepped.divergences]))
    closer = look_closer(evidence, divergences, results) if request.zoom else []
    missing = [*loss_missing, *judged.not_compared, *severed.not_compared]
    missing += [*stepped.not_compared, *backward_missing(sides, request.gradients)]
    missing += unrecorded(alignment, truth.free) if backward else []
    notes += [*unseen, *dtype_notes(results), *closer, *runs.notes]
    notes += [*(loss.notes if loss is not None else ()), *stepped.notes, *adapter_notes(sides)]
    report = Report(
        verdict=worst([*(r.verdict for r in results), *(["suspect"] if unseen else [])]),  # type: ignore[list-item]
        seed=seed,
        reference=side_of(sides[0]),
        candidate=side_of(sides[1]),
        environment={
            **environment_of(sides, request.tolerance, "thorough"),
            **({} if request.part is None else {"part": list(request.part)}),
        },
        coverage=coverage_of(alignment, match, request, missing),
        divergences=divergences,
        sites=tuple(results),
        notes=tuple(notes),
        name=request.name,
        details=details(
            results,
            judged.by_item,
            judged.judge,
            forced,
            match,
            lambda: {p.name: p.value for p in sides[1].parameters()},
            stepped.details,
        ),
    )
    return Outcome(report, evidence)


# -- the sides -------------------------------------------------------------------------------------


def _with_recorded_candidate(
    sides: Sides, inputs: dict[str, np.ndarray], seed: int, train: bool, request: Request
) -> Report:
    return compare_recorded(
        sides,
        inputs,
        candidate_inputs=request.candidate_inputs,
        zoom=request.zoom,
        weights=request.weights,
        gradients=request.gradients,
        train=train,
        sites=request.sites,
        skip=request.skip,
        seed=seed,
        tolerance=request.tolerance,
        name=request.name,
        progress=request.say,
    )


def inputs_of_candidate(
    given: Any, ours: dict[str, np.ndarray], seed: int
) -> dict[str, np.ndarray]:
    """The candidate's inputs: the reference's, or what the caller's ``candidate_inputs`` says."""
    if given is None:
        return ours
    if callable(given):
        made = given({name: array.copy() for name, array in ours.items()})
        if not isinstance(made, Mapping) and len(ours) == 1:
            made = {next(iter(ours)): made}
        given = made
    try:
        return make_inputs(given, seed=seed)
    except InvalidArgument as error:
        raise InvalidArgument(f"candidate_inputs: {error}") from error.__cause__
