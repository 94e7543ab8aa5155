"""Which layer calls a forced run may leave out, for the comparisons that it is made for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.arrays import is_inexact
from crosscheck.compare import compare
from crosscheck.comparisons import Item, value_of
from crosscheck.errors import SideFailed
from crosscheck.judging.noise import unit_roundoff
from crosscheck.observers import Forcer, Key, Recorder
from crosscheck.run import Runner
from crosscheck.trace import Trace, owner

__all__ = [
    "gives_the_same",
    "lies_in",
    "needless",
    "parameters_of",
    "spared",
    "spared_of_candidate",
]

SAME_SUMS = 2.0**10
"""The same values differ by so many roundings at most: those of a sum in another order."""


def spared(
    runner: Runner, free: Trace, items: Iterable[Item], forced: Mapping[Key, object]
) -> frozenset[str]:
    """What the adapter of the reference shall leave out. In train mode nothing: random numbers
    would be drawn in another order, and statistics left as they are.

    Args:
        free: the reference's free run.
        items: what the run is made for.
    """
    if runner.train or not runner.adapter.capabilities.leaves_out:
        return frozenset()
    return needless(free, items, forced, runner.parameters())


def spared_of_candidate(
    runner: Runner, free: Trace, items: Iterable[Item], forced: Mapping[Key, object]
) -> frozenset[str]:
    """The same for the candidate, in its own names.

    Args:
        free: the candidate's free run.
        forced: what its run is forced onto.
    """
    if runner.train or not runner.adapter.capabilities.leaves_out:
        return frozenset()
    known = dict.fromkeys(free.values)
    # What an input that is not forced sends back is needed by the code in front.
    inputs = [site for kind, site in known if kind == "input"]
    needed = {("input_cotangent", site): None for site in inputs if ("input", site) not in forced}
    trace = replace(free, values={**known, **needed})  # type: ignore[dict-item]
    return needless(trace, _of_candidate(items), forced, runner.parameters())


def needless(
    reference: Trace,
    wanted: Iterable[Item],
    forced: Mapping[Key, object],
    parameters: Iterable[Parameter] = (),
) -> frozenset[str]:
    """The layer calls that need not be computed: all that leaves them, forward and backward, is
    forced, and nothing inside is wanted.

    A parameter may be used in a layer that does not own it, which nobody can see: see
    `gives_the_same`. (Where the oracle lacks a share of its gradient, it is far from the
    reference, and `crosscheck.judging.sparing.judged` asks the whole one.)
    """
    parents = reference.info.parents
    running: set[str] = set()
    for item in wanted:
        for _, site in item.reference_keys if item.phase in ("forward", "backward") else ():
            # What goes into a call was made by the code in front of it, in the call around it;
            # the cotangent at its output by the code behind it.
            around = item.kind in ("input", "cotangent")
            call = parents.get(owner(site)) if around else owner(site)
            while call is not None and call not in running:
                running.add(call)
                call = parents.get(call)
    asked = _around(_layers_of(wanted, parameters))
    found = frozenset(
        call
        for call in parents
        if call not in running
        and reference.outputs_of.get(call) == [call]
        and ("activation", call) in forced
        and call.partition("#")[0] not in asked
        and all(
            ("input_cotangent", slot) in forced
            for slot in reference.inputs_of(call)
            if ("input_cotangent", slot) in reference.values
        )
    )
    several = {call.partition("#")[0] for call in parents if call not in found}
    return frozenset(call for call in found if call.partition("#")[0] not in several)


def gives_the_same(
    runner: Runner,
    items: Iterable[Item],
    forced: Mapping[Key, np.ndarray],
    calls: frozenset[str],
    whole: Trace,
    *,
    float64: bool = False,
) -> bool:
    """Whether a run without these calls has the values of one that left nothing out: it is made. It
    has not where a layer uses another one's parameter, or what another one has left behind, unseen.

    Args:
        whole: that run, on the same values.
        float64: whether it was made in float64.
    """
    wanted, ours = list(items), runner.side == "reference"
    side = "reference" if ours else "candidate"
    keys = (
        key for one in (wanted if ours else _of_candidate(wanted)) for key in one.reference_keys
    )
    recorder = Recorder(keys=frozenset(keys))
    try:
        run = runner.record(Forcer(forced, needless=calls), float64=float64, recorder=recorder)
    except SideFailed:
        return False
    return all(
        _is_same(value_of(item, run, side=side), value_of(item, whole, side=side))
        for item in wanted
    )


def _is_same(now: np.ndarray | None, before: np.ndarray | None) -> bool:
    if now is None or before is None or not is_inexact(before):
        return now is not None and before is not None and np.array_equal(now, before)
    seen = compare(now, before)
    limit = SAME_SUMS * unit_roundoff(before.dtype) * seen.truth_max
    return not seen.mismatch and seen.maximum <= limit


def _of_candidate(items: Iterable[Item]) -> list[Item]:
    """The comparisons with the candidate's names in the reference's place."""
    found = []
    for item in items:
        names = [item.candidate]
        if item.phase == "parameter_gradient":
            terms = () if item.pullback is None else item.pullback.terms
            names = [name for name, _ in terms] or item.candidate.split(", ")
        found += [
            replace(item, reference=name, also_reference=item.also_candidate, pullback=None)
            for name in names
        ]
    return found


def _layers_of(wanted: Iterable[Item], parameters: Iterable[Parameter]) -> set[str]:
    """Paths of the layers that use a wanted parameter."""
    names = set(parameters_of(wanted))
    owners = [one for p in parameters if p.name in names for one in (p, *p.also)]
    return {one.layer for one in owners}


def parameters_of(wanted: Iterable[Item]) -> Iterator[str]:
    """Names of the reference's parameters whose gradients are wanted."""
    for item in wanted:
        if item.kind == "parameter":
            yield from item.pullback.references if item.pullback else (item.reference,)


def _around(layers: Iterable[str]) -> set[str]:
    """The paths of the layers, and of all that they lie in."""
    return {layer[:i] for layer in layers for i, c in enumerate(f"{layer}.") if c in "./"}


def lies_in(layer: str, call: str) -> bool:
    """Whether a layer is the called one, or lies inside it."""
    path = call.partition("#")[0]
    return f"{layer}.".startswith((f"{path}.", f"{path}/"))
