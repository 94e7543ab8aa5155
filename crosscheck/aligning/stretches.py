"""Part of stage 5, align: the sites of a stretch, and how layers lie to each other in a run."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence

import numpy as np

from crosscheck.aligning.alignment import SitePair
from crosscheck.aligning.fingerprints import (
    PreparedTrace,
    copies,
    fingerprint,
    looks_like,
    repeating,
    size_and_kind,
)
from crosscheck.aligning.pairing import Pairing
from crosscheck.arrays import is_float
from crosscheck.taps import Kind
from crosscheck.trace import Trace, owner

__all__ = [
    "Anchors",
    "HandedOn",
    "anchored_calls",
    "calls_in",
    "comes_later",
    "ends_behind",
    "is_glue_of",
    "lies_in",
    "makers",
    "runs_after",
    "stretch",
    "until_the_next",
]

MOST_ENDS = 4
"""How many sites behind a layer may be its end."""

Anchors = Sequence[tuple[str, str]]
"""(Reference layer path, candidate layer path) whose parameters were transferred."""


def is_glue_of(trace: Trace, site: str, value: np.ndarray, same: float) -> bool:
    """Whether ``value`` goes, in whatever layout, into the next layer after ``site`` whose input no
    site has produced, and is not only the site's own value in another layout (heads apart)."""
    own = fingerprint(trace.values["activation", site])
    keys = iter(trace.values)
    for key in keys:
        if key == ("activation", site):
            break
    for kind, slot in keys:
        if kind == "input" and slot not in trace.info.sources:
            made = trace.values[kind, slot]
            if size_and_kind(made) != size_and_kind(value):
                return False
            print_of_made = fingerprint(made)[None]
            if looks_like(print_of_made, own, same).all():
                return False
            return bool(looks_like(print_of_made, fingerprint(value), same).all())
    return False


class HandedOn:
    """What sites return that matched sites behind them hand on: a container before its dropout, a
    layer whose activation is inside before one that changes nothing. It is known by that."""

    def __init__(self, pairing: Pairing, guessed: Container[SitePair]) -> None:
        """``guessed``: pairs that say nothing."""
        self._pairs = pairing.pairs
        sure = [p for p in pairing.pairs.values() if p.by == "value" and p not in guessed]
        self._ours = pairing.reference, _by_print(pairing.reference, [p.reference for p in sure])
        self._theirs = pairing.candidate, _by_print(pairing.candidate, [p.candidate for p in sure])

    def as_another(self, r: str, c: str) -> bool:
        """Whether one of two sites is known as something else than the other."""
        ours = {self._pairs[s].candidate for s in _behind(*self._ours, r)}
        theirs = set(_behind(*self._theirs, c))
        return bool(ours or theirs) and not ours & theirs


def _by_print(side: PreparedTrace, sites: Sequence[str]) -> dict[bytes, list[str]]:
    found: defaultdict[bytes, list[str]] = defaultdict(list)
    for site, one in zip(sites, side.prints_of(sites), strict=True):
        found[one.tobytes()].append(site)
    return found


def _behind(side: PreparedTrace, known: dict[bytes, list[str]], site: str) -> list[str]:
    alike = known.get(side.prints_of([site])[0].tobytes(), ())
    return [s for s in repeating(side, site, alike) if side.order[s] > side.order[site]]


def anchored_calls(
    pairing: Pairing, anchors: Anchors
) -> tuple[dict[tuple[str, str], None], set[tuple[str, str]]]:
    """The calls of layers that share parameters, and those of them that have only what they return
    in common."""
    found = dict.fromkeys(_calls_of_both(pairing, anchors))
    last = dict.fromkeys(_calls_of_both(pairing, [*_ends(pairing, anchors)]))
    return found | last, last.keys() - found.keys()


def _calls_of_both(pairing: Pairing, anchors: Anchors) -> Iterator[tuple[str, str]]:
    """The sites of all calls of anchored layers that both sides made."""
    for anchor in anchors:
        r_layer, c_layer = (
            _call(side, layer)
            for side, layer in zip((pairing.reference, pairing.candidate), anchor, strict=True)
        )
        for call in calls_in(pairing.reference, r_layer):
            twin = c_layer + call[len(r_layer) :]
            if twin in pairing.candidate.order:
                yield call, twin


def _ends(pairing: Pairing, anchors: Anchors) -> Iterator[tuple[str, str]]:
    """Where one side does in one layer, with parameters of layers in it that it never calls, what
    the other does in several layers (attention with its projections): that layer, and the last of
    these or what holds them all and returns the same."""
    for this, other, turned in (
        (pairing.reference, pairing.candidate, False),
        (pairing.candidate, pairing.reference, True),
    ):
        partners: defaultdict[str, list[str]] = defaultdict(list)
        for anchor in anchors:
            layer, twin = anchor[::-1] if turned else anchor
            home = layer.rpartition("/" if "/" in layer else ".")[0]
            if layer not in this.order and home in this.order and twin in other.order:
                partners[home].append(twin)
        for home, twins in partners.items():
            if next(this.trace.inside(home), None) is None:
                end = _end(other, twins)
                yield (end, home) if turned else (home, end)


def _end(side: PreparedTrace, layers: Sequence[str]) -> str:
    """The last of some layers, or the container of all of them that hands on what it returns."""
    last = max(layers, key=side.order.__getitem__)
    end, home = last, side.trace.info.parents.get(last)
    while home in side.order and {*layers} <= {*side.trace.inside(home)}:
        if repeating(side, last, [home]):
            end = home
        home = side.trace.info.parents.get(home)
    return end


def _call(side: PreparedTrace, layer: str) -> str:
    """The site of a numbered call; the first has no number, and is one of several only if there is
    a second."""
    first = layer.removesuffix("#1")
    return first if f"{first}#2" in side.order else layer


def comes_later(pairing: Pairing, anchored: Iterable[tuple[str, str]], r: str, c: str) -> bool:
    """Whether one of two layers has the parameters of a layer that runs behind the other one: that
    is its partner, and the two sides call their layers in another order."""
    ours, theirs = pairing.reference.order, pairing.candidate.order
    return any(
        (a == r and b != c and theirs[b] > theirs[c]) or (b == c and a != r and ours[a] > ours[r])
        for a, b in anchored
    )


def lies_in(layer: str, container: str) -> bool:
    """Whether a layer's path, of whatever framework, lies below a container's."""
    return layer.startswith((f"{container}.", f"{container}/"))


def runs_after(side: PreparedTrace, layer: str, site: str) -> bool:
    """Whether a layer returns later than ``site``, in the same round of calls (``#2``)."""
    call = layer + site[len(owner(site)) :]
    return side.order.get(call, -1) > side.order[site]


def until_the_next(side: PreparedTrace, site: str, inside: set[str], others: set[str]) -> list[str]:
    """The sites of a stretch behind ``site``, up to the next anchored one."""
    behind = sorted(
        (s for s in inside if side.order[s] > side.order[site]), key=side.order.__getitem__
    )
    return list(itertools.takewhile(lambda s: s not in others, behind))


def ends_behind(side: PreparedTrace, site: str, inside: set[str], others: set[str]) -> list[str]:
    """Where else a layer may end: the first of `until_the_next`, one of those that hold the same
    numbers."""
    found = [site]
    for other in until_the_next(side, site, inside, others):
        if len(found) > MOST_ENDS:
            break
        if not copies(side, found[-1], [other]):
            found.append(other)
    return found[1:]


def makers(ours: Trace, r: str, theirs: Trace, c: str) -> tuple[str, str]:
    """Of two sites those that made their numbers, so that one which only rearranges what another
    one made (a cast, a transposition) is not paired with one that does more. Two that hold other
    layers stay: they are told by what all of those do."""
    if any(ours.inside(r)) and any(theirs.inside(c)):
        return r, c
    here, there = _rearranged(ours, r), _rearranged(theirs, c)
    if (len(here) > 1) == (len(there) > 1):
        return r, c
    return here[-1], there[-1]


def _rearranged(trace: Trace, site: str) -> list[str]:
    """A site and those before it, the nearest first, that hold its numbers, if in another order:
    of a cast or a transposition what it was given, of a layer with others inside what the last of
    them made."""
    found = [site]
    while (before := _handed_on(trace, found[-1])) is not None:
        found.append(before)
    return found


def _handed_on(trace: Trace, site: str) -> str | None:
    """The site before one that holds its numbers."""
    made = trace.values.get(("activation", site))
    if made is None or site != owner(site):
        return None
    inside = [s for s in trace.inside(site) if ("activation", s) in trace.values]
    if inside:
        last = max(inside, key=lambda s: trace.place["activation", s])
        return last if _same_numbers(trace.values["activation", last], made) else None
    slots = trace.inputs_of(site)
    source = trace.info.sources.get(slots[0]) if len(slots) == 1 else None
    if source is None or source in trace.info.inputs:
        return None
    return source if _same_numbers(trace.values["input", slots[0]], made) else None


def _same_numbers(a: np.ndarray, b: np.ndarray) -> bool:
    if not is_float(a) or not is_float(b) or a.size != b.size:
        return False
    return np.array_equal(np.sort(a, None), np.sort(b, None), equal_nan=True)


def calls_in(side: PreparedTrace, layer: str) -> list[str]:
    """The sites of all calls of a layer: ``fc``, ``fc#2``, ..."""
    found = []
    count, site = 1, layer
    while site in side.order:
        found.append(site)
        count += 1
        site = f"{layer}#{count}"
    return found


def stretch(
    side: PreparedTrace, kind: Kind, site: str, taken: Iterable[str], free: Sequence[str]
) -> set[str]:
    """Free sites that may lie behind a difference at ``site``.

    Those that ran after the last matched site before it; of a container's output, also all
    that the container called; if there is none, its elder siblings and what they called (of a
    model's output, everything: it may come from a head that others follow).
    """
    here = side.order[site]
    earlier = [s for s in free if side.order[s] < here]
    outputs = side.trace.info.outputs  # all are shown at the end: they bound no stretch
    places = [side.order[s] for s in taken if s in side.order and s not in outputs]
    last = max((place for place in places if place < here), default=-1)
    inside = {s for s in earlier if side.order[s] > last}
    if kind == "activation":
        inside |= {s for s in earlier if site in side.ancestors(s)}
    if not inside:
        parent = side.trace.info.parents.get(owner(site))
        inside = {s for s in earlier if site in outputs or parent in side.ancestors(s)}
    return inside
