"""Stage 7, judge, where something looks wrong: what is asked before anything is said.

0. Masks: another number for what is hidden, to the same effect, is no mistake (`explain.masks`).
1. Ties: elements that rounding alone decides are left out (`ties`). An oracle that does something
   else than the reference (draws other random numbers) is not asked.
2. Ill-conditioning: how far the oracle moves when its inputs do (`perturb`).
3. Precision: both sides in float64. Rounding vanishes there, a mistake stays.
   Of what has no float64: whether its error is the rounding of a sound formula (`explain.benign`).
4. Rounding is redrawn: moved by an ulp at its inputs, an honest layer rounds differently, and its
   error is another one of the same size. That tells the rounding of an ill-conditioned formula
   (which may be large: a variance in one pass) from a lower precision inside, whose coarse grid
   does not feel an ulp.
5. Fresh inputs, for suspects that float64 could not settle.
6. A repeat: what is not there the second time becomes a suspect, marked unstable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from crosscheck.compare import Difference, compare
from crosscheck.comparisons import Item, value_of
from crosscheck.errors import CrosscheckError, SideFailed
from crosscheck.judging.again import CandidateAgain, forwards_only, fresh_runs
from crosscheck.judging.evidence import Evidence
from crosscheck.judging.judge import Judge, in_reference_layout, relative, shrinks, without_fill
from crosscheck.judging.noise import AGREE, DIVERGE
from crosscheck.judging.perturb import Moved, measure
from crosscheck.judging.precision import Grains, coarser_unit, grains_of
from crosscheck.judging.ties import find_ties, growth_of
from crosscheck.observers import Forcer, Key
from crosscheck.results import SiteResult
from crosscheck.trace import Trace

__all__ = ["fresh_runs", "settle", "stands_out"]

SETTLED = 4.0 * DIVERGE
"""Ratio up to which float64 decides by itself, if the error is too small for a lower precision."""
LOWER = 2.0**-14
"""Relative error above which a lower precision (TF32 and below) may be at work."""
REDRAWN = 8.0
"""Rounding is at most so many times as large as what it is redrawn by."""
FAR = 2.0**12
"""So many roundings off, the reference may not be doing in float64 what it does as it runs."""
ULPS = 3
FRESH = 2
ILL_CONDITIONED = "ill-conditioned: judged by what rounding of its inputs does to the oracle"
WIDE = (np.dtype(np.float64), np.dtype(np.complex128))
VANISHES = "rounding: it vanishes in float64"
OWN = "rounding of the candidate's own formula: it vanishes in float64, and is redrawn by an ulp"
COARSE = (
    "it vanishes in float64 and is not redrawn by an ulp at the inputs: a lower precision inside, "
    "or code that a run in float64 passes by"
)
STAYS = "not rounding: it stays in float64"

Results = dict[Item, SiteResult]


def settle(e: Evidence, judge: Judge, results: Results) -> None:
    """Look again at whatever does not agree; changes ``results`` and ``judge``."""
    if e.tolerance is None:
        _excuse_masks(e, judge, results)
    if e.tolerance is None and any(stands_out(i, r, judge) for i, r in results.items()):
        grains = _grains(e)
        _leave_out_ties(e, judge, results, grains)
        _doubt_the_oracle(e, judge, results, grains)
        _refine_floors(e, judge, results, grains)
        _rescale(e, judge, results, grains)
        _excuse(e, judge, results)
        _reseed(e, judge, results)
    _repeat(e, judge, results)


def _flagged(results: Mapping[Item, SiteResult]) -> list[Item]:
    return [i for i, r in results.items() if r.verdict != "agree" and r.metrics is not None]


def _grains(e: Evidence) -> Grains:
    pairs = [(m.reference, m.candidate) for m in e.match.pairs]
    steps = e.candidate.adapter.steps
    return grains_of(e.alignment, e.free_reference, e.forced, pairs, steps)


# -- ties and ill-conditioning ---------------------------------------------------------------------


def _leave_out_ties(e: Evidence, judge: Judge, results: Results, grains: Grains) -> None:
    """Where something stands out, or where the reference itself is far from the oracle: one flip
    of its own is a floor under which much would hide."""
    wanted = [i for i, r in results.items() if stands_out(i, r, judge)]
    if not wanted or not e.reference.adapter.capabilities.forcing:
        return
    judge.ties = find_ties(
        e.reference,
        judge,
        wanted,
        e.forced,
        e.alignment.forced_on_reference(e.free_reference),
        parameters=e.reference.parameters(),
        seed=e.seed,
        grains=grains,
    )
    for item in judge.ties:
        results[item] = judge.judge(item, e.forced)


def _doubt_the_oracle(e: Evidence, judge: Judge, results: Results, grains: Grains) -> None:
    """Where the reference is far from the oracle and this is not rounding, float64 computes
    something else (random numbers are drawn anew): the reference's own value is the truth then."""
    wanted = {}
    for item, result in results.items():
        if judge.oracle is None or item.phase == "buffer" or not _is_far(item, result, judge, FAR):
            continue
        reference = value_of(item, judge.reference, side="reference")
        truth = value_of(item, judge.oracle, side="reference")
        if reference is not None and truth is not None:
            wanted[item] = compare(*_kept(judge, item, reference, truth))
    if not wanted or not e.reference.adapter.capabilities.forcing:
        return
    forced = e.alignment.forced_on_reference(e.free_reference)
    runner = forwards_only(e.reference, wanted)

    def again(moved: Moved) -> Trace:
        return runner.record(Forcer(moved))

    draws = _moves(e, forced, grains.values)
    spreads = _spreads(again, draws, judge, wanted, e.free_reference, "reference")
    doubted = {i for i, own in wanted.items() if not _is_redrawn(own, spreads[i], REDRAWN)}
    judge.doubted = frozenset(doubted)
    for item in doubted:
        results[item] = judge.judge(item, e.forced)


def stands_out(item: Item, result: SiteResult, judge: Judge) -> bool:
    """Whether to look again: it does not agree, or its floor is suspiciously high."""
    if result.metrics is None:
        return False
    return result.verdict != "agree" or _is_far(item, result, judge, DIVERGE)


def _is_far(item: Item, result: SiteResult, judge: Judge, factor: float) -> bool:
    """Whether the floor is more than ``factor`` times what rounding of the result comes to."""
    least = factor * coarser_unit(result.dtype, result.candidate_dtype or result.dtype)
    return result.noise_floor > least > 0.0 and result.noise_floor > least * growth_of(judge, item)


def _refine_floors(e: Evidence, judge: Judge, results: Results, grains: Grains) -> None:
    """Measure e_pert for what does not agree without it."""
    wanted = _flagged(results)
    if not wanted or not e.reference.adapter.capabilities.forcing:
        return
    forced = e.alignment.forced_on_reference(e.free_reference)
    parameters = e.reference.parameters()
    judge.perturbations = measure(
        e.reference, judge, wanted, forced, parameters=parameters, seed=e.seed, grains=grains
    )
    for item in wanted:
        after = judge.judge(item, e.forced)
        if after.verdict == "agree":
            after = replace(after, notes=(*after.notes, ILL_CONDITIONED))
        results[item] = after


# -- precision -------------------------------------------------------------------------------------


def _rescale(e: Evidence, judge: Judge, results: Results, grains: Grains) -> None:
    """Settle by precision: rounding shrinks with the unit roundoff, a bug does not."""
    flagged = [i for i in _flagged(results) if np.isfinite(results[i].ratio)]
    if not flagged or judge.oracle is None or not e.candidate.adapter.capabilities.float64:
        return
    try:
        wide = CandidateAgain(e, flagged).run(float64=True)
    except SideFailed:
        return  # the candidate has no float64: what is suspect stays suspect
    open_: list[tuple[Item, Difference]] = []
    for item in flagged:
        errors = _in_both_precisions(item, judge, wide, e.forced)
        if errors is None:
            continue
        rounding = shrinks(*errors)
        if rounding is False:
            if results[item].ratio <= SETTLED:
                results[item] = _said(results[item], "diverge", STAYS)
        elif rounding and results[item].ratio <= SETTLED and relative(errors[1]) < LOWER:
            results[item] = _said(results[item], "agree", VANISHES)
        elif rounding:
            open_.append((item, errors[1]))
    _redraw(e, judge, results, grains, open_)


def _said(result: SiteResult, verdict: str, note: str) -> SiteResult:
    return replace(result, verdict=verdict, notes=(*result.notes, note))  # type: ignore[arg-type]


def _in_both_precisions(
    item: Item, judge: Judge, wide: Trace, narrow: Trace
) -> tuple[Difference, Difference] | None:
    """The candidate's error in float64 and as it runs."""
    assert judge.oracle is not None
    truth = value_of(item, judge.oracle, side="reference")
    if item in judge.doubted or truth is None or truth.dtype not in WIDE:
        return None
    found = []
    for trace in (wide, narrow):
        raw = value_of(item, trace, side="candidate")
        value = None if raw is None else in_reference_layout(item, raw, truth)
        if value is None or (trace is wide and value.dtype not in WIDE):
            return None
        value, right = _kept(judge, item, value, truth)
        found.append(compare(*without_fill(value, right, right)[::2]))
    return found[0], found[1]


def _kept(judge: Judge, item: Item, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Values of an item without its ties."""
    mask = judge.ties.get(item)
    if mask is not None:
        values = tuple(v[~mask] for v in values)
    return values


def _redraw(
    e: Evidence,
    judge: Judge,
    results: Results,
    grains: Grains,
    items: Sequence[tuple[Item, Difference]],
) -> None:
    """Move the candidate's inputs by an ulp: is the error that vanishes in float64 drawn anew?"""
    if not items:
        return
    wanted = [item for item, _ in items]
    draws = _moves(e, e.alignment.forced_on_candidate(e.free_reference), grains.theirs)
    again = CandidateAgain(e, wanted)
    spreads = _spreads(again.run, draws, judge, wanted, e.forced, "candidate")
    for item, error in items:
        if _is_redrawn(error, spreads[item], REDRAWN):
            results[item] = _said(results[item], "agree", OWN)
        else:
            results[item] = _said(results[item], results[item].verdict, COARSE)


def _moves(
    e: Evidence, forced: Mapping[Key, np.ndarray], grains: Mapping[Key, float]
) -> Iterator[Moved]:
    """What a side is given, moved by an ulp; a few draws."""
    for draw in range(ULPS):
        # By twice the grain: half as far, and most values would round to where they were.
        yield Moved(forced, e.seed * ULPS + draw, grains=grains, factor=2.0)


def _spreads(
    again: Callable[[Moved], Trace],
    draws: Iterable[Moved],
    judge: Judge,
    items: Iterable[Item],
    still: Trace,
    side: str,
) -> dict[Item, list[Difference]]:
    """How far a side's own values move, in its own precision, when what it is given does. Ties are
    left out as they are of the error: one that flips would pass for rounding of all the others."""
    found: dict[Item, list[Difference]] = {item: [] for item in items}
    for moved in draws:
        try:
            trace = again(moved)
        except SideFailed:
            break
        for item, seen in found.items():
            pair = [_own_value(judge, item, t, side) for t in (trace, still)]
            if pair[0] is not None and pair[1] is not None:
                seen.append(compare(*_kept(judge, item, pair[0], pair[1])))
    return found


def _own_value(judge: Judge, item: Item, trace: Trace, side: str) -> np.ndarray | None:
    """What a side holds, in the reference's layout."""
    value = value_of(item, trace, side=side)
    reference = value_of(item, judge.reference, side="reference")
    if side == "reference" or value is None or reference is None:
        return value
    return in_reference_layout(item, value, reference)


def _is_redrawn(error: Difference, moves: Sequence[Difference], factor: float) -> bool:
    if not moves:
        return True  # nothing is known: the benefit of the doubt
    l2 = float(np.median([d.l2 for d in moves]))
    top = float(np.median([d.maximum for d in moves]))
    return error.l2 <= factor * l2 and error.maximum <= factor * top


def _excuse_masks(e: Evidence, judge: Judge, results: Results) -> None:
    """Scores that are masked by another number than the reference's, to the same effect."""
    from crosscheck.explain.masks import excuse_masks

    excuse_masks(e, judge, results)


def _excuse(e: Evidence, judge: Judge, results: Results) -> None:
    """Where float64 could not be asked: is it the rounding of a formula known to be sound?"""
    from crosscheck.explain.benign import excuse

    for item in _flagged(results):
        note = excuse(e, judge, results[item])
        if note is not None:
            results[item] = _said(results[item], "agree", note)


# -- other inputs, and the same again --------------------------------------------------------------


def _reseed(e: Evidence, judge: Judge, results: Results) -> None:
    """A suspect that is nothing on fresh inputs was chance; one that is more there is a bug."""
    suspects = [i for i in _flagged(results) if results[i].verdict == "suspect"]
    backward = any(i.phase in ("backward", "parameter_gradient") for i in suspects)
    ratios: dict[Item, list[float]] = {item: [] for item in suspects}
    for draw in range(FRESH if suspects else 0):
        try:
            runs = fresh_runs(e, judge, seed=e.seed + 1 + draw, backward=backward)
        except CrosscheckError:
            return  # a model that cannot take them
        if runs is None:
            return
        _, candidate, again = runs
        for item, seen in ratios.items():
            if item.reference_key in again.reference.values or item.kind == "parameter":
                seen.append(again.judge(item, candidate).ratio)
    for item, seen in ratios.items():
        if len(seen) < FRESH:
            continue
        listed = " and ".join(f"{ratio:.3g}" for ratio in seen)
        note = f"ratio {results[item].ratio:.3g} here, {listed} on fresh inputs"
        verdict = "suspect"
        if max(seen) > DIVERGE:
            verdict = "diverge"
        elif max(seen) <= AGREE:
            verdict = "agree"
        results[item] = _said(results[item], verdict, note)


def _repeat(e: Evidence, judge: Judge, results: Results) -> None:
    """What does not repeat is a suspect, marked unstable."""
    wanted = _flagged(results)
    if not wanted:
        return
    again = CandidateAgain(e, wanted).run()
    for item in wanted:
        second = judge.judge(item, again)
        if second.verdict == "agree":
            note = f"unstable: ratio {results[item].ratio:.3g}, then {second.ratio:.3g}"
            results[item] = replace(results[item], verdict="suspect", notes=(note,))
