"""Compare a sketch with a run of a candidate: the stages of a check against a few numbers.

As with two recordings nothing can be forced: each value is compared as it came out, and the first
departure is blamed (`crosscheck.traces.offline`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crosscheck.adapters.base import Adapter
from crosscheck.align import Aligner
from crosscheck.comparisons import Item, value_of
from crosscheck.devices import place
from crosscheck.errors import CannotCompare, InvalidArgument
from crosscheck.judging import in_reference_layout
from crosscheck.layout import Layout
from crosscheck.request import Request
from crosscheck.results import Coverage, Report, SiteResult
from crosscheck.sketches.align import Shadows, shadows
from crosscheck.sketches.judge import judged, read, unlike
from crosscheck.sketches.make import Record, RecordKey, Sketch
from crosscheck.sketches.run import candidate_run, inputs_of
from crosscheck.traces.departures import Departures, locate
from crosscheck.traces.offline import (
    align_recorded,
    backward_of,
    environment_of,
    items_of_traces,
    require_same_run,
    side_of,
)
from crosscheck.traces.recorded import RecordedTrace
from crosscheck.traces.rounding import item_key
from crosscheck.weights import Match, Matched, Transform, match_parameters

__all__ = ["check_sketch"]

NOT_FORCED = (
    "introduced against inherited behind the first departure: a sketch holds no values to force "
    "the candidate onto; compare with a full trace to tell them apart"
)
NO_PARAMETERS = (
    "weights not compared: the sketch holds no parameters (--sketch or parameters=True keeps them)"
)
PACKED = "{} of `{}`: its layout takes more than a permutation, which a sketch cannot undo"


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

    def fed() -> dict[str, np.ndarray]:
        from crosscheck.single import inputs_of_candidate

        ours = inputs_of(sketch, inputs, seed=request.seed)
        return inputs_of_candidate(request.candidate_inputs, ours, request.seed)

    run = candidate_run(
        sketch,
        candidate,
        fed,
        gradients=request.gradients,
        sites=request.sites,
        skip=request.skip,
        progress=request.say,
    )
    return compare_sketch(sketch, run, request)


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
    given = request.weights if isinstance(request.weights, Mapping) else {}
    match = match_parameters(sketch.parameters, candidate.parameters, given=given)
    match = match.choosing(_settled(match, sketch, candidate))
    request.say("align")
    aligner = Aligner(
        sides.reference,
        sides.candidate,
        explicit=request.sites or _identical(sketch, candidate, request.skip),
        anchors=match.anchors(),
        skip=request.skip,
    )
    alignment = align_recorded(aligner, sides.candidate)
    if not alignment.pairs:
        raise CannotCompare("no site of the candidate could be paired with one of the sketch")
    backward, missing = backward_of(sides.reference, sides.candidate, alignment, request.gradients)
    items, lines = items_of_traces(
        sides.reference, sides.candidate, alignment, match, backward=backward
    )
    bench = _Bench(sketch, candidate, sides)
    results = bench.weights(match) + [r for item in items if (r := bench.judge(item)) is not None]
    departures = Departures.of(results)
    divergences = locate(departures, alignment, sides.reference, sides.candidate)
    return Report(
        verdict=departures.verdict,
        seed=request.seed if sketch.seed is None else sketch.seed,
        reference=side_of(sides.reference),
        candidate=side_of(candidate),
        environment=environment_of(sides.reference, candidate, None),
        coverage=Coverage(
            aligned=len(alignment.pairs),
            unmatched_reference=alignment.unmatched_reference,
            unmatched_candidate=alignment.unmatched_candidate,
            skipped=tuple(request.skip),
            parameters_matched=len(match.pairs),
            unmatched_reference_parameters=tuple(p.name for p in match.unmatched_reference),
            unmatched_candidate_parameters=tuple(p.name for p in match.unmatched_candidate),
            not_compared=(
                *missing,
                *lines,
                *bench.lines,
                *([NOT_FORCED] if divergences else []),
            ),
        ),
        divergences=divergences,
        sites=departures.results,
        notes=tuple(_notes(sketch)),
        name=request.name,
    )


def _identical(sketch: Sketch, candidate: RecordedTrace, skip: Sequence[str]) -> dict[str, str]:
    """Every site paired with its namesake, if it is the same model in the same framework."""
    ours = [name for kind, name in sketch.order if kind == "activation"]
    if sketch.framework != candidate.framework or ours != list(candidate.activations()):
        return {}
    return {site: site for site in ours if site not in skip}


def _notes(sketch: Sketch) -> list[str]:
    where = f" from {sketch.origin}" if sketch.origin else ""
    k = sketch.plan.rows
    held = any(kind == "parameter" for kind, _ in sketch.records)
    return [
        *([] if held else [NO_PARAMETERS]),
        f"reference ({sketch.framework}): a sketch{where}; each value is {k} projections and "
        f"{sketch.plan.sample} sampled elements (those of up to {k} elements are whole)",
        f"what a sketch cannot see: a difference is estimated to within {100 * (2 / k) ** 0.5:.0f}"
        " % of its square (one standard deviation); one that is spread out and stands at 32 times "
        f"the floor passes for agreement (8 times) with a probability of at most {missed(k):.1g}, "
        "a single wrong element never; docs/traces.md",
    ]


def missed(rows: int, share: float = 1 / 16) -> float:
    """The Chernoff bound on P(‖Sd‖² ≤ share·‖d‖²) for a difference that is spread out."""
    return math.pow(share * math.exp(1.0 - share), rows / 2)


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


@dataclass
class _Bench:
    """Judges items; knows the values of the candidate and the records of the sketch."""

    sketch: Sketch
    candidate: RecordedTrace
    sides: Shadows

    def __post_init__(self) -> None:
        self.lines: list[str] = []

    def judge(self, item: Item) -> SiteResult | None:
        """One item; None, and a line, where a sketch cannot say."""
        raw = value_of(item, self.candidate, side="candidate")
        record = self._record(item)
        if raw is None or record is None or item.pullback is not None:
            self.lines.append(PACKED.format(item.phase.replace("_", " "), item.reference))
            return None
        layout = item.layout if isinstance(item.layout, Transform) else self._layout(item, raw)
        value = None if layout is None else layout.to_reference(raw)
        if value is None or value.shape != record.shape:
            return unlike(item, raw, record)
        return judged(item, value, raw, record, self.sketch.plan)

    def _record(self, item: Item) -> Record | None:
        """The record of an item; of several slots, whose values are added up, their sum."""
        kind, first = item_key(item)
        keys: list[RecordKey] = [(kind, site) for site in (first, *item.also_reference)]
        known = [
            self.sketch.record(k) for k in keys if k in self.sketch.records or k in self.sketch.same
        ]
        if len(known) <= 1:
            return known[0] if known else None
        total = known[0].numbers
        for other in known[1:]:
            n = other.numbers
            total = replace(
                total,
                facts=total.facts + n.facts,
                projected=total.projected + n.projected,
                sampled=total.sampled + n.sampled,
            )
        floor = sum(r.floor[0] for r in known), sum(r.floor[1] for r in known)
        return replace(known[0], numbers=total, floor=floor)

    def _layout(self, item: Item, raw: np.ndarray) -> Layout | None:
        record = self._record(item)
        assert record is not None
        outputs = self.sketch.info.outputs, self.candidate.info.outputs
        merged = item.reference not in outputs[0] and item.candidate not in outputs[1]
        return self.sides.layouts.between(record.shape, raw.shape, merged=merged)

    def weights(self, match: Match) -> list[SiteResult]:
        """Every matched parameter of which both sides hold the value."""
        found = []
        for m in match.pairs:
            record = self.sketch.records.get(("parameter", m.reference_name))
            if record is None or m.candidate.name not in self.candidate.held:
                continue
            name = m.candidate.name
            item = Item("weights", "parameter", m.reference_name, name, m.transform, "parameter")
            if not m.is_permutation or len(m.references) != 1:
                self.lines.append(PACKED.format("weights", m.reference_name))
                continue
            like = np.broadcast_to(np.float32(0), record.shape)
            value = in_reference_layout(item, m.candidate.value, like)
            found.append(
                unlike(item, m.candidate.value, record)
                if value is None
                else judged(item, value, m.candidate.value, record, self.sketch.plan)
            )
        return found
