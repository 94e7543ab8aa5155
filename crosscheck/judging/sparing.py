"""Stage 7, judge, without work that cannot change a verdict.

The floor of a value is at least its a-priori part, and at least the reference's own error against
the oracle (`crosscheck.judging.noise`). So by the triangle inequality

    ρ = ‖y_c − y64‖ / η  ≤  1 + ‖y_c − y_r‖ / η₀ ,   η₀ = max(½√n, 1)·u·S ,

whatever the oracle says, and the same in the maximum norm. (S is that of y_r where it should be
that of y64: the two differ by η at most, which costs a factor 1 + ½√n·u.) Where the right-hand side
is small the site agrees, and its ratio is given as this bound; the float64 oracle runs for the
other sites only, and a layer that none of them needs is not computed in it, if the adapter can
leave one out. If anything then does not agree, everything is judged by the whole oracle.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from crosscheck.comparisons import Item
from crosscheck.judging.evidence import Evidence
from crosscheck.judging.judge import NO_ORACLE, Judge
from crosscheck.judging.left_out import parameters_of, spared
from crosscheck.judging.noise import AGREE, DIVERGE
from crosscheck.judging.precision import coarser_unit
from crosscheck.judging.settle import stands_out
from crosscheck.memory import new_values
from crosscheck.memory.heap import trim_heap
from crosscheck.oracle import oracle
from crosscheck.results import SiteResult
from crosscheck.trace import Trace, owner

__all__ = ["judged", "measure_free_ratios"]

CERTAIN = 0.5 * AGREE
HOPELESS = DIVERGE * (1.0 + AGREE)
"""So many floors η₀ from the reference's own value, the whole oracle is asked in any case: either
the reference is more than `DIVERGE` of them from the oracle, which is doubtful, or the candidate
more than `AGREE` times as many."""
COARSEST = 2.0**-8
"""Above this unit roundoff, S is not known well enough without the oracle."""

PARTS, LARGE = 4, 1 << 25
"""The oracle runs in so many parts from so many elements of all activations on."""

_BACK = ("backward", "parameter_gradient")
Results = dict[Item, SiteResult]


def judged(e: Evidence, judge: Judge, items: list[Item]) -> Results:
    """Judge ``items`` of the forced run; ``judge`` comes without an oracle and may get one. Free
    ratios are bounds, or are left to `measure_free_ratios`."""
    known = dict(e.near)
    known |= judge.judge_many([item for item in items if item not in known], e.forced)
    near = {item: known[item] for item in items}
    if e.tolerance is not None:
        return near
    open_ = [item for item, result in near.items() if not is_certain(result)]
    if any(near[item].ratio > HOPELESS for item in open_):
        judge.oracle = e.whole_oracle
        if judge.oracle is not None:
            return judge.judge_many(items, e.forced)
    if e.free_bounds is None and e.free_oracle is None:
        return near  # the reference has no float64
    bounds = e.free_bounds or {}
    results = {i: bounded(r, bounds.get(i, r.free_ratio)) for i, r in near.items()}
    if open_:
        judge.oracle = _partial_oracle(e, open_)
        if judge.oracle is not None:
            asked = judge.judge_many(open_, e.forced)
            results |= {i: r.but(free_ratio=bounds.get(i, r.free_ratio)) for i, r in asked.items()}
        if judge.oracle is None or any(_is_doubtful(i, results[i], judge) for i in open_):
            judge.oracle = e.whole_oracle
            return near if judge.oracle is None else judge.judge_many(items, e.forced)
    return results


def measure_free_ratios(e: Evidence, judge: Judge, results: Results) -> None:
    """Measure what the free runs have accumulated, unless bounds will do; changes ``results`` and
    ``judge``. Backward only where something is wrong there, and the reader wants to know what has
    only inherited it: else the free runs need no backward pass."""
    if e.free_bounds is not None and "whole_oracle" not in vars(e):
        return
    backward = any(i.phase in _BACK for i, r in results.items() if r.verdict != "agree")
    judge.free_oracle = e.free_in_float64(backward=backward)
    if judge.free_oracle is None and e.reference.adapter.capabilities.forcing:
        return  # a recorded run is its own truth; of others nothing is known
    if backward and not _goes_back(e.free_candidate):
        e.free_candidate = judge.free_candidate = e.candidate.record(passive=True)
    asked = [item for item in results if item not in judge.masked]
    if judge.free_oracle is not None and not _goes_back(judge.free_oracle):
        asked = [item for item in asked if item.phase not in _BACK]
    for item, ratio in judge.free_ratios(asked).items():
        if ratio != results[item].free_ratio:
            results[item] = results[item].but(free_ratio=ratio)


def _goes_back(trace: Trace) -> bool:
    return any(kind == "cotangent" for kind, _ in trace.values)


def _partial_oracle(e: Evidence, wanted: list[Item]) -> Trace | None:
    """The oracle with the values of these items and no others.

    What is forced at both ends hangs on nothing else: the parts of a large model are computed one
    after the other, each in a run of its own that leaves out the others.
    """
    forced = e.alignment.forced_on_reference(e.free_reference)
    values = new_values()
    gradients: dict[str, np.ndarray] = {}
    trace = None
    for part in _parts(e, wanted):
        backward = any(item.phase in ("backward", "parameter_gradient") for item in part)
        runner = e.reference if backward else replace(e.reference, cotangents=None)
        keys = frozenset(key for item in part for key in item.reference_keys)
        trim_heap()
        trace = oracle(
            runner,
            forced,
            needless=spared(e.reference, e.free_reference, part, forced),
            wanted=keys,
        )
        if trace is None:
            return None
        values.update(trace.values)
        names = set(parameters_of(part)) & set(trace.info.parameter_gradients)
        gradients |= {name: trace.info.parameter_gradients[name] for name in names}
    assert trace is not None
    return replace(trace, values=values, info=replace(trace.info, parameter_gradients=gradients))


def _parts(e: Evidence, items: list[Item]) -> list[list[Item]]:
    """The items by the outermost calls that they lie in, those of as many calls in each part."""
    adapter = e.reference.adapter
    shapes = e.free_reference.shapes().values()
    large = sum(map(math.prod, shapes)) >= LARGE
    if e.reference.train or not adapter.capabilities.leaves_out or not large:
        return [items]
    parents = e.free_reference.info.parents
    calls: dict[str, list[Item]] = {}
    for item in items:
        call = owner(item.reference)
        while parents.get(parents.get(call, "")) is not None:
            call = parents[call]
        calls.setdefault(call, []).append(item)
    count = -(-len(calls) // PARTS)
    groups = list(calls.values())
    return [
        [item for group in groups[i : i + count] for item in group]
        for i in range(0, len(groups), count)
    ]


def _is_doubtful(item: Item, result: SiteResult, judge: Judge) -> bool:
    """Whether the whole oracle is asked: something stands out, or this one holds nothing but zeros
    where the reference does not (its floor relative to them is given as 0)."""
    return stands_out(item, result, judge) or (result.noise_floor == 0.0 and result.ratio > 0.0)


def is_certain(result: SiteResult) -> bool:
    """Whether it agrees, whatever the oracle says."""
    if result.ratio == 0.0:
        return True
    near = 1.0 + result.ratio <= CERTAIN
    return near and coarser_unit(result.dtype, result.candidate_dtype or result.dtype) <= COARSEST


def bounded(result: SiteResult, free_ratio: float | None) -> SiteResult:
    """With the bound as its ratio, and that of the free runs."""
    notes = result.notes
    if NO_ORACLE in notes:
        notes = tuple([note for note in notes if note != NO_ORACLE])
    exact = result.noise_floor == 0.0  # integers and flags
    ratio = result.ratio if exact else 1.0 + result.ratio
    return result.but(ratio=ratio, notes=notes, free_ratio=free_ratio)
