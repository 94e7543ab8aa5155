"""What stage 5, align, gives: pairs of sites, the layouts between them, and what has no partner."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from crosscheck.aligning.layout import SAME, Layout
from crosscheck.observers import Key
from crosscheck.taps import Kind
from crosscheck.trace import Trace

__all__ = ["Alignment", "Edge", "ForcedValues", "SitePair", "sum_of"]


@dataclass(frozen=True)
class SitePair:
    """A reference site and the candidate site that holds the same quantity.

    Attributes:
        sends_back: whether their cotangents are the same as well; else only the values are compared
            and forced (`crosscheck.judging.uses`).
    """

    reference: str
    candidate: str
    layout: Layout | None  # None: the shapes differ and no layout maps them
    by: str  # "explicit" | "input" | "output" | "value" | "anchor" | "order"
    sends_back: bool = True


@dataclass(frozen=True)
class Edge:
    """One input of an aligned layer: the same slot on both sides.

    Where one side is given a value once and the other several times (``attn(x)`` against
    ``attention(query=x, value=x)``), ``also_reference`` and ``also_candidate`` are the further
    slots. All of them hold one value; the layer's VJP is the sum of what comes back through them.

    Attributes:
        sends_back: whether that is the same on both sides; else only what goes in is compared.
    """

    reference: str
    candidate: str
    layout: Layout
    pair: SitePair
    also_reference: tuple[str, ...] = ()
    also_candidate: tuple[str, ...] = ()
    sends_back: bool = True

    def slots(self) -> list[tuple[str, str]]:
        """Every slot of either side with one that holds the same value on the other."""
        first = [(self.reference, self.candidate)]
        first += [(self.reference, c) for c in self.also_candidate]
        return first + [(r, self.candidate) for r in self.also_reference]


@dataclass(frozen=True)
class Alignment:
    """The pairs in the reference's execution order, and what has no partner.

    Attributes:
        complete: whether all sites of one side have a partner: no further run can add a pair.
        anchored: (reference site, candidate site) of the calls of layers with the same parameters,
            paired or not.
    """

    pairs: tuple[SitePair, ...]
    edges: tuple[Edge, ...]
    unmatched_reference: tuple[str, ...]
    unmatched_candidate: tuple[str, ...]
    complete: bool
    anchored: tuple[tuple[str, str], ...] = ()

    def forward_only(self, sites: Collection[str]) -> Alignment:
        """The same, without the cotangents of these sites of the reference, and without what their
        layers send back."""
        return replace(
            self,
            pairs=tuple(
                replace(p, sends_back=False) if p.reference in sites else p for p in self.pairs
            ),
            edges=tuple(
                replace(e, sends_back=False) if e.pair.reference in sites else e for e in self.edges
            ),
        )

    def forced_on_candidate(self, reference: Trace) -> ForcedValues:
        """The reference's values in the candidate's names and layouts, made when asked for."""
        table: dict[Key, _Source] = {}
        for pair in self.pairs:
            if pair.layout is not None:
                for kind in _at_outputs(pair):
                    table[kind, pair.candidate] = _Source(((kind, pair.reference),), pair.layout)
        for edge in self.edges:
            ours, theirs = (
                (edge.reference, *edge.also_reference),
                (edge.candidate, *edge.also_candidate),
            )
            for slot in theirs:
                table["input", slot] = _Source((("input", edge.reference),), edge.layout)
                if not edge.sends_back:
                    continue
                # The whole of it through the first slot, nothing through the others.
                keys: tuple[Key, ...] = tuple(("input_cotangent", r) for r in ours)
                table["input_cotangent", slot] = _Source(
                    keys, edge.layout, nothing=slot != edge.candidate
                )
        return ForcedValues(reference.values, table)

    def forced_on_reference(self, reference: Trace) -> ForcedValues:
        """The same values under the reference's own names (for the oracle)."""
        pairs = [p for p in self.pairs if p.layout is not None]
        keys: list[Key] = [(kind, p.reference) for p in pairs for kind in _at_outputs(p)]
        for edge in self.edges:
            for slot in (edge.reference, *edge.also_reference):
                keys.append(("input", slot))
                if edge.sends_back:
                    keys.append(("input_cotangent", slot))
        return ForcedValues(reference.values, {key: _Source((key,), SAME) for key in keys})


def _at_outputs(pair: SitePair) -> tuple[Kind, ...]:
    return ("activation", "cotangent") if pair.sends_back else ("activation",)


class _Source(NamedTuple):
    """Where a forced value comes from: the sum of the values at ``keys``, or as many zeros."""

    keys: tuple[Key, ...]
    layout: Layout
    nothing: bool = False


class ForcedValues(Mapping[Key, np.ndarray]):
    """Values of a trace under other names and layouts; nothing is copied until it is asked for."""

    def __init__(self, values: Mapping[Key, np.ndarray], table: Mapping[Key, _Source]) -> None:
        self._values = values
        known = set(values)
        self._table = {
            key: source for key, source in table.items() if known.issuperset(source.keys)
        }

    def __getitem__(self, key: Key) -> np.ndarray:
        source = self._table[key]
        value = self._values[source.keys[0]]
        if source.nothing:
            value = np.zeros_like(value)
        elif len(source.keys) > 1:
            value = sum_of([self._values[k] for k in source.keys])
        return source.layout.to_candidate(value)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


def sum_of(values: list[np.ndarray]) -> np.ndarray:
    """The sum of arrays of one shape, in their own dtype."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
