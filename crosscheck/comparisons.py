"""What is compared: the alignment spelled out as single comparisons, in execution order.

Forward, each aligned layer contributes its inputs and its output. An input that is the very object
which an aligned site produced, on both sides, is left out: it was compared there. Backward, each
contributes the cotangent at its output (the sum over consumers) and the cotangents that it sends
back through its inputs (its own VJP).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np

from crosscheck.aligning.alignment import Alignment, Edge, sum_of
from crosscheck.aligning.layout import Layout
from crosscheck.observers import Key
from crosscheck.results import Phase
from crosscheck.taps import COTANGENT_OF, Kind
from crosscheck.trace import RunInfo, Trace
from crosscheck.weights import Match, Transform
from crosscheck.weights.gradients import Pullback, gradient_map, gradient_pairs

__all__ = [
    "Item",
    "SiteItems",
    "buffer_items",
    "every_gradient",
    "gradient_items",
    "site_items",
    "weight_items",
]


@dataclass
class Item:
    """One comparison to make; nobody changes it. (A frozen dataclass takes twice as long to make.)

    Attributes:
        reference, candidate: site names (with slot) or parameter names.
        layout: maps the candidate's value onto the reference's; None if nothing does.
        by: how the pair was found.
        also_reference, also_candidate: further input slots of the same layer that hold the same
            value; the cotangents of all of them are added up (an alignment's `Edge`).
        pullback: of a parameter gradient that takes more than a layout; else None.
    """

    phase: Phase
    kind: Kind | str
    reference: str
    candidate: str
    layout: Layout | Transform | None
    by: str
    also_reference: tuple[str, ...] = ()
    also_candidate: tuple[str, ...] = ()
    pullback: Pullback | None = None

    def __post_init__(self) -> None:
        # What tells nearly all items of a check apart; the tables of a check are by item.
        self._hash = hash((self.phase, self.kind, self.reference))

    def __hash__(self) -> int:
        return self._hash

    @property
    def reference_key(self) -> Key:
        """Key of the reference's value in its trace."""
        return self.kind, self.reference  # type: ignore[return-value]

    @property
    def reference_keys(self) -> list[Key]:
        """Keys of all the reference's values that are added up."""
        kind = cast(Kind, self.kind)
        return [(kind, site) for site in (self.reference, *self.also_reference)]

    @property
    def candidate_key(self) -> Key:
        """Key of the candidate's value in its trace."""
        return self.kind, self.candidate  # type: ignore[return-value]


def site_items(
    alignment: Alignment, reference: Trace, candidate: Trace, *, backward: bool
) -> tuple[list[Item], list[str]]:
    """The comparisons of activations and cotangents, in execution order.

    Returns:
        (items, lines on what could not be compared)
    """
    return SiteItems(alignment, reference).shown_by(candidate, backward=backward)


class SiteItems:
    """The comparisons that an alignment makes of a reference's run, whatever the candidate shows.

    Args:
        reference: the run, with each layer's own VJP if that is to be compared.
    """

    def __init__(self, alignment: Alignment, reference: Trace) -> None:
        self._alignment, self._reference = alignment, reference
        self._latest: tuple[_Seen, tuple[list[Item], list[str]]] | None = None
        self._outputs = [
            Item("forward", "activation", p.reference, p.candidate, p.layout, p.by)
            for p in alignment.pairs
        ]
        others = [p for p in alignment.pairs if not p.sends_back]
        self._one_way = {p.reference for p in others}
        self._used_otherwise = [
            f"cotangent at `{p.reference}`: the candidate uses `{p.candidate}` in more places, or "
            "in fewer: another share comes back to it"
            for p in others
        ]

    def shown_by(self, candidate: Trace, *, backward: bool) -> tuple[list[Item], list[str]]:
        """`site_items` for one run of the candidate."""
        seen = candidate.info.sources, candidate.info.unobservable, backward
        if self._latest is None or self._latest[0] != seen:
            self._latest = seen, self._shown_by(candidate, backward=backward)
        items, missing = self._latest[1]
        return [*items], [*missing]

    def _shown_by(self, candidate: Trace, *, backward: bool) -> tuple[list[Item], list[str]]:
        passed_on = _same_producer(self._alignment, self._reference, candidate)
        forward = [
            item
            for item in self._forward
            if item.kind != "input" or (item.reference, item.candidate) not in passed_on
        ]
        if not backward:
            return forward, []
        kept, missing = _with_cotangents(self._back, self._reference, candidate)
        return forward + kept, [*missing, *self._used_otherwise]

    @cached_property
    def _forward(self) -> list[Item]:
        inputs = [
            Item("forward", "input", r, c, edge.layout, edge.pair.by)
            for edge in self._alignment.edges
            for r, c in edge.slots()
        ]
        return sorted(
            [*self._outputs, *inputs], key=lambda i: self._reference.place[i.reference_key]
        )

    @cached_property
    def _back(self) -> list[Item]:
        sending = (edge for edge in self._alignment.edges if edge.sends_back)
        both_ways = (item for item in self._outputs if item.reference not in self._one_way)
        found = [*map(_backward_twin, both_ways), *map(_vjp_item, sending)]
        forth = _FORWARD_OF
        found.sort(key=lambda i: -self._reference.place[forth[i.kind], i.reference])
        return found


_Seen = tuple[Mapping[str, str], frozenset[Key], bool]
"""What the comparisons hang on of a run of the candidate: who made what, what it cannot show, and
whether it goes backward."""
_FORWARD_OF: dict[str, Kind] = {back: forth for forth, back in COTANGENT_OF.items()}


def _backward_twin(item: Item) -> Item:
    return Item("backward", "cotangent", item.reference, item.candidate, item.layout, item.by)


def _vjp_item(edge: Edge) -> Item:
    return Item(
        "backward",
        "input_cotangent",
        edge.reference,
        edge.candidate,
        edge.layout,
        edge.pair.by,
        edge.also_reference,
        edge.also_candidate,
    )


def _same_producer(
    alignment: Alignment, reference: Trace, candidate: Trace
) -> set[tuple[str, str]]:
    """The slots whose value is, on both sides, the very object that an aligned site produced."""
    aligned = {(p.reference, p.candidate) for p in alignment.pairs if p.layout}
    ours, theirs = reference.info.sources, candidate.info.sources
    slots = [slot for edge in alignment.edges for slot in edge.slots()]
    return {(r, c) for r, c in slots if (ours.get(r), theirs.get(c)) in aligned}


def _with_cotangents(
    items: list[Item], reference: Trace, candidate: Trace
) -> tuple[list[Item], list[str]]:
    """Those that both sides can show, and lines on the others."""
    kept, hidden = [], []
    for item in items:
        if item.layout is None or item.reference_key not in reference.values:
            if item.reference_key in reference.info.unobservable:
                hidden.append(item.reference)
        elif item.candidate_key in candidate.info.unobservable:
            hidden.append(item.candidate)
        else:
            kept.append(item)
    lines = [
        f"cotangent at `{site}`: overwritten in place or without a backward pass of its own"
        for site in dict.fromkeys(hidden)
    ]
    return kept, lines


def gradient_items(
    match: Match, reference: Trace, candidate: Trace
) -> tuple[list[Item], list[str]]:
    """The comparisons of parameter gradients, in the order of the backward pass."""
    ours, theirs = reference.info.parameter_gradients, candidate.info.parameter_gradients
    items, missing = [], []
    for parameter, held in gradient_pairs(match):
        name = parameter.name
        if not parameter.trainable or name not in ours:
            continue
        made = next((m for m in held if m.transform.function is not None), None)
        lost = next((m for m in held if m.candidate.name not in theirs), None)
        if name in match.partial:
            missing.append(f"gradient of `{name}`: the candidate has no place for a part of it")
        elif made is not None:
            twin = made.candidate.name
            missing.append(f"gradient of `{twin}`: its weight transform has no known inverse")
        elif lost is not None:
            twin = lost.candidate.name
            missing.append(f"gradient of `{twin}`: the candidate keeps none that is recognised")
        else:
            twins = ", ".join(m.candidate.name for m in held)
            layout, pullback = gradient_map(parameter, held)
            items.append(
                Item(
                    "parameter_gradient",
                    "parameter",
                    name,
                    twins,
                    layout,
                    "parameter",
                    pullback=pullback,
                )
            )
    return items, missing


def every_gradient(match: Match, reference: Trace) -> list[Item]:
    """The comparisons of parameter gradients, if the candidate shows all: before it has run."""
    shown = {m.candidate.name: m.candidate.value for m in match.pairs}
    info = RunInfo((), (), {}, {}, {}, parameter_gradients=shown)
    return gradient_items(match, reference, Trace({}, info, ""))[0]


def weight_items(match: Match) -> list[Item]:
    """Every matched parameter, in the order of the pairs; `Matched.truth` is what it shall be."""
    return [
        Item(
            "weights",
            "parameter",
            m.reference_name,
            m.candidate.name,
            m.transform if m.is_permutation else Transform(),
            "parameter",
        )
        for m in match.pairs
    ]


def buffer_items(match: Match, reference: Trace, candidate: Trace) -> list[Item]:
    """Matched buffers that both sides report after a run in train mode."""
    return [
        Item("buffer", "parameter", m.reference.name, m.candidate.name, m.transform, "parameter")
        for m in match.pairs
        if m.reference.name in reference.info.buffers and m.candidate.name in candidate.info.buffers
    ]


def value_of(item: Item, trace: Trace, *, side: str) -> np.ndarray | None:
    """The value of an item in a trace of that side; None if the run has none."""
    if side == "reference":
        name, also = item.reference, item.also_reference
    else:
        name, also = item.candidate, item.also_candidate
    if item.kind == "parameter":
        if item.phase == "parameter_gradient":
            return gradient_of(item, trace.info.parameter_gradients, side=side)
        if item.phase == "buffer":
            return trace.info.buffers.get(name)
    kind: Kind = item.kind  # type: ignore[assignment]
    if not also:
        return trace.values.get((kind, name))
    values = [trace.values.get((kind, site)) for site in (name, *also)]
    there = [value for value in values if value is not None]  # one that never arrived is a zero
    return sum_of(there) if there else None


def gradient_of(item: Item, gradients: Mapping[str, np.ndarray], *, side: str) -> np.ndarray | None:
    """A parameter gradient of an item from all those of a run."""
    if item.pullback is None:
        return gradients.get(item.reference if side == "reference" else item.candidate)
    if side == "reference":
        return item.pullback.of_reference(gradients)
    return item.pullback.of_candidate(gradients)
