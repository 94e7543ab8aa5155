"""Part of stage 8, locate: what lies around a site in the runs of both sides."""

from __future__ import annotations

import bisect
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crosscheck.aligning.alignment import Alignment, SitePair
from crosscheck.observers import Key
from crosscheck.results import SiteResult
from crosscheck.taps import FORWARD
from crosscheck.trace import RunInfo, Trace, owner

__all__ = ["MOST_NAMED", "Surroundings"]

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

    def _aligned(self, side: str) -> frozenset[str]:
        return self._aligned_sites[side]

    @cached_property
    def _aligned_sites(self) -> dict[str, frozenset[str]]:
        return {
            side: frozenset(getattr(p, side) for p in self.alignment.pairs)
            for side in ("reference", "candidate")
        }

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
        aligned, order = self._aligned(side), self.orders[side]
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
            if kind == "activation" and site in self._aligned("candidate"):
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

    def loose_producer(self, trace: Trace, site: str, side: str) -> str | None:
        """The layer without partner whose output is given to ``site``, if there is one."""
        source = trace.info.sources.get(site)
        if source is not None and source not in self._aligned(side):
            return self._before_rearranging(trace, owner(source), side)
        if source is not None:
            return None
        loose = self.loose(site, side, "input")
        siblings = [s for s in loose if _parent(trace.info, s) == _parent(trace.info, site)]
        return owner(siblings[-1]) if siblings else None

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
        if source in self._aligned(side):
            return layer
        return self._before_rearranging(trace, owner(source), side)

    def loose_consumer(self, trace: Trace, site: str, side: str) -> str | None:
        """A layer that consumes ``site`` and whose own VJP was not compared; the innermost one."""
        aligned, compared = self._aligned(side), self._compared[side]
        found: list[str] = []
        for consumer in trace.consumers.get(site, ()):
            hidden = ("input_cotangent", consumer) in trace.info.unobservable
            if owner(consumer) not in aligned or consumer not in compared or hidden:
                found.append(owner(consumer))
        parents = {trace.info.parents.get(layer) for layer in found}
        return next((layer for layer in found if layer not in parents), None)

    @cached_property
    def _compared(self) -> dict[str, frozenset[str]]:
        """The input slots of either side that are compared."""
        slots = [slot for edge in self.alignment.edges for slot in edge.slots()]
        return {
            "reference": frozenset(r for r, _ in slots),
            "candidate": frozenset(c for _, c in slots),
        }

    def scope_of(self, consumer: str, several: Sequence[str], site: str) -> str | None:
        """The container of all of several sites behind ``site``."""
        parents = self.candidate.info.parents
        scope = parents.get(consumer)
        inside = f"{scope}".partition("#")[0]
        if scope is not None and all(s.startswith(inside) for s in several):
            return scope
        return self.consumer_scope(self.candidate, site)

    def consumer_scope(self, trace: Trace, site: str) -> str | None:
        """The container whose code passes ``site`` on: the one that called the layer."""
        parent = trace.info.parents.get(owner(site))
        if parent is None and trace.info.outputs:  # a model input: the model's own code reads it
            return owner(trace.info.outputs[0])
        return parent


def _parent(info: RunInfo, site: str) -> str | None:
    return info.parents.get(owner(site))


def _same_numbers(a: np.ndarray, b: np.ndarray) -> bool:
    return a.size == b.size and np.array_equal(np.sort(a, None), np.sort(b, None), equal_nan=True)
