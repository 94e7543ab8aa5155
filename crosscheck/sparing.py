"""Stage 7, judge, without work that cannot change a verdict.

The floor of a value is at least its a-priori part, and at least the reference's own error against
the oracle (`crosscheck.noise`). So by the triangle inequality

    ρ = ‖y_c − y64‖ / η  ≤  1 + ‖y_c − y_r‖ / η₀ ,   η₀ = max(½√n, 1)·u·S ,

whatever the oracle says, and the same in the maximum norm. (S is that of y_r where it should be
that of y64: the two differ by η at most, which costs a factor 1 + ½√n·u.) Where the right-hand side
is small the site agrees, and its ratio is given as this bound; the float64 oracle runs for the
other sites only, and a layer that none of them needs is not computed in it, if the adapter can
leave one out. If anything then does not agree, everything is judged by the whole oracle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from crosscheck.adapters.base import Parameter
from crosscheck.comparisons import Item
from crosscheck.judging import NO_ORACLE, Judge
from crosscheck.noise import AGREE
from crosscheck.observers import Key
from crosscheck.oracle import oracle
from crosscheck.precision import coarser_unit
from crosscheck.results import SiteResult
from crosscheck.settle import stands_out
from crosscheck.trace import Trace, owner

if TYPE_CHECKING:
    from crosscheck.pipeline import Evidence

__all__ = ["judged", "needless"]

CERTAIN = 0.5 * AGREE
COARSEST = 2.0**-8
"""Above this unit roundoff, S is not known well enough without the oracle."""

Results = dict[Item, SiteResult]


def judged(e: Evidence, judge: Judge, items: list[Item]) -> Results:
    """Judge ``items`` of the forced run; ``judge`` comes without an oracle and may get one."""
    near = judge.judge_many(items, e.forced)
    if e.tolerance is not None or judge.free_oracle is None:  # the reference has no float64
        return near
    open_ = [item for item, result in near.items() if not _is_certain(result)]
    results = {item: _bounded(result) for item, result in near.items()}
    forced = e.alignment.forced_on_reference(e.free_reference)
    if open_:
        judge.oracle = oracle(e.reference, forced, needless=_spared(e, open_, forced))
        if judge.oracle is not None:
            results |= judge.judge_many(open_, e.forced)
        if judge.oracle is None or any(_is_doubtful(i, results[i], judge) for i in open_):
            judge.oracle = e.whole_oracle
            return near if judge.oracle is None else judge.judge_many(items, e.forced)
    return results


def _is_doubtful(item: Item, result: SiteResult, judge: Judge) -> bool:
    """Whether the whole oracle is asked: something stands out, or this one holds nothing but zeros
    where the reference does not (its floor relative to them is given as 0)."""
    return stands_out(item, result, judge) or (result.noise_floor == 0.0 and result.ratio > 0.0)


def _spared(e: Evidence, items: list[Item], forced: Mapping[Key, object]) -> frozenset[str]:
    """What the adapter shall leave out. In train mode nothing: random numbers would be drawn in
    another order, and statistics left as they are."""
    adapter = e.reference.adapter
    if e.reference.train or not adapter.capabilities.leaves_out:
        return frozenset()
    return needless(e.free_reference, items, forced, adapter.parameters())


def _is_certain(result: SiteResult) -> bool:
    unit = coarser_unit(result.dtype, result.candidate_dtype or result.dtype)
    return result.ratio == 0.0 or (unit <= COARSEST and 1.0 + result.ratio <= CERTAIN)


def _bounded(result: SiteResult) -> SiteResult:
    """With the bound as its ratio."""
    notes = tuple(note for note in result.notes if note != NO_ORACLE)
    exact = result.noise_floor == 0.0  # integers and flags
    return replace(result, ratio=result.ratio if exact else 1.0 + result.ratio, notes=notes)


def needless(
    reference: Trace,
    wanted: Iterable[Item],
    forced: Mapping[Key, object],
    parameters: Iterable[Parameter] = (),
) -> frozenset[str]:
    """The layer calls that need not be computed: all that leaves them, forward and backward, is
    forced, and nothing inside is wanted.

    A parameter may be used in a layer that does not own it, which nobody can see. Then the oracle
    is far from the reference there, and `judged` asks the whole one.
    """
    parents = reference.info.parents
    running: set[str] = set()
    for item in wanted:
        for _, site in item.reference_keys if item.phase in ("forward", "backward") else ():
            # What goes into a call was made by the code in front of it, in the call around it.
            call = parents.get(owner(site)) if item.kind == "input" else owner(site)
            while call is not None and call not in running:
                running.add(call)
                call = parents.get(call)
    layers = _layers_of(wanted, parameters)
    found = frozenset(
        call
        for call in parents
        if call not in running
        and reference.outputs_of.get(call) == [call]
        and ("activation", call) in forced
        and not _holds(call, layers)
        and all(
            ("input_cotangent", slot) in forced
            for slot in reference.inputs_of(call)
            if ("input_cotangent", slot) in reference.values
        )
    )
    several = {call.partition("#")[0] for call in parents if call not in found}
    return frozenset(call for call in found if call.partition("#")[0] not in several)


def _layers_of(wanted: Iterable[Item], parameters: Iterable[Parameter]) -> set[str]:
    """Paths of the layers that use a wanted parameter."""
    names = {
        name
        for item in wanted
        if item.kind == "parameter"
        for name in (item.pullback.references if item.pullback else (item.reference,))
    }
    owners = [one for p in parameters if p.name in names for one in (p, *p.also)]
    return {one.layer for one in owners}


def _holds(call: str, layers: set[str]) -> bool:
    """Whether one of the layers is the called one, or lies inside it."""
    path = call.partition("#")[0]
    return any(f"{layer}.".startswith((f"{path}.", f"{path}/")) for layer in layers)
