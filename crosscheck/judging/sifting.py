"""Stages 4 to 7 at once: the candidate's forced run is judged while it is under way.

A forced run shows as much as a free one, and in an honest port nearly all of it agrees at first
sight (`sparing`). Where the free run leaves alignment nothing to look into, each value
is therefore compared with the reference's when it is shown, and only what is not certain is held.
Whoever wants another value after all has the run made again (`crosscheck.memory.Recalled`).

The free run is sifted in the same way. Its error against the float64 oracle, also run freely, is
by the triangle inequality at most

    1 + ‖y_c − y_r‖ / η₀

floors, as in `sparing`. Where that is nowhere above 32 nothing is inherited, whatever the oracle
says: it is not run, and the free ratio is given as this bound.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import replace
from functools import cache
from typing import Any, Generic, TypeVar

import numpy as np

from crosscheck.aligning.distances import NOTICED
from crosscheck.aligning.fingerprints import SAME_VALUE
from crosscheck.comparisons import Item, buffer_items, every_gradient
from crosscheck.details.stage import OTHERS
from crosscheck.judging.evidence import Evidence
from crosscheck.judging.judge import Judge
from crosscheck.judging.noise import DIVERGE
from crosscheck.judging.parts import as_whole, left_out, of_part
from crosscheck.judging.precision import coarser_unit
from crosscheck.judging.sparing import COARSEST, is_certain
from crosscheck.judging.streamed import SMALL
from crosscheck.kernels.pairs import LARGE, MANY
from crosscheck.memory import Recalled, new_values, shape_of, within_limit
from crosscheck.observers import Forcer, Key, chain, keep
from crosscheck.results import SiteResult
from crosscheck.run import Runner
from crosscheck.taps import Kind
from crosscheck.trace import RunInfo, Trace

__all__ = ["Sieve", "recallable", "sifted"]

K = TypeVar("K")
Results = dict[Item, SiteResult]
Shape = tuple[int, ...]
_NOTHING = RunInfo((), (), {}, {}, {})


def sifted(draft: Evidence, *, backward: bool) -> Evidence | None:
    """The evidence with the candidate's forced run, sifted; None where all of it is needed.

    Args:
        draft: with the alignment of the free runs; it is completed and given back.
    """
    e = draft
    sides = e.reference.adapter.capabilities, e.candidate.adapter.capabilities
    if e.tolerance is not None or not (sides[0].float64 and sides[0].forcing and sides[1].forcing):
        return None
    judge = e.new_judge()
    items, _ = e.site_items.shown_by(e.free_candidate, backward=backward)
    forward = [item for item in items if item.phase == "forward"]
    forward += buffer_items(e.match, e.free_reference, e.free_candidate)
    freely = judge.judge_many(forward, e.free_candidate)
    if not all(_is_unnoticed(r, complete=e.alignment.complete) for r in freely.values()):
        return None
    bounds = _bounds(freely)
    if bounds is not None and isinstance(e.free_candidate.values, Recalled):
        e.free_candidate.values.drop()
    forced, near = _run(e, judge, of_part(items, e.free_reference, e.part))
    if not all(_is_unnoticed(r) for i, r in near.items() if i.phase == "forward"):
        return None
    e.forced, e.near, e.free_bounds = forced, near, bounds
    return e


def _run(e: Evidence, judge: Judge, items: list[Item]) -> tuple[Trace, Results]:
    """The candidate's forced run, and the results against the reference's own values."""
    forced = e.alignment.forced_on_candidate(e.free_reference)
    forcer = Forcer(forced, needless=left_out(e, items))
    ahead = every_gradient(e.match, e.free_reference) if _takes_gradients(e) else []
    sieve = Sieve(judge, [*items, *of_part(ahead, e.free_reference, e.part)])
    info = as_whole(e, e.candidate.run(chain(sieve, forcer)), forcer.needless)
    sieve.judge()
    sieve.keep_gradients(info.parameter_gradients)

    runner = e.candidate  # not ``e``, which would hold itself: only Python's collector ends that

    @cache
    def again() -> Trace:
        return runner.record(forcer)

    def recalled(gradients: MutableMapping[str, np.ndarray]) -> RunInfo:
        every = Recalled(gradients, sieve.gradient_shapes, lambda: again().info.parameter_gradients)
        return replace(info, parameter_gradients=every)

    values = Recalled(sieve.held, sieve.shapes, lambda: again().values)
    trace = Trace(values, recalled(sieve.gradients), e.candidate.adapter.framework)
    gradients = []
    if e.candidate.cotangents is not None:
        gradients = of_part(e.gradient_items(trace)[0], e.free_reference, e.part)
    rest = (item for item in (*items, *gradients) if item not in sieve.results)
    near = sieve.results | judge.judge_many(rest, trace)
    if e.keeps_gradients:
        return trace, near
    wanted = new_values()
    for name in _wanted_gradients({item: near[item] for item in gradients}):
        wanted[name] = sieve.gradients[name]
    return replace(trace, info=recalled(wanted)), near


def _takes_gradients(e: Evidence) -> bool:
    """Whether `Sieve` takes gradients of parameters while the candidate runs: the large ones."""
    return not e.keeps_gradients and any(m.candidate.value.size > SMALL for m in e.match.pairs)


def _wanted_gradients(near: Results) -> Iterator[str]:
    """The candidate's parameters whose gradients are not certain, or are shown in a report."""
    wanted: list[Item] = []
    certain: list[Item] = []
    for item, result in near.items():
        (certain if is_certain(result) else wanted).append(item)
    wanted += heapq.nlargest(OTHERS, certain, key=lambda item: near[item].ratio)
    for item in wanted:
        twins = item.pullback.terms if item.pullback else ((item.candidate, None),)
        yield from (name for name, _ in twins)


def _is_unnoticed(result: SiteResult, *, complete: bool = False) -> bool:
    """Whether alignment has no reason to look into the stretch in front of a value; of a
    ``complete`` one: to doubt that it is the same quantity."""
    seen = result.metrics
    if seen is None or not math.isfinite(result.ratio):
        return False
    unit = coarser_unit(result.dtype, result.candidate_dtype or result.dtype)
    of_zeros = seen.cosine == 0.0 and seen.max_abs > 0.0
    limit = SAME_VALUE if complete else min(NOTICED * unit, SAME_VALUE)
    return not of_zeros and seen.rel_l2 <= limit


def _bounds(freely: Results) -> dict[Item, float | None] | None:
    """The free ratios, where no oracle is needed to say that nothing is inherited."""
    found: dict[Item, float | None] = {}
    for item, result in freely.items():
        unit = coarser_unit(result.dtype, result.candidate_dtype or result.dtype)
        if 1.0 + result.ratio > DIVERGE or unit > COARSEST:
            return None
        found[item] = 1.0 + result.ratio if unit > 0.0 else None
    return found


def recallable(
    trace: Trace,
    runner: Runner,
    dropped: Mapping[Key, Shape] | None = None,
    gradients: Mapping[str, Shape] | None = None,
) -> Trace:
    """A free run of ``runner`` whose values may be dropped; nobody else holds them.

    Args:
        dropped, gradients: shapes of values, and of parameters' gradients, that have been already.
    """
    backward = any(kind == "cotangent" for kind, _ in trace.values)
    cotangents = runner.cotangents if backward or gradients else None

    @cache
    def again() -> Trace:
        return replace(runner, cotangents=cotangents).record(passive=True)

    held, info = trace.values, trace.info
    assert isinstance(held, MutableMapping)
    if gradients:
        rest = info.parameter_gradients
        assert isinstance(rest, MutableMapping)
        shapes = {**gradients, **{name: shape_of(rest, name) for name in rest}}
        recalled = Recalled(rest, shapes, lambda: again().info.parameter_gradients)
        info = replace(info, parameter_gradients=recalled)
    known = {**(dropped or {}), **{key: shape_of(held, key) for key in held}}
    return replace(trace, values=Recalled(held, known, lambda: again().values), info=info)


class Sieve:
    """An observer that judges values as they come and holds those that take a closer look.

    Small values wait for each other, in copies, until it is worth comparing them in one call.
    Gradients of parameters that the adapter offers while it runs are judged at once, and then the
    adapter need not keep them: at the end of a backward pass they would all be there.

    Args:
        judge: without an oracle: compares with the reference's own values.
        items: the comparisons to make.

    Attributes:
        held: the values of what is not certain, and of what a report shows.
        gradients: those of parameters, likewise; and those that were not judged.
        shapes, gradient_shapes: of every value and gradient that was shown, in order.
        results: of the items whose value was shown; `judge` completes them.
    """

    def __init__(self, judge: Judge, items: Iterable[Item]) -> None:
        self.held: MutableMapping[Key, np.ndarray] = new_values()
        self.gradients: MutableMapping[str, np.ndarray] = new_values()
        self.shapes: dict[Key, Shape] = {}
        self.gradient_shapes: dict[str, Shape] = {}
        self.results: Results = {}
        self._judge = judge
        self._items: defaultdict[Key, list[Item]] = defaultdict(list)
        self._of_gradients: dict[str, Item] = {}
        self._place: dict[Item, int] = {}
        self._added_up: set[Key] = set()
        for item in items:
            self._place[item] = len(self._place)
            if item.phase == "parameter_gradient":
                if item.pullback is None:
                    self._of_gradients[item.candidate] = item
                continue
            keys: list[Any] = [(item.kind, site) for site in (item.candidate, *item.also_candidate)]
            for key in keys:
                self._items[key].append(item)
            if item.also_candidate:
                self._added_up.update(keys)
        self._waiting: dict[Key, np.ndarray] = {}
        self._elements = 0
        self._shown: _Shown[Key] = _Shown(self.held)
        self._shown_gradients: _Shown[str] = _Shown(self.gradients)

    def __call__(self, site: str, kind: Kind, value: np.ndarray) -> None:
        key = kind, site
        self.shapes[key] = value.shape
        if key not in self._items:
            return
        if key in self._added_up:  # judged when all have come
            keep(self.held, key, value)
            return
        large = value.size >= LARGE
        self._waiting[key] = value if large else np.array(value, order="C")
        self._elements += value.size
        if large or self._elements >= within_limit(MANY, value.itemsize):
            self.judge()

    def planned(self, site: str, kind: Kind) -> np.ndarray | None:
        """It replaces nothing."""
        return None

    def judge(self) -> None:
        """Judge what waits."""
        waiting, self._waiting, self._elements = self._waiting, {}, 0
        asked = (item for key in waiting for item in self._items[key])
        found = self._judge.judge_many(asked, Trace(waiting, _NOTHING, ""))
        self.results |= found
        for key, value in waiting.items():
            items = self._items[key]
            if not all(is_certain(found[item]) for item in items):
                keep(self.held, key, value)
                continue
            for item in items:
                self._shown.offer(key, value, found[item], self._place[item])

    def takes_gradient(self, name: str, value: np.ndarray) -> bool:
        """Whether the gradient of a parameter has been judged, and nobody needs it any more."""
        item = self._of_gradients.get(name)
        if item is None or value.size <= SMALL:
            return False
        alone = Trace({}, replace(_NOTHING, parameter_gradients={name: value}), "")
        result = self.results[item] = self._judge.judge(item, alone)
        self.gradient_shapes[name] = value.shape
        if is_certain(result):
            self._shown_gradients.offer(name, value, result, self._place[item])
        else:
            keep(self.gradients, name, value)
        return True

    def keep_gradients(self, others: Mapping[str, np.ndarray]) -> None:
        """Hold the gradients that were not judged."""
        for name, value in others.items():
            self.gradient_shapes[name] = value.shape
            keep(self.gradients, name, value, borrowed=True)


class _Shown(Generic[K]):
    """Holds the values with the largest ratios, of which a page shows details.

    Args:
        held: where it puts them, beside others.
    """

    def __init__(self, held: MutableMapping[K, np.ndarray]) -> None:
        self._held = held
        self._largest: list[tuple[float, int, K]] = []

    def offer(self, key: K, value: np.ndarray, result: SiteResult, place: int) -> None:
        """Hold a value if its ratio is among the largest so far; of equal ones, the first places
        count."""
        full = len(self._largest) == OTHERS
        equal = not result.noise_floor > 0.0  # integers and flags
        if equal or (full and result.ratio < self._largest[0][0]):
            return
        heapq.heappush(self._largest, (result.ratio, -place, key))
        if key not in self._held:
            keep(self._held, key, value)
        if full:
            gone = heapq.heappop(self._largest)[2]
            if all(gone != shown for *_, shown in self._largest):
                del self._held[gone]
