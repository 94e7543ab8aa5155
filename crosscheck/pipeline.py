"""The stages of one check at work. `crosscheck.single` reads as the list of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from crosscheck.adapters.base import Adapter, Parameter
from crosscheck.aligning.align import Aligner, Side
from crosscheck.aligning.alignment import Alignment
from crosscheck.compare import equal
from crosscheck.comparisons import buffer_items, weight_items
from crosscheck.cotangents import CandidateCotangents
from crosscheck.errors import CannotCompare, SideFailed, capped
from crosscheck.judging.evidence import Evidence, Judged
from crosscheck.judging.parts import NotCleared, of_part, require_cleared
from crosscheck.judging.settle import settle
from crosscheck.judging.sifting import sifted
from crosscheck.judging.sparing import judged, measure_free_ratios
from crosscheck.judging.weights import judge_weights
from crosscheck.memory import Overlaid
from crosscheck.observers import Forcer, Recorder
from crosscheck.results import SiteResult
from crosscheck.run import Runner
from crosscheck.trace import Trace
from crosscheck.weights import (
    Fit,
    Match,
    WeightMap,
    match_parameters,
    settle_by_values,
)
from crosscheck.weights import settle as settle_match

__all__ = [
    "Undecided",
    "align",
    "calls_of",
    "force",
    "judge_all",
    "load",
    "match_in_order",
    "settled",
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
    try:
        match.require_complete()
    except CannotCompare as error:
        raise CannotCompare(
            f"{error}{_overlooked_text(match, candidate)}{_merged_text(match, candidate)}"
            f"{_unnamed_text(match, candidate)}"
        ) from None
    match = settle_match(match, trial)
    load(match, candidate)
    return match


def _overlooked_text(match: Match, candidate: Adapter) -> str:
    """Which arrays of the candidate may be the parameters that it lacks; empty for none."""
    lacking = {p.value.size for p in match.unmatched_reference}
    if not lacking:
        return ""
    held = [n for n, shape in candidate.overlooked().items() if math.prod(shape) in lacking]
    if not held:
        return ""
    return (
        f"\n  The candidate also holds arrays that are not taken for parameters: {capped(held)}.\n"
        "  Fix: are they its parameters? Give them in a dict `params` of an object with `forward` "
        "(gradients in `grads`), or under usual names"
    )


def _merged_text(match: Match, candidate: Adapter) -> str:
    """That a norm which the candidate lacks is part of other weights; empty if it is not."""
    norms = {p.layer for p in match.unmatched_reference if p.role in ("mean", "variance")}
    merged = candidate.merged() if norms else ()
    if not merged:
        return ""
    return (
        f"\n  A tool has merged norms into weights of the candidate: {capped(merged, 2)}.\n"
        f"  Fix: for {capped(sorted(norms), 2)}, give the file as it was before: not optimised by "
        "ONNX Runtime, and exported with optimize=False (by the TorchScript exporter: with "
        "training=torch.onnx.TrainingMode.PRESERVE and do_constant_folding=False)"
    )


def _unnamed_text(match: Match, candidate: Adapter) -> str:
    """That what the reference has more may be in a file under other names; empty if not."""
    unnamed = candidate.unnamed() if match.unmatched_reference else ()
    if not unnamed:
        return ""
    return (
        f"\n  The exporter left {len(unnamed)} weights of the candidate without their parameters' "
        f"names ({capped(unnamed, 2)}), and they hold other numbers than the reference's.\n"
        "  Fix: export the file from this reference, or with optimize=False"
    )


def load(match: Match, candidate: Adapter) -> None:
    """Give the candidate the values of a match.

    Raises:
        CannotCompare: what was loaded does not read back.
    """
    values = match.values()
    candidate.load(values)
    now = {p.name: p.value for p in candidate.parameters()}
    held = equal([(now[n], v.astype(now[n].dtype, copy=False)) for n, v in values.items()])
    for name, same in zip(values, held, strict=True):
        if not same:
            raise CannotCompare(
                f"candidate parameter `{name}` does not hold what was loaded into it; is it "
                "computed from something else, or shared with another parameter?"
            )


def settled(
    reference: Adapter,
    candidate: Adapter,
    weights: str | WeightMap,
    calls: tuple[Iterable[str], Iterable[str]],
    trial: Callable[[Match], Fit],
) -> Match | None:
    """What `transfer` finds, nothing loaded; None where it finds no match, or ``trial`` gives up.

    Args:
        trial: as for `transfer`; may raise `Undecided`.

    Raises:
        CannotCompare: parameters that must be equal are not.
    """
    given = weights if isinstance(weights, Mapping) else {}
    match = match_in_order(reference, candidate, calls, given=given, held=weights == "keep")
    if weights == "keep":
        return settle_by_values(match, {p.name: p.value for p in candidate.parameters()})
    if not match.complete:
        return None
    match.require_equal_ties()
    try:
        return settle_match(match, trial)
    except Undecided:
        return None


class Undecided(Exception):
    """One run of the candidate does not say whether its weights are the right ones."""


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


def verify_weights(match: Match, candidate: Adapter) -> list[SiteResult]:
    """Put every matched parameter side by side, as it is now."""
    now = {p.name: p.value for p in candidate.parameters()}
    cases = [
        (item, pair.truth, now[pair.candidate.name])
        for item, pair in zip(weight_items(match), match.pairs, strict=True)
    ]
    return judge_weights(cases, candidate.steps.parameters)


# -- stages 4 and 5 --------------------------------------------------------------------------------


def force(draft: Evidence, aligner: Aligner, *, backward: bool) -> Evidence:
    """The evidence with its alignment and the candidate's forced run.

    Args:
        draft: with the alignment of the free runs.
    """
    _fix_outputs(draft.candidate, draft.alignment)
    found = sifted(draft, backward=backward)
    if found is not None:
        return found
    if draft.part is not None:
        raise NotCleared("the free runs leave alignment something to look into: check the whole")
    alignment, forced = align(
        aligner,
        draft.free_reference,
        draft.free_candidate,
        draft.candidate,
        bare=draft.reference,
    )
    return replace(draft, alignment=alignment, forced=forced)


def align(
    aligner: Aligner,
    reference: Trace,
    free: Trace,
    candidate: Runner,
    *,
    bare: Runner | None = None,
) -> tuple[Alignment, Trace]:
    """Force the candidate onto what is aligned, align what matches then, until nothing is new.

    All but the last run go forward only, unless that takes another program (`transparent`).

    Args:
        bare: runs the reference, to tell a layer with its rectifier inside from one with a
            rectifier too many; None: they stay a pair.

    Returns:
        The alignment, and the candidate's trace forced at exactly its sites.
    """
    alignment = aligner.alignment(free)
    whole = candidate.cotangents is None or not candidate.adapter.capabilities.transparent
    looking = candidate if whole else replace(candidate, cotangents=None)
    for attempt in range(MOST_ROUNDS):
        _fix_outputs(candidate, alignment)
        latest = looking.record(Forcer(alignment.forced_on_candidate(reference)))
        changed = (
            aligner.take_back(latest)
            or aligner.match_values(latest)
            or aligner.refine(latest, at_once=attempt >= SINGLE_ROUNDS)
            or (bare and aligner.tell_apart(latest, Side(bare, reference), Side(candidate, free)))
        )
        previous, alignment = alignment, aligner.alignment(latest)
        if not changed and set(previous.edges) == set(alignment.edges):
            if whole:
                return alignment, latest
            break
    return alignment, candidate.record(Forcer(alignment.forced_on_candidate(reference)))


def _fix_outputs(candidate: Runner, alignment: Alignment) -> None:
    if isinstance(candidate.cotangents, CandidateCotangents):
        candidate.cotangents.decided = {
            (p.reference, p.candidate): p.layout
            for p in alignment.pairs
            if p.by in ("output", "explicit")
        }


def with_vjps(reference: Runner, free: Trace) -> Trace:
    """The reference's free trace, with each layer's own VJP (``input_cotangent``) added.

    A free run is passive, so that it is what the model computes when nobody looks; it cannot show
    those. A second run, forced onto the first one's values, adds them and changes nothing else.
    """
    if reference.cotangents is None or not reference.adapter.capabilities.forcing:
        return free
    if any(kind == "input_cotangent" for kind, _ in free.values):
        return free  # looking at them takes nothing away from this adapter's free runs
    vjps = Recorder(frozenset({"input_cotangent"}))
    again = reference.record(Forcer(free.values), recorder=vjps)
    hidden = free.info.unobservable | again.info.unobservable
    info = replace(free.info, unobservable=hidden)
    return replace(free, values=Overlaid(free.values, vjps.values), info=info)


# -- stages 6 and 7 --------------------------------------------------------------------------------


def judge_all(evidence: Evidence, *, backward: bool) -> Judged:
    """Judge every comparison; look again (`settle`) where something looks wrong."""
    e = evidence
    items, missing = e.site_items.shown_by(e.forced, backward=backward)
    if backward:
        gradients, more = e.gradient_items(e.forced)
        items += gradients
        missing += more
    items += buffer_items(e.match, e.free_reference, e.forced)
    judge = e.new_judge()
    results = judged(e, judge, of_part(items, e.free_reference, e.part))
    require_cleared(e, results)
    settle(e, judge, results)
    measure_free_ratios(e, judge, results)
    return Judged(results, missing, judge)
