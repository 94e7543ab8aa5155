"""Compare a sketch with a run of a candidate, or with the sketch of one: the stages of a check.

As with two recordings nothing can be forced: each value is compared as it came out, and the first
departure is blamed (`crosscheck.traces.offline`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crosscheck.adapters.base import Adapter, Parameter
from crosscheck.aligning.align import Aligner
from crosscheck.aligning.alignment import Alignment
from crosscheck.candidate_inputs import inputs_of_candidate
from crosscheck.details.stage import weight_map
from crosscheck.devices import place
from crosscheck.errors import CannotCompare, InvalidArgument
from crosscheck.request import Request
from crosscheck.results import Details, Report
from crosscheck.sketches.align import Shadows, shadows, shadows_of_two
from crosscheck.sketches.bench import Bench, RunBench, SketchBench
from crosscheck.sketches.judge import read
from crosscheck.sketches.make import Record, Sketch
from crosscheck.sketches.probability import kept, sees
from crosscheck.sketches.project import Plan
from crosscheck.sketches.run import candidate_run, inputs_of
from crosscheck.traces.closer import Judged, judge_closely
from crosscheck.traces.departures import Departures, locate
from crosscheck.traces.offline import (
    backward_of,
    items_of_traces,
    report_of,
    require_same_run,
)
from crosscheck.traces.recorded import RecordedTrace
from crosscheck.weights import Match, Matched, Transform, match_parameters

__all__ = ["check_sketch", "compare_sketches"]

NOT_FORCED = (
    "introduced against inherited behind the first departure: a sketch holds no values to force "
    "the candidate onto; compare with a full trace to tell them apart"
)
NO_PARAMETERS = (
    "weights not compared: the sketch holds no parameters (--sketch or parameters=True keeps them)"
)


def check_sketch(sketch: Sketch, candidate: Adapter, inputs: Any, request: Request) -> Report:
    """Does a run of the candidate agree with the sketched one, and if not, where does it depart?

    Args:
        inputs: of the reference, where the sketch holds none.

    Raises:
        InvalidArgument: options that a sketch has no values for.
        CannotCompare: other inputs, another mode, outputs without a counterpart.
        SideFailed: the candidate raised.
    """
    _refuse(request)
    if request.train and not sketch.train:
        raise CannotCompare(
            "train=True, but the sketch was recorded in eval mode.\n"
            "  Fix: record it with --train, or leave train out"
        )
    place((candidate, candidate), request.device)  # a recorded one stays where it ran

    turned: list[str] = []

    def fed() -> dict[str, np.ndarray]:
        ours = inputs_of(sketch, inputs, seed=request.seed)
        asked = request.candidate_inputs
        theirs, notes = inputs_of_candidate(asked, ours, request.seed, candidate)
        turned.extend(notes)
        return theirs

    run = candidate_run(
        sketch,
        candidate,
        fed,
        gradients=request.gradients,
        sites=request.sites,
        skip=request.skip,
        progress=request.say,
    )
    report = compare_sketch(sketch, run, request)
    return replace(report, notes=(*turned, *report.notes))


def _refuse(request: Request) -> None:
    given = {
        "loss": request.loss is not None,
        "optimizer": request.optimizer is not None,
        "zoom": request.zoom,
        "tolerance": request.tolerance is not None,
    }
    for name in (name for name, there in given.items() if there):
        raise InvalidArgument(
            f"{name}=: the reference is a sketch, which holds no values for that.\n"
            "  Fix: record a full trace (without --sketch), or leave it out"
        )


def compare_sketch(sketch: Sketch, candidate: RecordedTrace, request: Request) -> Report:
    """The same for a candidate that ran.

    Raises:
        CannotCompare: other inputs, another mode, outputs without a counterpart.
    """
    request.say(f"sketch the candidate's {len(candidate.values)} values")
    sides = shadows(sketch, candidate)
    require_same_run(sides.reference, candidate)
    match = _match(sketch, candidate.parameters, request)
    match = match.choosing(_settled(match, sketch, candidate))
    return _report(RunBench(sketch, sides, candidate), match, request)


def compare_sketches(reference: Sketch, candidate: Sketch, request: Request) -> Report:
    """Compare the sketches of two runs, neither of which is there any more.

    Raises:
        InvalidArgument: options that a sketch has no values for.
        CannotCompare: other inputs or another mode; sketches whose numbers cannot be subtracted.
    """
    _refuse(request)
    ours, theirs = reference.plan, candidate.plan
    if ours != theirs:
        differ = "projected with other seeds" if ours.seed != theirs.seed else "of other sizes"
        raise CannotCompare(
            f"the two sketches are {differ}: {_planned(ours)} against {_planned(theirs)}, whose "
            "numbers cannot be subtracted.\n  Fix: compare with the model or with a full trace of "
            "it, or record both with one --seed and of sizes that give as many projections"
        )
    sides = shadows_of_two(reference, candidate)
    require_same_run(sides.reference, sides.candidate)
    match = _match(reference, candidate.parameters, request)
    return _report(SketchBench(reference, sides, candidate), match, request)


def _planned(plan: Plan) -> str:
    width = "float64" if plan.wide else "float32"
    return f"{plan.rows} projections in {width}, seed {plan.seed}"


def _match(sketch: Sketch, parameters: Sequence[Parameter], request: Request) -> Match:
    given = request.weights if isinstance(request.weights, Mapping) else {}
    return match_parameters(sketch.parameters, parameters, given=given)


def _report(bench: Bench, match: Match, request: Request) -> Report:
    """Align, judge and locate."""
    sides = bench.sides
    pair = sides.reference, sides.candidate
    request.say("align")
    aligner = Aligner(
        *pair,
        explicit=request.sites or _identical(sides, request.skip),
        anchors=match.anchors(),
        skip=request.skip,
    )
    weights = bench.weights(match)

    def judge(alignment: Alignment) -> Judged:
        if not alignment.pairs:
            raise CannotCompare("no site of the candidate could be paired with one of the sketch")
        backward, missing = backward_of(*pair, alignment, request.gradients)
        items, lines = items_of_traces(*pair, alignment, match, backward=backward)
        request.say(f"judge {len(items)} values")
        results = [*weights, *(r for item in items if (r := bench.judge(item)) is not None)]
        departures = Departures.of(results)
        divergences = locate(departures, alignment, *pair)
        return Judged(alignment, items, [*missing, *lines], departures, divergences)

    judged = judge_closely(aligner, *pair, judge)
    judged = replace(judged, lines=[*judged.lines, *bench.lines.values()])
    return replace(
        report_of(judged, pair, match, request, missing=NOT_FORCED),
        notes=tuple(_notes(bench.sketch)),
        details=Details(weights=weight_map(match)),
    )


def _identical(sides: Shadows, skip: Sequence[str]) -> dict[str, str]:
    """Every site paired with its namesake, if it is the same model in the same framework."""
    ours, theirs = list(sides.reference.activations()), list(sides.candidate.activations())
    if sides.reference.framework != sides.candidate.framework or ours != theirs:
        return {}
    return {site: site for site in ours if site not in skip}


def _notes(sketch: Sketch) -> list[str]:
    where = f" from {sketch.origin}" if sketch.origin else ""
    held = any(kind == "parameter" for kind, _ in sketch.records)
    return [
        *([] if held else [NO_PARAMETERS]),
        f"reference ({sketch.framework}): a sketch{where}; {kept(sketch.plan)}",
        f"what a sketch cannot see: {sees(sketch)}; docs/traces.md",
    ]


def _settled(match: Match, sketch: Sketch, candidate: RecordedTrace) -> dict[str, Transform]:
    """Layouts of parameters that the shapes leave open, by the sketched values."""
    found = {}
    for m in match.ambiguous():
        record = sketch.records.get(("parameter", m.reference.name))
        if record is None or m.candidate.name not in candidate.held:
            continue
        options = (m.transform, *m.alternatives)
        errors = [_apart(one, m, record, sketch) for one in options]
        found[m.candidate.name] = options[errors.index(min(errors))]
    return found


def _apart(transform: Transform, m: Matched, record: Record, sketch: Sketch) -> float:
    value = transform.to_reference(m.candidate.value)
    if value is None or value.shape != record.shape:
        return float("inf")
    return read(value, record, sketch.plan).l2
