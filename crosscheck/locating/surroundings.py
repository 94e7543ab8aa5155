"""Part of stage 8, locate: what lies around a site in the runs of both sides."""

from __future__ import annotations

import bisect
import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crosscheck.aligning.alignment import Alignment, SitePair
from crosscheck.locating.given import slots_of
from crosscheck.locating.gradients import layer_of
from crosscheck.locating.severed import ancestors, is_silent
from crosscheck.observers import Key
from crosscheck.results import SiteResult
from crosscheck.taps import FORWARD
from crosscheck.trace import RunInfo, Trace, owner

__all__ = ["MOST_NAMED", "Passages", "Surroundings"]

MOST_NAMED = 8  # sites without partner that are listed with a divergence


@dataclass(frozen=True)
class _Order:
    """The forward values of a run in order."""

    keys: list[Key]
    place: dict[Key, int]

    @classmethod
    def of(cls, trace: Trace) -> _Order:
        keys = [key for key in trace.values if key[0] in FORWARD]
        return cls(keys, {key: i for i, key in enumerate(keys)})


@dataclass(frozen=True)
class Surroundings:
    """What lies around a site in the runs of both sides, and has a partner or none."""

    alignment: Alignment
    reference: Trace
    candidate: Trace

    def aligned(self, side: str) -> frozenset[str]:
        """The sites of a side that have a partner."""
        return self._aligned_sites[side]

    @cached_property
    def _aligned_sites(self) -> dict[str, frozenset[str]]:
        return {
            side: frozenset(getattr(p, side) for p in self.alignment.pairs)
            for side in ("reference", "candidate")
        }

    @cached_property
    def _unmatched(self) -> dict[str, frozenset[str]]:
        return {
            "reference": frozenset(self.alignment.unmatched_reference),
            "candidate": frozenset(self.alignment.unmatched_candidate),
        }

    def of_the_gradient(self, reference: str, candidate: str) -> str:
        """What is known of a parameter whose gradient differs."""
        names = ("reference", reference), ("candidate", candidate)
        layers = [(side, layer_of(name)) for side, name in names]
        if any(layer in self._unmatched[side] for side, layer in layers):
            return (
                "the gradient of this parameter is wrong; its layer has no partner, so that what "
                "it was given could not be made the reference's and may be wrong itself"
            )
        return (
            "the gradient of this parameter is wrong: the activations and the cotangent behind it "
            "are the reference's"
        )

    @cached_property
    def _with_edges(self) -> dict[str, dict[str, SitePair]]:
        """Reference site -> candidate site -> their pair, where inputs are compared."""
        found: defaultdict[str, dict[str, SitePair]] = defaultdict(dict)
        for edge in self.alignment.edges:
            found[edge.pair.reference][edge.pair.candidate] = edge.pair
        return dict(found)

    @cached_property
    def orders(self) -> dict[str, _Order]:
        """The forward values of either side in the order of its run."""
        return {"reference": _Order.of(self.reference), "candidate": _Order.of(self.candidate)}

    def loose(
        self,
        site: str,
        side: str,
        kind: str = "activation",
        most: int | None = MOST_NAMED,
    ) -> tuple[str, ...]:
        """Sites without partner that ran after the last aligned one before ``site``."""
        aligned, order = self.aligned(side), self.orders[side]
        found: list[str] = []
        if (kind, site) not in order.place:
            return ()
        for i in range(order.place[kind, site] - 1, -1, -1):  # type: ignore[index]
            before_kind, before = order.keys[i]
            if before_kind != "activation":
                continue
            if before in aligned:
                break
            found.append(before)
        return tuple(reversed(found))[:most]

    def behind(self, site: str) -> list[str]:
        """The candidate's layers without partner between ``site`` and the next aligned one, in the
        same container: a wrong cotangent may come from any of them."""
        here = self.orders["candidate"].place["activation", site]
        siblings = self._aligned_in.get(_parent(self.candidate.info, site), [])
        end = next(iter(siblings[bisect.bisect_right(siblings, here) :]), sys.maxsize)
        first, last = (bisect.bisect_right(self._loose_places, i) for i in (here, end))
        keys = self.orders["candidate"].keys
        return [keys[i][1] for i in self._loose_places[first:last]]

    @cached_property
    def _aligned_in(self) -> dict[str | None, list[int]]:
        """Of each container of the candidate, the places of what is aligned in it."""
        found: defaultdict[str | None, list[int]] = defaultdict(list)
        for i, (kind, site) in enumerate(self.orders["candidate"].keys):
            if kind == "activation" and site in self.aligned("candidate"):
                found[_parent(self.candidate.info, site)].append(i)
        return dict(found)

    @cached_property
    def _loose_places(self) -> list[int]:
        """The places of the candidate's sites without partner."""
        loose = frozenset(self.alignment.unmatched_candidate)
        keys = enumerate(self.orders["candidate"].keys)
        return [i for i, (kind, site) in keys if kind == "activation" and site in loose]

    def entered(self, result: SiteResult) -> SitePair | None:
        """The last layer before an input that is compared at its own inputs only, if none between
        is aligned: the wrong value was computed from there on."""
        before_r = self.loose(result.reference, "reference", "input", most=None)
        before_c = self.loose(result.candidate, "candidate", "input", most=None)
        pairs = (p for r in reversed(before_r) for p in self._with_edges.get(r, {}).values())
        return next((p for p in pairs if p.candidate in before_c), None)

    def several_in(self, result: SiteResult) -> str:
        """Of an output that one side makes in one layer and the other in several, by what is
        compared of their inputs: which they are. Else nothing."""
        ours, theirs = result.reference, result.candidate
        if first := self._beginnings[1].get(theirs):
            return f"`{theirs}` does what the reference does from `{first}` to `{ours}`"
        if first := self._beginnings[0].get(ours):
            return f"`{ours}` does what the candidate does from `{first}` to `{theirs}`"
        return ""

    @cached_property
    def _beginnings(self) -> tuple[dict[str, str], dict[str, str]]:
        """Of layers whose inputs alone are compared: the other side's layer, for each side's."""
        aligned = {(p.reference, p.candidate) for p in self.alignment.pairs}
        entered = {(e.pair.reference, e.pair.candidate) for e in self.alignment.edges} - aligned
        return dict(entered), {c: r for r, c in entered}

    def _loose_producer(self, trace: Trace, site: str, side: str) -> str | None:
        """The layer without partner whose output is given to ``site``, if there is one."""
        source = trace.info.sources.get(site)
        if source is not None and source not in self.aligned(side):
            return self._before_rearranging(trace, owner(source), side)
        if source is not None:
            return None
        siblings = self._loose_siblings(trace, site, side)
        return siblings[-1] if siblings else None

    def _loose_siblings(self, trace: Trace, slot: str, side: str) -> list[str]:
        """The layers without partner that were called before a layer, by the same code: of an
        input that no layer returned, it may have been made of what any of them did."""
        unmatched = self._unmatched[side]  # not what only hands on the value of an aligned site
        home = _parent(trace.info, slot)
        loose = self.loose(slot, side, "input", most=None)
        return [owner(s) for s in loose if s in unmatched and _parent(trace.info, s) == home]

    def leading_to(self, trace: Trace, slot: str, side: str) -> list[str]:
        """The layers without partner that an input was made by, in the order of the run; the last
        one returned it, or it was made of what that returned."""
        last = self._loose_producer(trace, slot, side)
        found, todo = ({last}, trace.inputs_of(last)[:]) if last else (set(), [])
        while todo:
            before = todo.pop()
            source = trace.info.sources.get(before)
            if source is None:
                makers = self._loose_siblings(trace, before, side)
            elif source in self.aligned(side) or source in trace.info.inputs:
                continue
            else:
                makers = [owner(source)]
            new = dict.fromkeys(maker for maker in makers if maker not in found)
            found |= new.keys()
            todo += (slot for maker in new for slot in trace.inputs_of(maker))
        place = self.orders[side].place
        return sorted(found, key=lambda one: place.get(("activation", one), -1))

    def makers(self, slot: str, side: str, other: str) -> str | None:
        """The layers without partner that returned an input, or, where code makes it, that ran
        before and have the parameters of ``other``, a layer of the other side. Of several the
        container; None if there are none."""
        ours = side == "reference"
        pairs = [p if ours else p[::-1] for p in self.alignment.anchored]
        trace, place = (self.reference if ours else self.candidate), self.orders[side].place
        if trace.info.sources.get(slot) is not None:
            return self.all_of(trace, self.leading_to(trace, slot, side))
        last = place["input", slot]
        found = [
            mine
            for mine, its in pairs
            if its == other
            and mine not in self.aligned(side)
            and place.get(("activation", mine), last) < last
        ]
        return self.all_of(trace, found)

    def all_of(self, trace: Trace, layers: Sequence[str]) -> str | None:
        """The layer, if there is one; of several the container."""
        return self.scope_of(trace, layers) if len(layers) > 1 else next(iter(layers), None)

    def _before_rearranging(self, trace: Trace, layer: str, side: str) -> str | None:
        """The layer whose numbers ``layer`` passes on (a flatten, a permutation); it is not to
        blame for them. None if they come from the code before it."""
        slots = trace.inputs_of(layer)
        made = trace.values.get(("activation", layer))
        if len(slots) != 1 or made is None:
            return layer
        if not _same_numbers(trace.values["input", slots[0]], made):
            return layer
        source = trace.info.sources.get(slots[0])
        if source is None:
            return None
        if source in self.aligned(side):
            return layer
        return self._before_rearranging(trace, owner(source), side)

    def loose_consumers(self, trace: Trace, site: str, side: str) -> list[str]:
        """The layers that consume ``site`` and whose own VJP was not compared; the innermost. Not
        those of the reference that only hand it on (a dropout that drops nothing)."""
        aligned, compared = self.aligned(side), self._sending[side]
        found: list[str] = []
        seen: set[str] = set()
        for consumer in trace.consumers.get(site, ()):
            hidden = ("input_cotangent", consumer) in trace.info.unobservable
            if owner(consumer) not in aligned or consumer not in compared or hidden:
                if side == "reference" and self._only_hands_on(consumer):
                    found += self.loose_consumers(trace, owner(consumer), side)
                else:
                    found.append(owner(consumer))
            else:  # and so is what a container sends back that only hands the value on to it
                seen |= ancestors(trace.info, owner(consumer))
        parents = {trace.info.parents.get(layer) for layer in found}
        return list(dict.fromkeys(one for one in found if one not in parents | seen))

    def _only_hands_on(self, slot: str) -> bool:
        """Whether a layer of the reference returns what it is given there and sends back what it
        gets."""
        layer = owner(slot)
        keys: list[tuple[Key, Key]] = [
            (("input", slot), ("activation", layer)),
            (("cotangent", layer), ("input_cotangent", slot)),
        ]
        values = self.reference.values
        return all(
            a in values and b in values and _is_handed_on(values[a], values[b]) for a, b in keys
        )

    def silenced(self, layer: str | None) -> list[str]:
        """The candidate's layers without partner from ``layer`` on, to the first that a cotangent
        arrives at: any of them may be the one that cuts it off."""
        found: list[str] = []
        while layer is not None and layer not in found:
            found.append(layer)
            outputs = self.candidate.outputs_of.get(layer, ())
            if not all(is_silent(self.candidate, "cotangent", site) for site in outputs):
                break
            behind = (self.loose_consumers(self.candidate, site, "candidate") for site in outputs)
            layer = next(itertools.chain.from_iterable(behind), None)
        return found

    @cached_property
    def _sending(self) -> dict[str, frozenset[str]]:
        """The input slots of either side through which the same comes back on both sides."""
        return slots_of(edge for edge in self.alignment.edges if edge.sends_back)

    def scope_of(self, trace: Trace, several: Sequence[str]) -> str | None:
        """The innermost container of all of several sites."""
        calls = [owner(site) for site in several]
        around = [ancestors(trace.info, call) | {call} for call in calls]
        scope = trace.info.parents.get(calls[-1])
        while scope is not None and not all(scope in these for these in around):
            scope = trace.info.parents.get(scope)
        return scope

    def consumer_scope(self, trace: Trace, site: str) -> str | None:
        """The container whose code passes ``site`` on: the one that called the layer."""
        parent = trace.info.parents.get(owner(site))
        if parent is None and trace.info.outputs:  # a model input: the model's own code reads it
            return owner(trace.info.outputs[0])
        return parent


@dataclass(frozen=True)
class Passages:
    """Values that containers only hand on: to a layer inside, or from one.

    What goes into the first layer of a container may be what the container was given. If it is
    wrong, so is that, and the container is innocent. The same for what its last layer returns.
    """

    alignment: Alignment
    reference: Trace
    candidate: Trace

    def given(self, reference: str, candidate: str) -> tuple[str, str]:
        """The outermost inputs that hold the values of two inputs, on both sides alike."""
        return self._climbed(reference, candidate, _as_given)

    def returned(self, reference: str, candidate: str) -> tuple[str, str]:
        """The outermost sites that return what two sites return, on both sides alike."""
        return self._climbed(reference, candidate, _as_returned)

    def _climbed(
        self, reference: str, candidate: str, up: Callable[[Trace, str], str | None]
    ) -> tuple[str, str]:
        """Step by step: on both sides at once, or out of a container without a partner."""
        here = reference, candidate
        while True:
            ours, theirs = up(self.reference, here[0]), up(self.candidate, here[1])
            if ours is not None and theirs is not None:
                here = ours, theirs
            elif ours is not None and owner(ours) not in self._paired[0]:
                here = ours, here[1]
            elif theirs is not None and owner(theirs) not in self._paired[1]:
                here = here[0], theirs
            else:
                return here

    @cached_property
    def _paired(self) -> tuple[frozenset[str], frozenset[str]]:
        pairs = self.alignment.pairs
        return frozenset(p.reference for p in pairs), frozenset(p.candidate for p in pairs)


def _as_given(trace: Trace, slot: str) -> str | None:
    """The input of the layer's container that holds what the layer is given; None if none does."""
    home = trace.info.parents.get(owner(slot))
    value = trace.values.get(("input", slot))
    if home is None or value is None:
        return None
    slots = trace.inputs_of(home)
    return next((s for s in slots if _is_handed_on(trace.values["input", s], value)), None)


def _as_returned(trace: Trace, site: str) -> str | None:
    """The container that returns what a layer in it returns; None if it does not."""
    home = trace.info.parents.get(owner(site))
    value = trace.values.get(("activation", site))
    if home is None or value is None or home in trace.info.outputs:
        return None
    made = trace.values.get(("activation", home))
    return home if made is not None and _is_handed_on(made, value) else None


def _parent(info: RunInfo, site: str) -> str | None:
    return info.parents.get(owner(site))


def _is_handed_on(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the one is the other, but for its shape: who rearranges a value may do it wrongly."""
    return a.size == b.size and np.array_equal(a.reshape(-1), b.reshape(-1), equal_nan=True)


def _same_numbers(a: np.ndarray, b: np.ndarray) -> bool:
    return a.size == b.size and np.array_equal(np.sort(a, None), np.sort(b, None), equal_nan=True)
