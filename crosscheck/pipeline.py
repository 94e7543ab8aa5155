"""The stages of one check at work. `crosscheck.single` reads as the list of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.adapters.base import Adapter, Parameter
from crosscheck.align import Aligner
from crosscheck.alignment import Alignment
from crosscheck.comparisons import Item, buffer_items, gradient_items, site_items, weight_items
from crosscheck.cotangents import CandidateCotangents
from crosscheck.errors import CannotCompare, SideFailed
from crosscheck.judging import Judge, judge_weights
from crosscheck.losses.judging import LossJudge
from crosscheck.noise import Tolerance
from crosscheck.observers import Forcer, Key, Recorder
from crosscheck.reductions import Reductions
from crosscheck.results import SiteResult
from crosscheck.run import Runner
from crosscheck.settle import settle
from crosscheck.trace import RunInfo, Trace
from crosscheck.weights import (
    Fit,
    Match,
    WeightMap,
    match_parameters,
    settle_by_values,
)
from crosscheck.weights import settle as settle_match

__all__ = [
    "align",
    "calls_of",
    "judge_all",
    "match_in_order",
    "oracle",
    "transfer",
    "verify_weights",
    "with_vjps",
]

MOST_ROUNDS = 40
SINGLE_ROUNDS = 12  # after so many rounds, take what is likely, not only what is next


# -- stage 2 ---------------------------------------------------------------------------------------


def transfer(
    reference: Adapter,
    candidate: Adapter,
    weights: str | WeightMap,
    trial: Callable[[Match], Fit],
    calls: tuple[Iterable[str], Iterable[str]] = ((), ()),
) -> Match:
    """Match the parameters and, unless ``weights`` is ``"keep"``, copy them over.

    Args:
        trial: how well the candidate does after loading a match; decides by running what names
            and shapes leave open (square matrices of unknown axis order, the order of gates).
        calls: of either side, the sites in the order in which they were called. Layers of equal
            shape are told apart by it: models run in the same order more often than they are
            written in it.

    Raises:
        CannotCompare: parameters are left over, or what was loaded does not read back.
    """
    given = weights if isinstance(weights, Mapping) else {}
    match = match_in_order(reference, candidate, calls, given=given, held=weights == "keep")
    if weights == "keep":
        return settle_by_values(match, {p.name: p.value for p in candidate.parameters()})
    match.require_complete()
    match = settle_match(match, trial)
    candidate.load(match.values())
    _verify_loaded(match, candidate)
    return match


def match_in_order(
    reference: Adapter,
    candidate: Adapter,
    calls: tuple[Iterable[str], Iterable[str]],
    *,
    given: WeightMap,
    held: bool = False,
) -> Match:
    """`match_parameters` with either side's parameters in the order in which its layers run."""
    return match_parameters(
        in_execution_order(reference.parameters(), calls[0]),
        in_execution_order(candidate.parameters(), calls[1]),
        given=given,
        held=held,
    )


def in_execution_order(
    parameters: Sequence[Parameter], calls: Iterable[str]
) -> tuple[Parameter, ...]:
    """Parameters by the first call of their layers; one whose layer is no site stays behind the
    one before it."""
    first: dict[str, int] = {}
    for i, site in enumerate(calls):
        first.setdefault(site.partition("#")[0], i)
    places, last = [], -1
    for parameter in parameters:
        last = first.get(parameter.layer, last)
        places.append(last)
    ranked = sorted(range(len(parameters)), key=places.__getitem__)
    return tuple(parameters[i] for i in ranked)


def calls_of(runner: Runner) -> tuple[str, ...]:
    """The sites of a model in the order of their first calls, whatever its weights hold; nothing
    where it does not run with them."""
    try:
        return tuple(runner.run(lambda site, kind, value: None, passive=True).layers)
    except SideFailed:
        return ()


def _verify_loaded(match: Match, candidate: Adapter) -> None:
    now = {p.name: p.value for p in candidate.parameters()}
    for name, value in match.values().items():
        if not np.array_equal(now[name], value.astype(now[name].dtype), equal_nan=True):
            raise CannotCompare(
                f"candidate parameter `{name}` does not hold what was loaded into it; is it "
                "computed from something else, or shared with another parameter?"
            )


def verify_weights(match: Match, candidate: Adapter) -> list[SiteResult]:
    """Put every matched parameter side by side, as it is now."""
    now = {p.name: p.value for p in candidate.parameters()}
    steps = candidate.steps.parameters
    return [
        judge_weights(
            item, pair.truth, now[pair.candidate.name], steps.get(pair.candidate.name, 0.0)
        )
        for item, pair in zip(weight_items(match), match.pairs, strict=True)
    ]


# -- stages 4 and 5 --------------------------------------------------------------------------------


def align(
    aligner: Aligner, reference: Trace, free: Trace, candidate: Runner
) -> tuple[Alignment, Trace]:
    """Force the candidate onto what is aligned, align what matches then, until nothing is new.

    Returns:
        The alignment, and the candidate's trace forced at exactly its sites.
    """
    alignment = aligner.alignment(free)
    for attempt in range(MOST_ROUNDS):
        _fix_output_layouts(candidate, alignment)
        latest = candidate.record(Forcer(alignment.forced_on_candidate(reference)))
        changed = (
            aligner.take_back(latest)
            or aligner.match_values(latest)
            or aligner.refine(latest, at_once=attempt >= SINGLE_ROUNDS)
        )
        previous, alignment = alignment, aligner.alignment(latest)
        if not changed and set(previous.edges) == set(alignment.edges):
            return alignment, latest
    return alignment, candidate.record(Forcer(alignment.forced_on_candidate(reference)))


def _fix_output_layouts(candidate: Runner, alignment: Alignment) -> None:
    if isinstance(candidate.cotangents, CandidateCotangents):
        layouts = {p.candidate: p.layout for p in alignment.pairs if p.by in ("output", "explicit")}
        candidate.cotangents.layouts = layouts


def with_vjps(reference: Runner, free: Trace) -> Trace:
    """The reference's free trace, with each layer's own VJP (``input_cotangent``) added.

    A free run is passive, so that it is what the model computes when nobody looks; it cannot show
    those. A second run, forced onto the first one's values, adds them and changes nothing else.
    """
    if reference.cotangents is None or not reference.adapter.capabilities.forcing:
        return free
    again = reference.record(Forcer(free.values))
    vjps = {key: value for key, value in again.values.items() if key[0] == "input_cotangent"}
    hidden = free.info.unobservable | again.info.unobservable
    info = replace(free.info, unobservable=hidden)
    return replace(free, values={**free.values, **vjps}, info=info)


def oracle(reference: Runner, forced: Mapping[Key, np.ndarray] | None = None) -> Trace | None:
    """The reference in float64, free or forced; None if it does not run in float64."""
    if not reference.adapter.capabilities.float64:
        return None
    observers = () if forced is None else (Forcer(forced),)
    try:
        return reference.record(*observers, float64=True, passive=forced is None)
    except SideFailed:
        return None  # it ran in its own precision: what fails is float64 (fused kernels, casts)


# -- stages 6 and 7 --------------------------------------------------------------------------------


@dataclass
class Judged:
    """All results of a check, what could not be compared, and who judged (oracle, floors)."""

    by_item: Mapping[Item, SiteResult]
    not_compared: list[str]
    judge: Judge

    @property
    def results(self) -> list[SiteResult]:
        return list(self.by_item.values())


@dataclass
class Evidence:
    """Everything that judging may consult."""

    reference: Runner
    candidate: Runner
    alignment: Alignment
    free_reference: Trace
    free_candidate: Trace
    forced: Trace
    match: Match
    tolerance: Tolerance | None
    seed: int
    make_judge: Callable[..., Judge] = Judge
    loss: LossJudge | None = None


def judge_all(evidence: Evidence, free_oracle: Trace | None, *, backward: bool) -> Judged:
    """Judge every comparison; look again (`settle`) where something looks wrong."""
    e = evidence
    items, missing = site_items(e.alignment, e.free_reference, e.forced, backward=backward)
    if backward:
        gradients, more = gradient_items(e.match, e.free_reference, e.forced)
        items += gradients
        missing += more
    items += buffer_items(e.match, e.free_reference, e.forced)
    on_reference = e.alignment.forced_on_reference(e.free_reference)
    judge = e.make_judge(
        reference=e.free_reference,
        oracle=oracle(e.reference, on_reference),
        free_oracle=free_oracle,
        free_candidate=e.free_candidate,
        reductions=Reductions(
            e.reference.adapter.parameters(),
            e.free_reference,
            frozenset(p.reference for p in e.alignment.pairs),
        ),
        tolerance=e.tolerance,
        steps=e.candidate.adapter.steps,
    )
    results = {item: judge.judge(item, e.forced) for item in items}
    settle(e, judge, results)
    return Judged(results, missing, judge)


# -- a candidate that fails ------------------------------------------------------------------------


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
