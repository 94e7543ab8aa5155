"""A layer that frameworks store in different pieces, read as the pieces that all of them hold.

The gates of an LSTM lie side by side in one array in PyTorch, in Keras the other way round, and in
Flax in an array each. A `Reading` says how a layer's own parameters are put together from *slots*:
the smallest arrays that every implementation holds (the weights of one gate, the query's kernel),
in one fixed layout. Read backwards it takes the reference's parameters apart, read forwards it puts
the candidate's together; in between, slots meet by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from crosscheck.adapters.base import Parameter
from crosscheck.weights.expressions import Node, Source, pieces_of, replaced, sources
from crosscheck.weights.transform import Transform

__all__ = ["Bridge", "Composed", "Reading", "Unit", "compose"]

Bridge = Callable[[str, Mapping[str, Source]], Node | None]
"""(slot of the candidate, slots of the reference) -> how it is made of those; None if it is not."""


@dataclass(frozen=True)
class Reading:
    """One way to understand the parameters of a layer.

    Attributes:
        kind: ``"lstm"``, ``"gru"``, ``"rnn"``, ``"qkv"`` or ``"gated"``; readings of one kind share
            slot names.
        made: parameter name -> how it is put together from slots (no sums, each slot once).
        label: what was assumed (an order of gates), for people.
    """

    kind: str
    made: Mapping[str, Node]
    label: str = ""

    @cached_property
    def slots(self) -> dict[str, Source]:
        """The slots, with their shapes."""
        return {s: Source(s, n.shape) for s, n in self.taken_apart().items()}

    def taken_apart(self) -> dict[str, Node]:
        """slot -> how it is made from the layer's own parameters."""
        found: dict[str, Node] = {}
        for name, node in self.made.items():
            found |= pieces_of(node, Source(name, node.shape))
        return found


@dataclass(frozen=True)
class Unit:
    """A layer (or several that belong together) with all its readings, the likeliest first."""

    path: str
    parameters: tuple[Parameter, ...]
    readings: tuple[Reading, ...]
    backward: bool = False  # the second direction of a bidirectional layer


@dataclass(frozen=True)
class Composed:
    """The candidate's parameters in terms of the reference's, under one reading of each."""

    label: str
    transforms: Mapping[str, tuple[tuple[str, ...], Transform]]  # candidate -> (sources, transform)
    missing: tuple[str, ...]  # candidate parameters with a slot that the reference lacks
    lost: tuple[tuple[str, str], ...]  # (reference parameter, slot) that found no place


def compose(ours: Reading, theirs: Reading, bridge: Bridge) -> Composed:
    """Put the candidate's parameters together from the reference's."""
    apart, slots = ours.taken_apart(), ours.slots
    transforms: dict[str, tuple[tuple[str, ...], Transform]] = {}
    missing: list[str] = []
    used: set[str] = set()
    for name, node in theirs.made.items():
        by = {slot: bridge(slot, slots) for slot in sources(node)}
        found = {slot: made for slot, made in by.items() if made is not None}
        if len(found) < len(by):
            missing.append(name)
            continue
        over_slots = replaced(node, found)
        used.update(sources(over_slots))
        whole = replaced(over_slots, apart)
        transforms[name] = sources(whole), Transform.of(whole)
    lost = tuple((sources(apart[s])[0], s) for s in slots if s not in used)
    label = " / ".join(filter(None, (ours.label, theirs.label)))
    return Composed(label, transforms, tuple(missing), lost)
