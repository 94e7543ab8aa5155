"""One check of two sides on one set of inputs: the stages in order.

adapt -> transfer -> feed -> run -> align -> compare -> judge -> locate -> explain -> report
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosscheck.accumulated import seen_only_free
from crosscheck.adapters.base import Adapter
from crosscheck.adapters.trace import TraceAdapter
from crosscheck.align import Aligner
from crosscheck.cotangents import (
    CandidateCotangents,
    ReferenceCotangents,
    require_finite,
    require_outputs,
)
from crosscheck.devices import as_they_ran, place
from crosscheck.errors import InvalidArgument, SideFailed
from crosscheck.explain.stage import explained
from crosscheck.inputs import make_inputs
from crosscheck.locate import Locator
from crosscheck.losses.judging import judge_loss
from crosscheck.losses.stage import LossCotangents, LossStage, loss_stage
from crosscheck.noise import Tolerance
from crosscheck.observers import Recorder
from crosscheck.pipeline import (
    Evidence,
    align,
    calls_of,
    compared_so_far,
    judge_all,
    oracle,
    transfer,
    verify_weights,
    with_vjps,
)
from crosscheck.precision import dtype_notes
from crosscheck.reductions import Reductions
from crosscheck.request import Request
from crosscheck.results import PHASES, Coverage, Report, Side, worst
from crosscheck.run import Runner
from crosscheck.severed import Severed
from crosscheck.trace import Trace
from crosscheck.traces.stages import (
    compare_recorded,
    cotangents_of,
    fed,
    free_run,
    judge_of,
    known_weights,
    unrecorded,
    weights_of,
)
from crosscheck.training import Trained, in_order, trained
from crosscheck.trial import by_running
from crosscheck.weights import Match
from crosscheck.zoom import zoom as look_closer

__all__ = ["Outcome", "check_once", "inputs_of_candidate", "run_once"]

Sides = tuple[Adapter, Adapter]


@dataclass(frozen=True)
class Outcome:
    """A report, and the runs that it was made of; none where the candidate is a recording.

    Attributes:
        oracle: the reference in float64, forced at the aligned sites; None without one.
    """

    report: Report
    evidence: Evidence | None = None
    oracle: Trace | None = None


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

    truth = _run_reference(
        Runner("reference", sides[0], ours, None, train, seed), backward, request, loss
    )
    second = Runner("candidate", sides[1], theirs, None, train, seed)
    weight_notes: list[str] = []
    if match is None:
        match, weight_notes = _transferred(sides, second, truth.free, request)
    weight_results = verify_weights(known_weights(match, sides[0]), sides[1])

    request.say(f"candidate ({sides[1].framework}): free run")
    if truth.cotangents is not None:
        second.cotangents = CandidateCotangents(
            truth.free, truth.cotangents.given, request.sites, request.skip
        )
    free_candidate = _free_run(second, truth, match, sides[0])
    require_outputs(free_candidate.outputs(), "candidate")
    require_finite(truth.free, free_candidate)

    request.say("align, and force the candidate onto the reference's values")
    aligner = Aligner(
        truth.free,
        free_candidate,
        explicit=request.sites,
        anchors=match.anchors(),
        skip=request.skip,
    )
    alignment, forced = align(aligner, truth.free, free_candidate, second)

    loss_judge, loss_results, loss_missing = judge_loss(
        loss,
        alignment,
        truth.free,
        free_candidate,
        truth.free_oracle,
        tolerance=request.tolerance,
        backward=backward,
    )

    request.say(f"compare and judge {len(alignment.pairs)} sites against the float64 oracle")
    evidence = Evidence(
        truth.runner,
        second,
        alignment,
        truth.free,
        free_candidate,
        forced,
        match,
        request.tolerance,
        seed,
        make_judge=judge_of(sides[0]),
        loss=loss_judge,
    )
    judged = judge_all(evidence, truth.free_oracle, backward=backward)

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
    missing += [*stepped.not_compared, *_backward_missing(sides, request.gradients)]
    missing += unrecorded(alignment, truth.free) if backward else []
    notes = [*unseen, *dtype_notes(results), *closer, *weight_notes]
    notes += [*(loss.notes if loss is not None else ()), *stepped.notes, *_adapter_notes(sides)]
    report = Report(
        verdict=worst([*(r.verdict for r in results), *(["suspect"] if unseen else [])]),  # type: ignore[list-item]
        seed=seed,
        reference=_side(sides[0]),
        candidate=_side(sides[1]),
        environment=_environment(sides, request.tolerance),
        coverage=_coverage(evidence, request, missing),
        divergences=divergences,
        sites=tuple(results),
        notes=tuple(notes),
        name=request.name,
    )
    return Outcome(report, evidence, judged.judge.oracle)


# -- the runs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReferenceRuns:
    """What the reference did before the candidate is looked at.

    Attributes:
        runner: with the cotangents that its outputs receive.
        free: the free run, with each layer's own VJP.
        free_oracle: the free run in float64; None where it does not run in float64.
        cotangents: None without a backward pass.
    """

    runner: Runner
    free: Trace
    free_oracle: Trace | None
    cotangents: ReferenceCotangents | None


def _run_reference(
    runner: Runner, backward: bool, request: Request, loss: LossStage | None
) -> ReferenceRuns:
    adapter = runner.adapter
    request.say(f"reference ({adapter.framework}): forward{' and backward' if backward else ''}")
    cotangents = cotangents_of(adapter, runner.seed, request.skip) if backward else None
    if loss is not None and backward:
        cotangents = LossCotangents(runner.seed, request.skip, stage=loss)
    runner.cotangents = cotangents
    free = free_run(runner)
    require_outputs(free.outputs(), "reference")
    return ReferenceRuns(runner, with_vjps(runner, free), oracle(runner), cotangents)


def _transferred(
    sides: Sides, candidate: Runner, reference: Trace, request: Request
) -> tuple[Match, list[str]]:
    request.say("weights: " + ("verify" if request.weights == "keep" else "match, copy, verify"))
    weights, notes = weights_of(sides[0], request.weights)
    trial = by_running(candidate, reference, request.sites, request.skip)
    match = transfer(*sides, weights, trial, (reference.info.layers, calls_of(candidate)))
    return match, notes


def _free_run(candidate: Runner, truth: ReferenceRuns, match: Match, side: Adapter) -> Trace:
    """The candidate's free run; where it fails, what had been compared until then goes along."""
    recorder = Recorder()
    try:
        return candidate.record(recorder=recorder, passive=True)
    except SideFailed as failure:
        judge = judge_of(side)(
            reference=truth.free,
            oracle=truth.free_oracle,
            free_oracle=None,
            free_candidate=truth.free,
            reductions=Reductions(side.parameters(), truth.free, frozenset()),
        )
        so_far = compared_so_far(truth.free, recorder, match.anchors(), judge)
        raise failure.with_comparisons(so_far) from failure.__cause__


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


# -- for the report --------------------------------------------------------------------------------


def _coverage(evidence: Evidence, request: Request, missing: list[str]) -> Coverage:
    alignment, match = evidence.alignment, evidence.match
    return Coverage(
        aligned=len(alignment.pairs),
        unmatched_reference=alignment.unmatched_reference,
        unmatched_candidate=alignment.unmatched_candidate,
        skipped=tuple(request.skip),
        parameters_matched=len(match.pairs),
        unmatched_reference_parameters=tuple(p.name for p in match.unmatched_reference),
        unmatched_candidate_parameters=tuple(p.name for p in match.unmatched_candidate),
        not_compared=tuple(missing),
    )


def _backward_missing(sides: tuple[Adapter, Adapter], gradients: bool) -> list[str]:
    if not gradients:
        return ["backward: gradients=False"]
    return [
        f"backward: the {side} ({adapter.framework}) has no backward pass"
        for side, adapter in zip(("reference", "candidate"), sides, strict=True)
        if not adapter.capabilities.cotangents
    ]


def _adapter_notes(sides: tuple[Adapter, Adapter]) -> list[str]:
    """What an adapter has to say about its model (how an ONNX file was exported, ...)."""
    return [
        f"{side} ({adapter.framework}): {note}"
        for side, adapter in zip(("reference", "candidate"), sides, strict=True)
        for note in adapter.notes
    ]


def _side(adapter: Adapter) -> Side:
    return Side(adapter.framework, adapter.version, adapter.device)


def _environment(sides: tuple[Adapter, Adapter], tolerance: Tolerance | None) -> dict[str, Any]:
    from crosscheck import __version__

    return {
        "crosscheck": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": np.__version__,
        **{side.framework: side.version for side in sides},
        "float32_matmul": "full precision on both sides",
        "bit_generator": "Philox-4x64-10",
        **as_they_ran(sides),
        **({} if tolerance is None else {"tolerance": str(tolerance)}),
    }
