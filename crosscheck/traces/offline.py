"""Compare two recorded runs: the stages of a check, without running anything.

Neither run can be forced onto the other's values, so each value is compared as it came out. Up to
the first departure that is as good as a forced run: all that went into it agrees. Behind it, what
is wrong in itself and what has merely been given wrong values look the same; nothing there is
blamed, and nothing there is passed.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crosscheck.adapters.base import Adapter, Parameter
from crosscheck.aligning.align import Aligner
from crosscheck.aligning.alignment import Alignment
from crosscheck.aligning.coverage import coverage_of
from crosscheck.aligning.layout import relative_error
from crosscheck.arrays import is_float
from crosscheck.comparisons import (
    Item,
    buffer_items,
    gradient_items,
    site_items,
    value_of,
    weight_items,
)
from crosscheck.cotangents import require_finite
from crosscheck.details.stage import details
from crosscheck.errors import CannotCompare
from crosscheck.judging.noise import Tolerance
from crosscheck.judging.precision import not_finite_notes
from crosscheck.judging.reductions import Reductions
from crosscheck.judging.weights import judge_weights
from crosscheck.request import Request
from crosscheck.results import Report, Side, SiteResult
from crosscheck.traces.closer import Judged, judge_closely
from crosscheck.traces.departures import Departures, locate
from crosscheck.traces.judging import TraceJudge
from crosscheck.traces.recorded import RecordedTrace
from crosscheck.weights import Match, Matched, Transform, match_parameters

__all__ = [
    "backward_of",
    "compare_traces",
    "environment_of",
    "items_of_traces",
    "report_of",
    "require_same_run",
    "side_of",
    "weights_unknown",
    "without_cotangent",
]

NOT_FORCED = (
    "introduced against inherited behind the first departure: a recorded candidate cannot be "
    "forced onto the reference's values; give the candidate itself to tell them apart"
)
NO_WEIGHTS = (
    "weights not compared: not both traces hold them (record with --parameters); other weights "
    "alone make values differ"
)


def compare_traces(reference: RecordedTrace, candidate: RecordedTrace, request: Request) -> Report:
    """Does the candidate's run agree with the reference's, and if not, where does it depart?

    Args:
        request: a map of weights pairs parameters for their gradients (nothing is copied); its
            seed is for the report, where the reference's trace names none.

    Raises:
        CannotCompare: the runs had different inputs or modes, or outputs without a counterpart.
    """
    require_same_run(reference, candidate)
    require_finite(reference, candidate)
    match = _match(reference, candidate, request)
    request.say("align the two recorded runs")
    aligner = Aligner(
        reference, candidate, explicit=request.sites, anchors=match.anchors(), skip=request.skip
    )
    weights = _weights(match, reference, candidate)

    def judge(alignment: Alignment) -> Judged:
        backward, missing = backward_of(reference, candidate, alignment, request.gradients)
        request.say(f"compare and judge {len(alignment.pairs)} sites")
        items, lines = items_of_traces(reference, candidate, alignment, match, backward=backward)
        one = _judge(reference, candidate, alignment, request.tolerance)
        departures = Departures.of([*weights, *(one.judge(item, candidate) for item in items)])
        divergences = locate(departures, alignment, reference, candidate)
        return Judged(alignment, items, [*missing, *lines], departures, divergences)

    judged = judge_closely(aligner, reference, candidate, judge)
    report = report_of(judged, (reference, candidate), match, request)
    last = _judge(reference, candidate, judged.alignment, request.tolerance)
    held = {p.name: p.value for p in candidate.parameters if p.name in candidate.held}
    found = details(report.sites, judged.items, last, candidate, match, lambda: held)
    notes = [*_notes(reference, candidate), *not_finite_notes(report.sites)]
    if match.pairs and not weights:
        notes = [NO_WEIGHTS, *notes]
    return replace(report, notes=tuple(notes), details=found)


def require_same_run(reference: RecordedTrace, candidate: RecordedTrace) -> None:
    """Raise `CannotCompare` unless both runs began with the same inputs, in the same mode."""
    if reference.inputs_sha256 != candidate.inputs_sha256:
        raise CannotCompare(
            "the two traces are of different inputs: inputs_sha256 is "
            f"{reference.inputs_sha256[:12]}... in the reference's and "
            f"{candidate.inputs_sha256[:12]}... in the candidate's.\n"
            "  Fix: record both on the same inputs; a program without this library copies "
            "inputs_sha256 from the file that it read them from"
        )
    if reference.train != candidate.train:
        modes = {True: "train", False: "eval"}
        raise CannotCompare(
            f"the reference was recorded in {modes[reference.train]} mode and the candidate in "
            f"{modes[candidate.train]} mode.\n  Fix: record both in one mode"
        )


# -- stages ----------------------------------------------------------------------------------------


def _match(reference: RecordedTrace, candidate: RecordedTrace, request: Request) -> Match:
    """Match the parameters; layouts that the shapes leave open are decided by the values, where
    both traces hold them."""
    given = request.weights if isinstance(request.weights, Mapping) else {}
    match = match_parameters(reference.parameters, candidate.parameters, given=given)
    choice = {
        m.candidate.name: min((m.transform, *m.alternatives), key=_error(m))
        for m in match.ambiguous()
        if reference.held.issuperset(p.name for p in m.references)
        and m.candidate.name in candidate.held
    }
    return match.choosing(choice)


def _error(m: Matched) -> Callable[[Transform], float]:
    def error(transform: Transform) -> float:
        return relative_error(m.candidate.value, replace(m, transform=transform).make())

    return error


def _judge(
    reference: RecordedTrace,
    candidate: RecordedTrace,
    alignment: Alignment,
    tolerance: Tolerance | None,
) -> TraceJudge:
    return TraceJudge(
        reference=reference,
        oracle=None,
        free_oracle=None,
        free_candidate=candidate,
        reductions=Reductions(
            reference.parameters, reference, frozenset(p.reference for p in alignment.pairs)
        ),
        tolerance=tolerance,
    )


def backward_of(
    reference: RecordedTrace, candidate: RecordedTrace, alignment: Alignment, gradients: bool
) -> tuple[bool, list[str]]:
    """Whether the backward passes can be compared, and what to say if not."""
    if not gradients:
        return False, ["backward: gradients=False"]
    for side, trace in (("reference", reference), ("candidate", candidate)):
        if not trace.has_cotangents:
            return False, [
                f"backward: the {side}'s trace does not hold the cotangents that were sent into "
                "its outputs"
            ]
    ours, theirs = reference.output_cotangents(), candidate.output_cotangents()
    pairs = [p for p in alignment.pairs if p.reference in ours and p.layout is not None]
    for pair in pairs:
        twin = theirs.get(pair.candidate)
        if twin is None:
            why = f"does not hold what was sent into `{pair.candidate}` (cotangent/...)"
            return False, [f"backward: the candidate's trace {why}"]
        value = pair.layout.to_reference(twin) if pair.layout else twin
        if not relative_error(value, ours[pair.reference]) <= 1e-6:
            return False, [
                f"backward: other cotangents were sent into `{pair.reference}` than into "
                f"`{pair.candidate}` of the candidate; record both with the same seed"
            ]
    return bool(pairs), [] if pairs else ["backward: no cotangent of an aligned output is known"]


def items_of_traces(
    reference: RecordedTrace,
    candidate: RecordedTrace,
    alignment: Alignment,
    match: Match,
    *,
    backward: bool,
) -> tuple[list[Item], list[str]]:
    """What both traces hold, and lines on what only one of them does."""
    items, lines = site_items(alignment, reference, candidate, backward=backward)
    there = [item for item in items if value_of(item, candidate, side="candidate") is not None]
    absent = [item for item in items if value_of(item, candidate, side="candidate") is None]
    lines += [f"{item.kind} of `{item.candidate}`: not in the candidate's trace" for item in absent]
    if backward:
        lines += without_cotangent(alignment, reference)
        gradients, more = gradient_items(match, reference, candidate)
        there += gradients
        lines += more
    return there + buffer_items(match, reference, candidate), lines


def without_cotangent(alignment: Alignment, reference: RecordedTrace) -> list[str]:
    """Lines on aligned sites of which a recorded reference holds no cotangent."""
    found = [
        p.reference
        for p in alignment.pairs
        if ("cotangent", p.reference) not in reference.values
        and ("cotangent", p.reference) not in reference.info.unobservable
        and is_float(reference.values["activation", p.reference])
    ]
    return [f"cotangent of `{site}`: not in the reference's trace" for site in found]


def _weights(match: Match, reference: RecordedTrace, candidate: RecordedTrace) -> list[SiteResult]:
    """Parameters of which both traces hold the values."""
    cases = [
        (item, pair.truth, pair.candidate.value)
        for item, pair in zip(weight_items(match), match.pairs, strict=True)
        if reference.held.issuperset(p.name for p in pair.references)
        and pair.candidate.name in candidate.held
        and pair.transform.function is None
    ]
    return judge_weights(cases)


# -- the report ------------------------------------------------------------------------------------


def report_of(
    judged: Judged,
    sides: tuple[RecordedTrace, RecordedTrace],
    match: Match,
    request: Request,
    missing: str = NOT_FORCED,
) -> Report:
    """The report of two recordings, yet without notes and details.

    Args:
        missing: the line that says what a recording cannot tell, where something departs.
    """
    departures, divergences = judged.departures, judged.divergences
    lines = [*judged.lines, *([missing] if divergences else [])]
    compared = any(result.phase == "weights" for result in departures.results)
    weights = {} if compared else weights_unknown(*sides)
    return Report(
        verdict=departures.verdict,
        seed=request.seed if sides[0].seed is None else sides[0].seed,
        reference=side_of(sides[0]),
        candidate=side_of(sides[1]),
        environment={**environment_of(*sides, request.tolerance), **weights},
        coverage=coverage_of(judged.alignment, match, request.skip, lines),
        divergences=divergences,
        sites=departures.results,
        name=request.name,
    )


def _notes(reference: RecordedTrace, candidate: RecordedTrace) -> list[str]:
    return [
        f"{side} ({trace.framework}): a recorded run"
        + (f" from {trace.origin}" if trace.origin else "")
        for side, trace in (("reference", reference), ("candidate", candidate))
    ]


def side_of(trace: RecordedTrace) -> Side:
    """Which framework made a recording, for the report."""
    return Side(trace.framework, trace.version, trace.device)


def weights_unknown(*sides: RecordedTrace | Adapter) -> dict[str, str]:
    """For the environment: whether a recording without the parameters' values left the weights out
    of what was compared."""
    traces = [side for side in sides if isinstance(side, RecordedTrace)]
    bare = any(not trace.held for trace in traces)
    has_weights = bare and any(_parameters(side) for side in sides)
    return {"weights": "not recorded, so neither given nor compared"} if has_weights else {}


def _parameters(side: RecordedTrace | Adapter) -> Sequence[Parameter]:
    return side.parameters if isinstance(side, RecordedTrace) else side.parameters()


def environment_of(
    reference: RecordedTrace, candidate: RecordedTrace, tolerance: Tolerance | None
) -> dict[str, Any]:
    """Versions and inputs, for the report."""
    from crosscheck import __version__

    versions = {t.framework: t.version for t in (reference, candidate) if t.version}
    return {
        "crosscheck": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": np.__version__,
        **versions,
        "inputs_sha256": reference.inputs_sha256,
        **({} if tolerance is None else {"tolerance": str(tolerance)}),
    }
