"""What `crosscheck.check` does differently where a side is a recorded run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crosscheck.adapters.base import Adapter
from crosscheck.adapters.trace import TraceAdapter
from crosscheck.aligning.alignment import Alignment
from crosscheck.cotangents import ReferenceCotangents
from crosscheck.errors import CannotCompare, InvalidArgument
from crosscheck.inputs import make_inputs
from crosscheck.judging.judge import Judge
from crosscheck.request import Request
from crosscheck.results import Report
from crosscheck.run import Runner
from crosscheck.trace import Trace
from crosscheck.traces.feed import inputs_sha256
from crosscheck.traces.judging import TraceJudge
from crosscheck.traces.offline import compare_traces, without_cotangent
from crosscheck.traces.record import record
from crosscheck.traces.recorded import RecordedTrace
from crosscheck.weights import Match, WeightMap

__all__ = [
    "compare_recorded",
    "cotangents_of",
    "fed",
    "free_run",
    "judge_of",
    "known_weights",
    "unrecorded",
    "weights_of",
]

NO_PARAMETERS = (
    "the reference's trace holds no parameters: the candidate keeps its own "
    "(record with --parameters to have them copied)"
)


def fed(
    sides: Sequence[Adapter], inputs: Any, *, seed: int, train: bool
) -> tuple[dict[str, np.ndarray], int, bool]:
    """Inputs, seed and mode of a check; where a side is recorded, they are those of the recording.

    Raises:
        InvalidArgument: no inputs, neither given nor recorded.
        CannotCompare: given inputs, or a mode, that are not the recording's.
    """
    traces = [side.trace for side in sides if isinstance(side, TraceAdapter)]
    if not traces:
        return make_inputs(inputs, seed=seed), seed, train
    seed = next((t.seed for t in traces if t.seed is not None), seed)
    if train and not traces[0].train:
        raise CannotCompare(
            f"train=True, but {_place(traces[0])} was recorded in eval mode.\n"
            "  Fix: record it with --train, or leave train out"
        )
    if inputs is not None:
        given = make_inputs(inputs, seed=seed)
        for trace in traces:
            if inputs_sha256(given) != trace.inputs_sha256:
                raise CannotCompare(
                    f"the inputs given are not those of {_place(trace)} (their SHA-256 differs).\n"
                    "  Fix: leave the inputs out, or give the arrays or specs and the seed that it "
                    "was recorded with, under the same names"
                )
        return given, seed, traces[0].train
    held = next((found for found in map(_held_inputs, traces) if found), {})
    if not held and len(traces) < len(sides):
        raise InvalidArgument(
            f"{_place(traces[0])} holds no inputs to feed the other side with: give inputs"
        )
    return held, seed, traces[0].train


def _held_inputs(trace: RecordedTrace) -> dict[str, np.ndarray]:
    """The inputs of a trace; if it holds none, what was seen at its input sites, if that is them"""
    if trace.inputs:
        return {name: np.array(value) for name, value in trace.inputs.items()}
    sites = {site.removeprefix("input:"): site for site in trace.info.inputs}
    seen = {name: np.array(trace.values["activation", site]) for name, site in sites.items()}
    return seen if inputs_sha256(seen) == trace.inputs_sha256 else {}


def _place(trace: RecordedTrace) -> str:
    return f"the trace `{trace.origin}`" if trace.origin else "the recorded trace"


def compare_recorded(
    sides: tuple[Adapter, Adapter], inputs: dict[str, np.ndarray], request: Request
) -> Report:
    """Compare with a recorded candidate; a reference that is a model is recorded first.

    Args:
        request: with the seed and the mode of the recording.
    """
    reference, candidate = sides
    assert isinstance(candidate, TraceAdapter)
    _refuse(request)
    if isinstance(reference, TraceAdapter):
        recorded = reference.trace
    else:
        recorded = record(
            reference,
            inputs,
            gradients=request.gradients,
            train=request.train,
            parameters=True,
            local_rounding=False,
            seed=request.seed,
            progress=request.say,
        )
    return compare_traces(recorded, candidate.trace, request)


def _refuse(request: Request) -> None:
    """Raise `InvalidArgument` for what a candidate that does not run cannot do."""
    refusals = {
        "optimizer=: the candidate is a recorded run, which cannot make a step; give the model "
        "itself": request.optimizer is not None,
        "candidate_inputs=: the candidate is a recorded run, which has its inputs; leave it "
        "out": request.candidate_inputs is not None,
        "zoom=True: a recorded candidate has no operations; leave zoom out": request.zoom,
    }
    for message in (message for message, asked in refusals.items() if asked):
        raise InvalidArgument(message)


# -- a recorded reference and a candidate that runs ------------------------------------------------


def free_run(reference: Runner) -> Trace:
    """The reference's free run: made now, or the recorded one (which stays in its file)."""
    adapter = reference.adapter
    if isinstance(adapter, TraceAdapter):
        return adapter.trace
    return reference.record(passive=not adapter.capabilities.transparent)


def cotangents_of(reference: Adapter, seed: int, skip: Sequence[str]) -> ReferenceCotangents:
    """What the reference's outputs receive: seeded numbers, or what was recorded."""
    if not isinstance(reference, TraceAdapter):
        return ReferenceCotangents(seed, skip)
    sent = reference.trace.output_cotangents()
    return ReferenceCotangents(seed, skip, {s: v for s, v in sent.items() if s not in skip})


def weights_of(reference: Adapter, weights: str | WeightMap) -> tuple[str | WeightMap, list[str]]:
    """How to go about the weights, and what the reader has to know of it.

    Raises:
        InvalidArgument: a map of parameters that the trace does not hold.
    """
    if not isinstance(reference, TraceAdapter) or weights == "keep":
        return weights, []
    trace = reference.trace
    if all(p.name in trace.held for p in trace.parameters) and trace.parameters:
        return weights, []
    if isinstance(weights, Mapping):
        raise InvalidArgument(
            f"weights=: {_place(trace)} does not hold the parameters to copy.\n"
            '  Fix: record it with --parameters, or weights="keep"'
        )
    return "keep", [NO_PARAMETERS]


def known_weights(match: Match, reference: Adapter) -> Match:
    """The part of a match whose values can be verified."""
    if not isinstance(reference, TraceAdapter):
        return match
    held = reference.trace.held
    return replace(match, pairs=tuple(m for m in match.pairs if m.reference.name in held))


def unrecorded(alignment: Alignment, reference: Trace) -> list[str]:
    """Lines on aligned sites of which a recorded reference holds no cotangent."""
    if not isinstance(reference, RecordedTrace):
        return []
    return without_cotangent(alignment, reference)


def judge_of(reference: Adapter) -> Callable[..., Judge]:
    """What makes the judge: a recorded reference brings its own noise floor."""
    if isinstance(reference, TraceAdapter):
        return functools.partial(TraceJudge, forced=True)
    return Judge
