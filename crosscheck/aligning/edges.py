"""Part of stage 5, align: which inputs of two aligned layers belong together.

Backward blame needs them: the cotangent that a layer sends back through an input is its own VJP.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from crosscheck.aligning.alignment import Edge, SitePair
from crosscheck.aligning.distances import Asked
from crosscheck.aligning.layout import Layout
from crosscheck.aligning.pairing import Pairing
from crosscheck.arrays import is_float
from crosscheck.trace import Trace, owner

__all__ = [
    "BegunEarlier",
    "compare_inputs_ahead",
    "edges_of",
    "input_error",
    "is_chain",
    "may_be_made_of",
]

Group = tuple[str, ...]
"""Input slots of one layer call that hold one value."""


def edges_of(pair: SitePair, pairing: Pairing, candidate: Trace) -> list[Edge]:
    """The inputs of an aligned layer that both sides give it.

    Args:
        candidate: the candidate's latest run.
    """
    reference = pairing.reference.trace
    if owner(pair.reference) != pair.reference or owner(pair.candidate) != pair.candidate:
        return []  # a further output: the inputs belong to the first one
    slots = reference.inputs_of(pair.reference), candidate.inputs_of(pair.candidate)
    if _slots_fit(slots, pairing, candidate):
        return _fitting(
            pair, [(s,) for s in slots[0]], [(s,) for s in slots[1]], pairing, candidate
        )
    if _more_inside(pair, pairing, candidate):
        return []
    groups = _groups(reference, slots[0]), _groups(candidate, slots[1])
    found = _fitting(pair, *groups, pairing, candidate)
    known = (
        {s for e in found for s in (e.reference, *e.also_reference)},
        {s for e in found for s in (e.candidate, *e.also_candidate)},
    )
    left = [[s for s in side if s not in names] for side, names in zip(slots, known, strict=True)]
    kept = []
    for edge in found:
        if not _comes_back_elsewhere(edge, left, pairing, candidate):
            kept.append(edge)
        elif input_error(edge, pairing, candidate) <= pairing.same:
            kept.append(replace(edge, sends_back=False))
    return kept


def _fitting(
    pair: SitePair,
    ours: Sequence[Group],
    theirs: Sequence[Group],
    pairing: Pairing,
    candidate: Trace,
) -> list[Edge]:
    """Of the inputs of two layers those that hold the same, or could."""
    found: list[Edge] = []
    free = list(theirs)
    for index, group in enumerate(ours):
        ranked = sorted(free, key=lambda g: (theirs.index(g) != index, theirs.index(g)))
        alone = pair.by == "anchor" and len(ours) == len(theirs) == 1
        twin = _twin(group, ranked, pairing, candidate, alone=alone)
        if twin is None:
            continue
        other, layout, differs = twin
        if (group[0], other[0]) in pairing.unlike:
            continue
        if differs and not _as_many(group, ours, theirs, pairing, candidate):
            continue  # no telling which input it should have been
        if differs and pair.by == "value" and _other_sources(group, other, pairing, candidate):
            continue  # equal outputs: one side does in one layer what the other does in several
        if differs and _ends_a_layer(pair, other, pairing, candidate):
            continue
        free.remove(other)
        found += _edges(group, other, layout, pair)
    return found


def input_error(edge: Edge, pairing: Pairing, candidate: Trace) -> float:
    """How far what two layers are given is apart, relatively, in a run of the candidate."""
    distances = pairing.distances(candidate)
    return distances.of("input", edge.reference, edge.candidate, edge.layout)


class BegunEarlier:
    """Inputs that are no beginnings: one side does in one layer what the other side does in
    several, and earlier ones of these have the parameters (a convolution with its norm folded in,
    attention with its projections). What goes into the last goes into nothing on the other side.

    Args:
        anchored: (reference site, candidate site) of layers with the same parameters.
        ends: those of them that have only what they return in common.

    Attributes:
        beginnings: those of them that begin such a layer, if the others follow one after the other:
            what goes into both is the same.
    """

    def __init__(
        self,
        pairing: Pairing,
        anchored: Collection[tuple[str, str]],
        ends: Container[tuple[str, str]],
    ) -> None:
        owners, heirs = {r for r, _ in anchored}, {c for _, c in anchored}
        self.beginnings: set[tuple[str, str]] = set()
        self._places = pairing.reference.place, pairing.candidate.place
        self._first: dict[SitePair, tuple[int, int]] = {}  # the places of the earliest outputs
        for r, c in anchored:
            if (r in pairing.pairs) == (c in pairing.taken) or (r, c) in ends:
                continue
            pair = pairing.pairs[r if r in pairing.pairs else pairing.taken[c]]
            end = pair.reference, pair.candidate
            if end[0] in owners and end[1] in heirs and end not in anchored:
                continue  # two layers, with parameters of their own
            if r in pairing.pairs:
                chained = is_chain(pairing.candidate.trace, c, pair.candidate, pairing.taken)
            else:
                chained = is_chain(pairing.reference.trace, r, pair.reference, pairing.pairs)
            if chained:
                self.beginnings.add((r, c))
            here = self._places[0]["activation", r], self._places[1]["activation", c]
            known = self._first.get(pair, here)
            self._first[pair] = min(known[0], here[0]), min(known[1], here[1])

    def __contains__(self, edge: Edge) -> bool:
        if edge.pair not in self._first:
            return False
        first, places = self._first[edge.pair], self._places
        return (
            places[0]["input", edge.reference] > first[0]
            or places[1].get(("input", edge.candidate), -1) > first[1]
        )


def is_chain(trace: Trace, first: str, last: str, taken: Container[str]) -> bool:
    """Whether a layer is given only what ``first`` makes, or what is made of that alone by layers
    without partner."""
    site: str | None = last
    while site is not None and site != first:
        slots = trace.inputs_of(site)
        site = trace.info.sources.get(slots[0]) if len(slots) == 1 else None
        if site in taken:
            return False
    return site == first


def compare_inputs_ahead(pairs: Iterable[SitePair], pairing: Pairing, candidate: Trace) -> None:
    """Compare the inputs of all aligned layers in one call: slot by slot, as most of them fit."""

    def asked() -> Iterator[Asked]:
        reference = pairing.reference.trace
        for pair in pairs:
            slots = reference.inputs_of(pair.reference), candidate.inputs_of(pair.candidate)
            for r, c in zip(*slots, strict=False):
                layout = pairing.layout_into(r, c, candidate)
                if layout is not None:
                    yield "input", r, c, layout

    pairing.distances(candidate).ahead(asked())


def _slots_fit(
    slots: tuple[Sequence[str], Sequence[str]], pairing: Pairing, candidate: Trace
) -> bool:
    """Whether both sides have the same number of inputs, of the same shapes: then each is one."""
    values = pairing.reference.trace.values, candidate.values
    return len(slots[0]) == len(slots[1]) and all(
        pairing.layout_into(r, c, candidate, merged=False) is not None
        and is_float(values[0]["input", r]) == is_float(values[1]["input", c])
        for r, c in zip(*slots, strict=True)
    )


def _more_inside(pair: SitePair, pairing: Pairing, candidate: Trace) -> bool:
    """Whether one side does in its call what the other does before it: a residual block against
    the sum at its end. Both may be given the same, and send back different parts of it."""
    ours = set(pairing.reference.trace.inside(pair.reference))
    theirs = set(candidate.inside(pair.candidate))
    return any(r in pairing.pairs and pairing.pairs[r].candidate not in theirs for r in ours) or (
        any(c in pairing.taken and pairing.taken[c] not in ours for c in theirs)
    )


def _comes_back_elsewhere(
    edge: Edge, left: Sequence[Sequence[str]], pairing: Pairing, candidate: Trace
) -> bool:
    """Whether one side makes a further input behind this one, perhaps of it (``x * gate(x)``): what
    it sends back through this one is then a part of what the other side sends back.

    Args:
        left: the inputs of the reference's and of the candidate's layer without a counterpart.
    """
    sides = (edge.reference, left[0], pairing.reference.trace), (edge.candidate, left[1], candidate)
    return any(
        is_float(trace.values["input", other]) and may_be_made_of(other, slot, trace)
        for slot, others, trace in sides
        for other in others
    )


def may_be_made_of(other: str, slot: str, trace: Trace) -> bool:
    """Whether one input of a layer may be computed from another one: by a layer that ran behind it,
    or in the code between the layers, where the shape is the same (a position added)."""
    source = trace.info.sources.get(other)
    if source in trace.info.inputs:
        return False
    if source is None:
        shapes = trace.values["input", other].shape, trace.values["input", slot].shape
        return shapes[0] == shapes[1] and (_seen_from(other, trace) >= _seen_from(slot, trace))
    return trace.place.get(("activation", source), -1) > _seen_from(slot, trace)


def _seen_from(slot: str, trace: Trace) -> int:
    """The place in a run of what made an input; where that is no layer, of the first call that is
    given the same numbers."""
    source = trace.info.sources.get(slot)
    if source is not None:
        return trace.place.get(("activation", source), -1)
    value = trace.values["input", slot]
    first = next(s for kind, s in trace.values if kind == "input" and _same(trace, s, value))
    return min(trace.place["input", s] for s in trace.inputs_of(owner(first)))


def _groups(trace: Trace, slots: Sequence[str]) -> list[Group]:
    """Slots that hold the same numbers, as one; a constant (zero states) says nothing."""
    groups: list[list[str]] = []
    for slot in slots:
        value = trace.values["input", slot]
        telling = is_float(value) and value.size > 0 and bool((value != value.flat[0]).any())
        twin = next((g for g in groups if telling and _same(trace, g[0], value)), None)
        if twin is None:
            groups.append([slot])
        else:
            twin.append(slot)
    return [tuple(g) for g in groups]


def _same(trace: Trace, slot: str, value: np.ndarray) -> bool:
    other = trace.values["input", slot]
    return other.dtype == value.dtype and np.array_equal(other, value, equal_nan=True)


def _as_many(
    group: Group, ours: Sequence[Group], theirs: Sequence[Group], pairing: Pairing, candidate: Trace
) -> bool:
    """Whether both layers have as many inputs of a group's kind, numbers or flags: a mask that one
    side makes inside its layer and the other hands to it takes no number's place."""
    reference = pairing.reference.trace.values
    number = is_float(reference["input", group[0]])
    return sum(is_float(reference["input", g[0]]) == number for g in ours) == sum(
        is_float(candidate.values["input", g[0]]) == number for g in theirs
    )


def _twin(
    group: Group, ranked: Sequence[Group], pairing: Pairing, candidate: Trace, *, alone: bool
) -> tuple[Group, Layout, bool] | None:
    """The group that holds the same value, else the first of a shape that fits; and whether it
    differs.

    Args:
        alone: it is the only input of two layers with the same parameters, so that it may differ
            even where one side splits an axis (heads), as it lies.
    """
    value = pairing.reference.trace.values["input", group[0]]
    distances = pairing.distances(candidate)
    first: tuple[Group, Layout, bool] | None = None
    for other in ranked:
        theirs = candidate.values["input", other[0]]
        layout = pairing.layout_into(group[0], other[0], candidate)
        if layout is None or is_float(theirs) != is_float(value):
            continue  # a mask of flags and one of numbers to add: neither can stand for the other
        if distances.of("input", group[0], other[0], layout) <= pairing.same:
            return other, layout, False
        if first is None and (layout.shapes is None or (alone and layout.axes is None)):
            first = other, layout, True
    return first


def _other_sources(ours: Group, theirs: Group, pairing: Pairing, candidate: Trace) -> bool:
    """Whether two inputs come from sites of which one has another partner."""
    r = pairing.reference.trace.info.sources.get(ours[0])
    c = candidate.info.sources.get(theirs[0])
    partner = pairing.pairs.get(r) if r is not None else None
    if partner is not None:
        return partner.candidate != c
    return c in pairing.taken


def _ends_a_layer(pair: SitePair, theirs: Group, pairing: Pairing, candidate: Trace) -> bool:
    """Whether the candidate's site and what it is given both lie within the reference's layer, by
    their names: the nodes of an ONNX file that are a norm on the other side. The last returns what
    the layer returns, and is given something else."""
    source = candidate.info.sources.get(theirs[0], "")
    names, layer = pairing.candidate.names, pairing.reference.names[pair.reference]
    return source in names and all(
        len(names[site]) > len(layer) and names[site][: len(layer)] == layer
        for site in (source, pair.candidate)
    )


def _edges(ours: Group, theirs: Group, layout: Layout, pair: SitePair) -> list[Edge]:
    """Slot by slot where both sides have as many, else as one edge."""
    if len(ours) == len(theirs):
        return [Edge(r, c, layout, pair) for r, c in zip(ours, theirs, strict=True)]
    return [Edge(ours[0], theirs[0], layout, pair, ours[1:], theirs[1:])]
