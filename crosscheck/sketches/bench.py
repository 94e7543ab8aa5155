"""Judges what was aligned: a candidate's values, or a second sketch's, against the records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from crosscheck.aligning.layout import Layout
from crosscheck.comparisons import Item, value_of
from crosscheck.results import SiteResult
from crosscheck.sketches.align import Shadows
from crosscheck.sketches.judge import difference, judged, unlike
from crosscheck.sketches.make import Record, Sketch
from crosscheck.sketches.project import Numbers, measure
from crosscheck.traces.file import named_dtype
from crosscheck.traces.recorded import RecordedTrace, RecordKey
from crosscheck.traces.rounding import item_key
from crosscheck.weights import Match, Matched, Transform

__all__ = ["Bench", "RunBench", "SketchBench"]

PACKED = "{} of `{}`: its layout takes more than a permutation, which a sketch cannot undo"


@dataclass(frozen=True)
class Seen:
    """A candidate's value, sketched in the reference's layout.

    Attributes:
        numbers: None where no layout maps its shape onto the reference's.
        shape, dtype: in its own layout.
    """

    numbers: Numbers | None
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass
class Bench(ABC):
    """Judges items, each once however often it is asked.

    Attributes:
        sketch: of the reference.
        sides: both runs as they were aligned.
        lines: on those that it cannot judge.
    """

    sketch: Sketch
    sides: Shadows
    lines: dict[Item, str] = field(default_factory=dict, init=False)
    cannot: str = field(default=PACKED, init=False)
    _known: dict[Item, SiteResult | None] = field(default_factory=dict, init=False)

    @abstractmethod
    def seen(self, item: Item, record: Record) -> Seen | None:
        """The candidate's value of an item; None where a sketch cannot say."""

    @abstractmethod
    def weight(self, m: Matched, record: Record) -> Seen | None:
        """A parameter of the candidate, whose layout is a permutation; None: as `seen`."""

    @abstractmethod
    def holds(self, name: str) -> bool:
        """Whether the value of a parameter of the candidate is known."""

    def judge(self, item: Item) -> SiteResult | None:
        """One item; None, and a line, where a sketch cannot say."""
        if item not in self._known:
            self._known[item] = self._judge(item)
        return self._known[item]

    def _judge(self, item: Item) -> SiteResult | None:
        kind, first = item_key(item)
        record = combined(self.sketch, [(kind, site) for site in (first, *item.also_reference)])
        seen = None if record is None or item.pullback is not None else self.seen(item, record)
        return self._result(item, record, seen)

    def weights(self, match: Match) -> list[SiteResult]:
        """Every matched parameter of which both sides hold the value."""
        found = []
        for m in match.pairs:
            record = self.sketch.records.get(("parameter", m.reference_name))
            if record is None or not self.holds(m.candidate.name):
                continue
            item = Item(
                "weights", "parameter", m.reference_name, m.candidate.name, m.transform, "parameter"
            )
            plain = m.is_permutation and len(m.references) == 1
            result = self._result(item, record, self.weight(m, record) if plain else None)
            found += [] if result is None else [result]
        return found

    def layout(self, item: Item, record: Record, shape: tuple[int, ...]) -> Layout | None:
        """What maps the candidate's value onto the reference's."""
        outputs = self.sketch.info.outputs, self.sides.candidate.info.outputs
        merged = item.reference not in outputs[0] and item.candidate not in outputs[1]
        return self.sides.layouts.between(record.shape, shape, item.candidate, merged=merged)

    def _result(self, item: Item, record: Record | None, seen: Seen | None) -> SiteResult | None:
        if record is None or seen is None:
            self.lines[item] = self.cannot.format(item.phase.replace("_", " "), item.reference)
            return None
        if seen.numbers is None:
            return unlike(item, record, seen.shape, seen.dtype)
        reading = difference(seen.numbers, record, self.sketch.plan)
        return judged(item, reading, record, seen.shape, seen.dtype)


@dataclass
class RunBench(Bench):
    """The candidate ran: its values are there."""

    candidate: RecordedTrace

    def seen(self, item: Item, record: Record) -> Seen | None:
        raw = value_of(item, self.candidate, side="candidate")
        if raw is None:
            return None
        layout: Layout | Transform | None = item.layout
        if not isinstance(layout, Transform):
            layout = self.layout(item, record, raw.shape)
        return self._turned(raw, None if layout is None else layout.to_reference(raw), record)

    def weight(self, m: Matched, record: Record) -> Seen | None:
        raw = m.candidate.value
        return self._turned(raw, m.transform.to_reference(raw), record)

    def holds(self, name: str) -> bool:
        return name in self.candidate.held

    def _turned(self, raw: np.ndarray, value: np.ndarray | None, record: Record) -> Seen:
        fits = value is not None and value.shape == record.shape
        numbers = measure(value, self.sketch.plan) if fits and value is not None else None
        return Seen(numbers, tuple(raw.shape), raw.dtype)


@dataclass
class SketchBench(Bench):
    """The candidate was sketched itself, by the same plan: only equal layouts can be compared."""

    candidate: Sketch
    cannot: str = field(
        default="{} of `{}`: the two sketches hold it in different layouts", init=False
    )

    def seen(self, item: Item, record: Record) -> Seen | None:
        kind, _ = item_key(item)
        sites = (item.candidate, *item.also_candidate)
        theirs = combined(self.candidate, [(kind, site) for site in sites])
        if theirs is None:
            return None
        layout: Layout | Transform | None = item.layout
        if not isinstance(layout, Transform):
            layout = self.layout(item, record, theirs.shape)
        return self._same(theirs, record, layout)

    def weight(self, m: Matched, record: Record) -> Seen | None:
        theirs = self.candidate.records["parameter", m.candidate.name]
        return self._same(theirs, record, m.transform)

    def holds(self, name: str) -> bool:
        return ("parameter", name) in self.candidate.records

    def _same(
        self, theirs: Record, record: Record, layout: Layout | Transform | None
    ) -> Seen | None:
        dtype = named_dtype(theirs.dtype)
        if layout is None or theirs.size != record.size:
            return Seen(None, theirs.shape, dtype)
        moved = layout.axes is not None and layout.axes != tuple(range(len(layout.axes)))
        return None if moved else Seen(theirs.numbers, theirs.shape, dtype)


def combined(sketch: Sketch, keys: Sequence[RecordKey]) -> Record | None:
    """The record of a value; of several slots, whose values are added up, that of their sum."""
    known = [sketch.record(k) for k in keys if k in sketch.records or k in sketch.same]
    if len(known) <= 1:
        return known[0] if known else None
    facts = np.sum([r.numbers.facts for r in known], axis=0)
    facts[:2] = np.nan  # norm and largest of a sum do not follow from those of its parts
    numbers = Numbers(
        facts,
        np.sum([r.numbers.projected for r in known], axis=0),
        np.sum([r.numbers.sampled for r in known], axis=0),
    )
    floor = sum(r.floor[0] for r in known), sum(r.floor[1] for r in known)
    return replace(known[0], numbers=numbers, floor=floor)
