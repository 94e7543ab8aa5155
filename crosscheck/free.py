"""Stages 2 and 4 of one check: both sides run on their own values, with the weights carried over.

Layers of equal shape are told apart by the order in which the models call them, which is known only
when they have run. The order of definition is the same nearly always: so the weights are matched by
that, the candidate runs, and only if its calls say something else is it loaded and run again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from crosscheck.adapters.base import Adapter, CotangentSource
from crosscheck.aligning.align import Aligner
from crosscheck.aligning.alignment import Alignment
from crosscheck.aligning.layout import fitting, relative_error
from crosscheck.aligning.pairing import pair_outputs
from crosscheck.comparisons import every_gradient, site_items
from crosscheck.cotangents import (
    CandidateCotangents,
    ReferenceCotangents,
    require_finite,
    require_outputs,
)
from crosscheck.errors import SideFailed
from crosscheck.judging.judge import Judge
from crosscheck.judging.reductions import Reductions
from crosscheck.judging.sifting import recallable
from crosscheck.judging.streamed import Streamed
from crosscheck.losses.stage import LossCotangents, LossStage
from crosscheck.observers import Recorder
from crosscheck.oracle import oracle
from crosscheck.pipeline import (
    Undecided,
    calls_of,
    in_execution_order,
    load,
    settled,
    transfer,
    with_vjps,
)
from crosscheck.request import Request
from crosscheck.results import SiteResult
from crosscheck.run import Runner
from crosscheck.trace import RunInfo, Trace
from crosscheck.traces.shared import Runs, first_runs
from crosscheck.traces.stages import cotangents_of, free_run, judge_of, weights_of
from crosscheck.trial import by_running
from crosscheck.weights import Fit, Match, WeightMap
from crosscheck.weights.trials import SAME

__all__ = [
    "FreeRuns",
    "ReferenceRun",
    "aligner_of",
    "run_candidate",
    "run_reference",
    "telling_what_agreed",
]

Sides = tuple[Adapter, Adapter]


@dataclass(frozen=True)
class ReferenceRun:
    """What the reference did before the candidate is looked at.

    Attributes:
        runner: with the cotangents that its outputs receive.
        free: its free run; with each layer's own VJP where that takes no second run.
        cotangents: None without a backward pass.
        shared: its runs, where other checks make or use them too.
    """

    runner: Runner
    free: Trace
    cotangents: ReferenceCotangents | None
    shared: Runs | None = None

    def with_vjps(self) -> ReferenceRun:
        """The same, with each layer's own VJP."""
        made = partial(with_vjps, self.runner, self.free)
        shared = self.shared
        return replace(self, free=made() if shared is None else shared.with_vjps(self.runner, made))

    def in_float64(self) -> Trace | None:
        """The free run in float64, without a backward pass; None if there is none."""
        if self.shared is not None:
            return self.shared.float64(self.runner)
        return oracle(replace(self.runner, cotangents=None))


@dataclass(frozen=True)
class FreeRuns:
    """Both sides have run.

    Attributes:
        candidate: with the cotangents that its outputs receive.
        free: the candidate's run; without a backward pass where only forced runs need one.
        streamed: what was compared while it ran, if anything was.
        notes: on the weights.
    """

    reference: ReferenceRun
    candidate: Runner
    match: Match
    free: Trace
    notes: tuple[str, ...] = ()
    streamed: Streamed | None = None


def run_reference(
    runner: Runner, request: Request, loss: LossStage | None, *, backward: bool
) -> ReferenceRun:
    """The reference's free run; ``runner`` is given the cotangents of its outputs."""
    adapter = runner.adapter
    request.say(f"reference ({adapter.framework}): forward{' and backward' if backward else ''}")
    cotangents = cotangents_of(adapter, runner.seed, request.skip) if backward else None
    if loss is not None and backward:
        cotangents = LossCotangents(runner.seed, request.skip, stage=loss)
    runner.cotangents = cotangents
    shared = first_runs(runner, request.say)
    free = free_run(runner) if shared is None else shared.free
    require_outputs(free.outputs(), "reference")
    return ReferenceRun(runner, free, cotangents, shared)


def run_candidate(
    sides: Sides, candidate: Runner, truth: ReferenceRun, request: Request, match: Match | None
) -> FreeRuns:
    """Carry the weights over, unless ``match`` says that this was done, and run the candidate.

    Raises:
        CannotCompare: parameters or outputs without a counterpart, or nothing finite.
        SideFailed: the candidate raised; with what had been compared until then.
    """
    one = _Candidate(sides, candidate, truth, request)
    if match is None:
        match, free, notes = one.with_weights()
    else:
        free, notes = one.run(match), []
    if truth.cotangents is not None:
        candidate.cotangents = one.cotangents
    require_outputs(free.outputs(), "candidate")
    require_finite(truth.free, free)
    gone = (one.streamed.dropped, one.streamed.gradients) if one.streamed else ()
    free = recallable(free, candidate, *gone)
    runs = FreeRuns(truth, candidate, match, free, tuple(notes), one.streamed)
    if one.cotangents is not None and one.streamed is None and candidate.adapter.in_place:
        with telling_what_agreed(runs):  # PyTorch refuses to go back through some of these
            candidate.run(lambda site, kind, value: None, passive=True)
    return runs


def aligner_of(runs: FreeRuns, request: Request) -> Aligner:
    """What pairs the sites of the two runs."""
    return _aligner(runs.reference.free, runs.free, request, runs.match)


def _aligner(reference: Trace, candidate: Trace, request: Request, match: Match) -> Aligner:
    return Aligner(
        reference, candidate, explicit=request.sites, anchors=match.anchors(), skip=request.skip
    )


class _Candidate:
    """The candidate of one check while it is given its weights."""

    def __init__(
        self, sides: Sides, candidate: Runner, truth: ReferenceRun, request: Request
    ) -> None:
        self._sides, self._runner = sides, candidate
        self._truth, self._request = truth, request
        self._tried: tuple[Match, Trace] | None = None
        self.streamed: Streamed | None = None
        self.cotangents: CandidateCotangents | None = None
        if truth.cotangents is not None:
            self.cotangents = CandidateCotangents(
                truth.free, truth.cotangents.given, request.sites, request.skip
            )

    def with_weights(self) -> tuple[Match, Trace, list[str]]:
        """Match, load where values are to be copied, and run."""
        weights, notes = weights_of(self._sides[0], self._request.weights)
        self._request.say("weights: " + ("verify" if weights == "keep" else "match, copy, verify"))
        ours = tuple(self._truth.free.info.layers)
        match = settled(*self._sides, weights, (ours, ()), self._try)
        if match is None:  # what names and shapes leave open takes more runs
            return *self._found_by_running(weights), notes
        if self._tried is None and weights != "keep":
            load(match, self._sides[1])
        free = self._tried[1] if self._tried else self.run(match)
        calls = tuple(free.info.layers)
        defined = self._sides[1].parameters()
        if in_execution_order(defined, calls) == defined:
            return match, free, notes
        again = settled(*self._sides, weights, (ours, calls), lambda match: Fit(0, 0.0))
        if again is not None and _same(match, again):
            return again, free, notes
        match = self._transferred(weights, calls)
        return match, free if weights == "keep" else self.run(match), notes

    def _found_by_running(self, weights: str | WeightMap) -> tuple[Match, Trace]:
        """The match that fits best, and the run with it: the one that was made before, if nothing
        better turns up (a defect leaves no match with right outputs)."""
        tried = self._tried
        calls = tuple(tried[1].info.layers) if tried else calls_of(self._runner)
        match = self._transferred(weights, calls)
        return match, tried[1] if tried and _same(match, tried[0]) else self.run(match)

    def _try(self, match: Match) -> Fit:
        """What names and shapes leave open is right if the outputs are. The run is kept."""
        load(match, self._sides[1])
        try:
            run = self.run(match)
        except SideFailed:
            raise Undecided from None
        self._tried = match, run
        error = self._error(run)
        if error >= SAME:
            raise Undecided
        return Fit(0, error)

    def _error(self, run: Trace) -> float:
        """The largest relative error of an output, in the layout in which it is least."""
        truth, worst = self._truth.free, 0.0
        request = self._request
        for r, c in pair_outputs(truth, run, explicit=request.sites, skip=request.skip):
            ours, theirs = truth.values["activation", r], run.values["activation", c]
            errors = [
                relative_error(layout.to_reference(theirs), ours)
                for layout in fitting(ours.shape, theirs.shape)
            ]
            worst = max(worst, min(errors, default=math.inf))
        return worst

    def run(self, match: Match) -> Trace:
        """The free run; where it fails, what had been compared until then goes along.

        Forced runs make the backward pass that is judged. The free one makes it as well if it is
        the only run, or the only one that shows what the framework does without taps.
        """
        request, truth = self._request, self._truth
        adapter = self._sides[1]
        request.say(f"candidate ({adapter.framework}): free run")
        quick = request.effort == "quick"
        needed = quick or not adapter.capabilities.transparent
        cotangents: CotangentSource | None = self.cotangents if needed else None
        recorder = Recorder(borrows=adapter.capabilities.lends)
        if quick and cotangents is not None and adapter.capabilities.transparent:
            # The thorough check, should it come to that, needs no free cotangents of such a side.
            recorder = self.streamed = self._streamed(match, cotangents)
            cotangents = self.streamed.sent
        try:
            return replace(self._runner, cotangents=cotangents).record(
                recorder=recorder, passive=True
            )
        except SideFailed as failure:
            if isinstance(recorder, Streamed) and recorder.dropped:
                recorder = Recorder()
                replace(self._runner, cotangents=None).record(recorder=recorder, passive=True)
            told = with_comparisons(failure, recorder, truth, match)
            if not told.compared and request.candidate_inputs is None:
                told = told.with_comparisons((), _about_inputs(self._runner, failure))
            raise told from failure.__cause__

    def _streamed(self, match: Match, cotangents: CotangentSource) -> Streamed:
        request, truth = self._request, self._truth.free

        def aligned(forward: Trace) -> Alignment:
            return _aligner(truth, forward, request, match).alignment()

        return Streamed(
            truth,
            aligned,
            cotangents,
            every_gradient(match, truth),
            self._runner.inputs,
            tolerance=request.tolerance,
            borrows=self._sides[1].capabilities.lends,
        )

    def _transferred(self, weights: str | WeightMap, calls: tuple[str, ...]) -> Match:
        request, reference = self._request, self._truth.free
        trial = by_running(self._runner, reference, request.sites, request.skip)
        return transfer(*self._sides, weights, trial, (reference.info.layers, calls))


def _about_inputs(candidate: Runner, failure: SideFailed) -> str:
    """What may help where a model fails before anything is compared: its inputs may be meant to be
    others than the reference's, images and sequences in another layout first of all."""
    shapes = [x.shape for x in candidate.inputs.values() if x.ndim > 2]
    by_the_code = isinstance(failure.__cause__, (AttributeError, ImportError, NameError))
    if not shapes or by_the_code or failure.stage != "forward":
        return ""
    return (
        f"it was given the reference's inputs as they are, {shapes[0]}; where it takes them in "
        'another layout, say so with candidate_inputs="channels_last" (--candidate-inputs)'
    )


@contextmanager
def telling_what_agreed(runs: FreeRuns) -> Iterator[None]:
    """A failure of the candidate's forced backward pass says what had been compared until then: it
    fails freely just as well."""
    try:
        yield
    except SideFailed as failure:
        recorder = Recorder()
        try:
            runs.candidate.record(recorder=recorder, passive=True)
        except SideFailed as again:
            told = with_comparisons(again, recorder, runs.reference, runs.match)
            raise told from again.__cause__
        raise failure


def with_comparisons(
    failure: SideFailed, recorder: Recorder, truth: ReferenceRun, match: Match
) -> SideFailed:
    """A failure of the candidate, with what it had in common with the reference until then."""
    side = truth.runner.adapter
    judge = judge_of(side)(
        reference=truth.free,
        oracle=oracle(truth.runner),
        free_oracle=None,
        free_candidate=truth.free,
        reductions=Reductions(side.parameters(), truth.free, frozenset()),
    )
    return failure.with_comparisons(compared_so_far(truth.free, recorder, match.anchors(), judge))


def compared_so_far(
    reference: Trace, recorder: Recorder, anchors: Sequence[tuple[str, str]], judge: Judge
) -> tuple[SiteResult, ...]:
    """What a candidate that raised had in common with the reference until then (free run)."""
    if not recorder.values:
        return ()
    bare = RunInfo(reference.info.inputs, (), reference.info.layers, {}, {})
    inputs = tuple(s for k, s in recorder.values if k == "activation" and s.startswith("input:"))
    partial = Trace(recorder.values, RunInfo(inputs, (), {}, {}, {}), "")
    whole = replace(reference, info=bare)
    alignment = Aligner(whole, partial, explicit={}, anchors=anchors).alignment()
    # What no longer matches by value is found by the weights: else only the good would be listed.
    known = {p.reference for p in alignment.pairs}, {p.candidate for p in alignment.pairs}
    ours, theirs = reference.activations(), partial.activations()
    more = {
        r: c
        for r, c in anchors
        if r in ours and c in theirs and r not in known[0] and c not in known[1]
    }
    if more:
        alignment = Aligner(whole, partial, explicit=more, anchors=anchors).alignment()
    items, _ = site_items(alignment, reference, partial, backward=False)
    return tuple(
        judge.judge(item, partial) for item in items if not item.reference.startswith("input:")
    )


def _same(one: Match, other: Match) -> bool:
    """Whether two matches load the same."""
    made = [
        {m.candidate.name: (m.reference_name, m.transform, len(m.tied)) for m in match.pairs}
        for match in (one, other)
    ]
    return made[0] == made[1]
