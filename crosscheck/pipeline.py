"""The stages of one check at work. `crosscheck.single` reads as the list of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.adapters.base import Adapter, Parameter
from crosscheck.align import Aligner
from crosscheck.alignment import Alignment
from crosscheck.compare import compare
from crosscheck.comparisons import (
    Item,
    buffer_items,
    gradient_items,
    site_items,
    value_of,
    weight_items,
)
from crosscheck.cotangents import CandidateCotangents
from crosscheck.errors import CannotCompare, SideFailed
from crosscheck.judging import (
    Judge,
    in_reference_layout,
    judge_weights,
    shrinks,
    without_fill,
)
from crosscheck.noise import DIVERGE, Tolerance
from crosscheck.observers import Forcer, Key, Recorder
from crosscheck.perturb import measure
from crosscheck.reductions import Reductions
from crosscheck.results import SiteResult
from crosscheck.run import Runner
from crosscheck.trace import RunInfo, Trace
from crosscheck.weights import (
    Fit,
    Match,
    WeightMap,
    match_parameters,
    settle,
    settle_by_values,
)

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
SETTLED = 4.0 * DIVERGE
"""Ratio up to which a run of both sides in float64 decides."""
ILL_CONDITIONED = "ill-conditioned: judged by what rounding of its inputs does to the oracle"


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
    match = settle(match, trial)
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
    return [
        judge_weights(item, pair.truth, now[pair.candidate.name])
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

    results: list[SiteResult]
    not_compared: list[str]
    judge: Judge


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


def judge_all(evidence: Evidence, free_oracle: Trace | None, *, backward: bool) -> Judged:
    """Judge every comparison; measure, repeat and rescale where something looks wrong."""
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
    )
    results = {item: judge.judge(item, e.forced) for item in items}
    if e.tolerance is None:
        _refine_floors(e, judge, results, on_reference)
        _rescale_suspects(e, judge, results)
    _repeat(e, judge, results)
    return Judged(list(results.values()), missing, judge)


def _flagged(results: Mapping[Item, SiteResult]) -> list[Item]:
    return [i for i, r in results.items() if r.verdict != "agree" and r.metrics is not None]


def _refine_floors(
    e: Evidence, judge: Judge, results: dict[Item, SiteResult], forced: Mapping[Key, np.ndarray]
) -> None:
    """Measure e_pert for what stands out (always, where there is no float64 oracle)."""
    wanted = _flagged(results)
    if not wanted or not e.reference.adapter.capabilities.forcing:
        return
    judge.perturbations = measure(
        e.reference, judge, wanted, forced, parameters=e.reference.adapter.parameters(), seed=e.seed
    )
    for item in wanted:
        after = judge.judge(item, e.forced)
        if after.verdict == "agree":
            after = replace(after, notes=(*after.notes, ILL_CONDITIONED))
        results[item] = after


def _rescale_suspects(e: Evidence, judge: Judge, results: dict[Item, SiteResult]) -> None:
    """Settle suspects by precision: rounding shrinks with the unit roundoff, a bug does not.

    So too what diverges by little: where many terms cancel (a BatchNorm's VJP in train mode), two
    orders of summation lie further apart than either is from the truth. Far above the floor it is
    no longer rounding in float32, but a lower precision somewhere, which float64 would hide.
    """
    suspects = [i for i in _flagged(results) if results[i].ratio <= SETTLED]
    if not suspects or judge.oracle is None or not e.candidate.adapter.capabilities.float64:
        return
    try:
        wide = e.candidate.record(
            Forcer(e.alignment.forced_on_candidate(e.free_reference)), float64=True
        )
    except SideFailed:
        return  # the candidate has no float64: the suspects stay suspects
    for item in suspects:
        truth = value_of(item, judge.oracle, side="reference")
        pair = [value_of(item, t, side="candidate") for t in (wide, e.forced)]
        if truth is None or any(v is None for v in pair) or pair[0].dtype != np.float64:  # type: ignore[union-attr]
            continue
        seen = [in_reference_layout(item, v, truth) for v in pair]
        differences = [compare(*without_fill(v, truth, truth)[::2]) for v in seen]  # type: ignore[arg-type]
        rounding = shrinks(*differences)
        if rounding is True:
            results[item] = replace(
                results[item], verdict="agree", notes=("rounding: it vanishes in float64",)
            )
        elif rounding is False:
            results[item] = replace(
                results[item], verdict="diverge", notes=("not rounding: it stays in float64",)
            )


def _repeat(e: Evidence, judge: Judge, results: dict[Item, SiteResult]) -> None:
    """What does not repeat is a suspect, marked unstable."""
    wanted = _flagged(results)
    if not wanted:
        return
    again = e.candidate.record(Forcer(e.alignment.forced_on_candidate(e.free_reference)))
    for item in wanted:
        second = judge.judge(item, again)
        if second.verdict == "agree" and results[item].ratio != second.ratio:
            note = f"unstable: ratio {results[item].ratio:.3g}, then {second.ratio:.3g}"
            results[item] = replace(results[item], verdict="suspect", notes=(note,))


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
