"""Part of stage 5, align: what goes into layers that have parameters in common and return different
quantities: one of them on one side, perhaps several on the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from crosscheck.aligning.alignment import Edge
from crosscheck.aligning.edges import is_chain, may_be_made_of
from crosscheck.arrays import is_float
from crosscheck.trace import Trace, owner

__all__ = ["entries_of"]


def entries_of(
    edges: Sequence[Edge],
    anchored: Collection[tuple[str, str]],
    traces: tuple[Trace, Trace],
) -> list[Edge]:
    """Edges of such layers, those that share a slot as one.

    Args:
        edges: slot by slot.
        anchored: (reference site, candidate site) of all layers with the same parameters.
        traces: of the reference and of the candidate.
    """
    return [
        replace(e, sends_back=False) if _comes_back_in_parts(e, anchored, traces) else e
        for e in _joined(edges)
    ]


def _comes_back_in_parts(
    edge: Edge, anchored: Collection[tuple[str, str]], traces: tuple[Trace, Trace]
) -> bool:
    """Whether one side has a further layer of the same parameters, which may be given the value in
    another form (backwards, for the other direction of a recurrent layer; with positions added):
    through that a part comes back which the other side's layer sends back with the rest."""
    slots = (edge.reference, *edge.also_reference), (edge.candidate, *edge.also_candidate)
    ours, theirs = ({owner(s) for s in side} for side in slots)
    further = (
        {r for r, c in anchored if c in theirs} - ours,
        {c for r, c in anchored if r in ours} - theirs,
    )
    return any(
        is_float(trace.values["input", slot])
        and may_be_made_of(slot, given[0], trace)
        and not any(is_chain(trace, layer, other, ()) for layer in layers)
        for layers, given, others, trace in zip((ours, theirs), slots, further, traces, strict=True)
        for other in others
        for slot in trace.inputs_of(other)
    )


def _joined(edges: Sequence[Edge]) -> list[Edge]:
    """Edges that share a slot as one: a packed projection against three of their own.

    What the packed one sends back is the sum of what the three send back. Several to several is
    left out: which belongs to which is open.
    """
    uses = Counter(e.reference for e in edges), Counter(e.candidate for e in edges)
    found: dict[str, Edge] = {}
    for e in edges:
        shared = uses[0][e.reference] > 1, uses[1][e.candidate] > 1
        if all(shared):
            continue
        key = e.candidate if shared[1] else e.reference
        if key not in found:
            found[key] = e
        elif shared[0]:
            more = (*found[key].also_candidate, e.candidate, *e.also_candidate)
            sends_back = found[key].sends_back and e.sends_back
            found[key] = replace(found[key], also_candidate=more, sends_back=sends_back)
        else:
            more = (*found[key].also_reference, e.reference, *e.also_reference)
            sends_back = found[key].sends_back and e.sends_back
            found[key] = replace(found[key], also_reference=more, sends_back=sends_back)
    return list(found.values())
