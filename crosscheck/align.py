"""Stage 5, align: two traces -> pairs of sites, and the layout that maps one onto the other.

In this order:

1. pairs that the caller gave, the model's inputs and its outputs;
2. by value. Up to the first divergence both sides hold the same numbers, so a fingerprint that does
   not depend on layout proposes, and an element-wise comparison in an enforced layout confirms.
   With the values matched so far forced onto the candidate, those behind a divergence match again;
   `crosscheck.api` repeats this until nothing new is found;
3. only where something matched differs, to narrow the stretch before it: the layers that produced
   a differing input; layers whose parameters were transferred (anchors); then order, shape and
   name. One pair at a time, the earliest, since what lies behind it may then match by value.

Sites without a partner are a result. A site that merely repeats the value of a matched one (a
dropout in eval mode, a wrapper around its last layer) is compared in effect and is not listed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from crosscheck.assignment import best_monotone
from crosscheck.errors import CannotCompare, InvalidArgument, capped
from crosscheck.layout import SAME, Layout, LayoutBook, relative_error
from crosscheck.names import Tokens, canonical, similarity
from crosscheck.observers import Key
from crosscheck.taps import Kind
from crosscheck.trace import Trace, owner

__all__ = ["Aligner", "Alignment", "Edge", "SitePair", "pair_outputs"]

_AT_OUTPUTS: tuple[Kind, Kind] = ("activation", "cotangent")
_AT_INPUTS: tuple[Kind, Kind] = ("input", "input_cotangent")
SAME_VALUE = 1e-3
"""Relative 2-norm below which two values are taken for the same quantity. Far above rounding, so
that a small defect does not break alignment; far below what unrelated values show."""


@dataclass(frozen=True)
class SitePair:
    """A reference site and the candidate site that holds the same quantity."""

    reference: str
    candidate: str
    layout: Layout | None  # None: the shapes differ and no layout maps them
    by: str  # "explicit" | "input" | "output" | "value" | "anchor" | "order"


@dataclass(frozen=True)
class Edge:
    """One input of an aligned layer: the same slot on both sides."""

    reference: str
    candidate: str
    layout: Layout
    pair: SitePair


@dataclass(frozen=True)
class Alignment:
    """The pairs in the reference's execution order, and what has no partner."""

    pairs: tuple[SitePair, ...]
    edges: tuple[Edge, ...]
    unmatched_reference: tuple[str, ...]
    unmatched_candidate: tuple[str, ...]

    def forced_on_candidate(self, reference: Trace) -> ForcedValues:
        """The reference's values in the candidate's names and layouts, made when asked for."""
        table: dict[Key, tuple[Key, Layout]] = {}
        for pair in self.pairs:
            if pair.layout is not None:
                for kind in _AT_OUTPUTS:
                    table[kind, pair.candidate] = ((kind, pair.reference), pair.layout)
        for edge in self.edges:
            for kind in _AT_INPUTS:
                table[kind, edge.candidate] = ((kind, edge.reference), edge.layout)
        return ForcedValues(reference.values, table)

    def forced_on_reference(self, reference: Trace) -> ForcedValues:
        """The same values under the reference's own names (for the oracle)."""
        pairs = [p.reference for p in self.pairs if p.layout is not None]
        keys: list[Key] = [(k, s) for s in pairs for k in _AT_OUTPUTS]
        keys += [(k, e.reference) for e in self.edges for k in _AT_INPUTS]
        return ForcedValues(reference.values, {key: (key, SAME) for key in keys})


class ForcedValues(Mapping[Key, np.ndarray]):
    """Values of a trace under other names and layouts; nothing is copied until it is asked for."""

    def __init__(
        self, values: Mapping[Key, np.ndarray], table: Mapping[Key, tuple[Key, Layout]]
    ) -> None:
        self._values = values
        self._table = {key: source for key, source in table.items() if source[0] in values}

    def __getitem__(self, key: Key) -> np.ndarray:
        source, layout = self._table[key]
        return layout.to_candidate(self._values[source])

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


# -- fingerprints --------------------------------------------------------------------------------


def fingerprint(value: np.ndarray) -> np.ndarray:
    """Numbers that no permutation of the elements changes: six moments and the NaN count.

    Returns:
        float64 (7,): mean, rms, mean |x|, signed cube root of the third moment, min, max (over
        finite elements), count of non-finite elements.
    """
    flat = value.reshape(-1).astype(np.float64)
    finite = np.isfinite(flat)
    bad = flat.size - int(np.count_nonzero(finite))
    flat = flat[finite] if bad else flat
    if flat.size == 0:
        return np.array([0, 0, 0, 0, 0, 0, bad], np.float64)
    square = flat * flat
    return np.array(
        [
            flat.mean(),
            np.sqrt(square.mean()),
            np.abs(flat).mean(),
            np.cbrt((square * flat).mean()),
            flat.min(),
            flat.max(),
            bad,
        ]
    )


def _alike(prints: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Which rows of ``prints`` (m, 7) could be the same content as ``one`` (7,)."""
    scale = max(one[1], np.finfo(np.float64).tiny)
    # Minimum and maximum are compared against their own size: one element may carry them.
    sizes = np.maximum(np.abs(one), scale)
    close: np.ndarray = (np.abs(prints - one) <= 2.0 * SAME_VALUE * sizes).all(axis=1)
    return close


@dataclass
class _Side:
    """One trace, prepared for matching."""

    trace: Trace
    names: dict[str, Tokens]
    order: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    prints: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, trace: Trace) -> _Side:
        values = trace.activations()
        shapes = {site: value.shape for site, value in values.items()}
        return cls(
            trace=trace,
            names=canonical(values),
            order={site: i for i, site in enumerate(values)},
            shapes=shapes,
            prints={site: fingerprint(value) for site, value in values.items()},
        )

    def value(self, site: str) -> np.ndarray:
        return self.trace.values["activation", site]

    def kind(self, site: str) -> str:
        return self.trace.info.layers.get(owner(site), "").lower()


class Aligner:
    """Pairs found so far between a reference's free trace and runs of a candidate.

    Args:
        reference, candidate: the free traces.
        explicit: {reference site: candidate site}, overrides everything.
        anchors: (reference layer path, candidate layer path) whose parameters were transferred.
        skip: sites (of either side) to leave out.

    Raises:
        InvalidArgument: an explicit or skipped site does not exist.
        CannotCompare: an output without a counterpart.
    """

    def __init__(
        self,
        reference: Trace,
        candidate: Trace,
        *,
        explicit: Mapping[str, str],
        anchors: Sequence[tuple[str, str]],
        skip: Sequence[str] = (),
    ) -> None:
        self.reference = _Side.of(reference)
        self.candidate = _Side.of(candidate)
        self.book = LayoutBook()
        self._anchors = anchors
        self._skip = set(skip)
        self._pairs: dict[str, SitePair] = {}
        self._taken: set[str] = set()
        self._check_names(explicit)
        self._learn_layouts()
        for r, c in explicit.items():
            self._add(r, c, "explicit")
        for r, c in self._named_inputs():
            self._add(r, c, "input")
        for r, c in pair_outputs(reference, candidate, explicit=explicit, skip=skip):
            self._add(r, c, "output")
        self.match_values()

    # -- steps ---------------------------------------------------------------------------------

    def match_values(self, trace: Trace | None = None) -> int:
        """Pair free sites with equal values; of a forced run if one is given. Returns how many."""
        candidate = self.candidate if trace is None else _Side.of(trace)
        free_c = self._free(candidate, self._taken)
        proposals = []
        by_size: defaultdict[int, list[str]] = defaultdict(list)
        for site in free_c:
            by_size[int(np.prod(candidate.shapes[site]))].append(site)
        tables = {n: np.array([candidate.prints[s] for s in sites]) for n, sites in by_size.items()}
        for r in self._free(self.reference, self._pairs):
            size = int(np.prod(self.reference.shapes[r]))
            if size == 0 or size not in tables:
                continue
            for i in np.flatnonzero(_alike(tables[size], self.reference.prints[r])):
                c = by_size[size][i]
                layout = self.book.choose(self.reference.shapes[r], candidate.shapes[c])
                if layout is not None and self._same(r, c, layout, candidate):
                    proposals.append((self._likeness(r, c), r, c))
        return self._accept(proposals, "value")

    def refine(self, trace: Trace, *, at_once: bool = False) -> int:
        """Pair sites in the first stretch of a forced run that ends in a difference.

        Args:
            trace: the candidate, forced at the pairs found so far.
            at_once: take all anchored pairs of the stretch, not only the earliest.

        Returns:
            How many pairs were added.
        """
        for kind, pair, edge in self._differences(trace):
            if edge is not None and self._pair_producers(edge, trace):
                return 1
            inside_r = self._stretch(self.reference, kind, pair.reference, set(self._pairs))
            inside_c = self._stretch(self.candidate, kind, pair.candidate, self._taken)
            anchored = [
                (r, c) for r, c in self._anchored_sites() if r in inside_r and c in inside_c
            ]
            anchored.sort(key=lambda rc: self.reference.order[rc[0]])
            chosen = anchored if at_once else anchored[:1]
            for r, c in chosen:
                self._add(r, c, "anchor")
            if chosen:
                return len(chosen)
            ordered = self._by_order(inside_r, inside_c)
            if ordered:
                self._add(*ordered[0], "order")
                return 1
        return 0

    def alignment(self, trace: Trace | None = None) -> Alignment:
        """The result so far; ``trace``: the candidate's latest run, for its layers' inputs."""
        candidate = self.candidate if trace is None else _Side.of(trace)
        pairs = tuple(sorted(self._pairs.values(), key=lambda p: self.reference.order[p.reference]))
        return Alignment(
            pairs=pairs,
            edges=tuple(e for p in pairs if p.layout for e in self._edges(p, candidate.trace)),
            unmatched_reference=self._unmatched(self.reference, set(self._pairs)),
            unmatched_candidate=self._unmatched(self.candidate, self._taken),
        )

    # -- details -------------------------------------------------------------------------------

    def _check_names(self, explicit: Mapping[str, str]) -> None:
        for side, names in (
            (self.reference, explicit.keys()),
            (self.candidate, explicit.values()),
        ):
            for name in names:
                if name not in side.order:
                    raise InvalidArgument(_no_such_site("sites=", name, side))
        for name in self._skip:
            if name not in self.reference.order and name not in self.candidate.order:
                raise InvalidArgument(_no_such_site("skip=", name, self.reference))

    def _learn_layouts(self) -> None:
        """Let sites with equal content vote; the first partner of each is enough."""

        proposals = []
        for r, shape in self.reference.shapes.items():
            if len(shape) < 3:
                continue
            for c, other in self.candidate.shapes.items():
                if (
                    sorted(shape) == sorted(other)
                    and _alike(self.candidate.prints[c][None], self.reference.prints[r]).all()
                ):
                    proposals.append((self.reference.value(r), self.candidate.value(c)))
                    break
        self.book.learn(proposals, tolerance=SAME_VALUE)

    def _named_inputs(self) -> list[tuple[str, str]]:
        """Inputs with the same content under the same name, or in the same place."""
        ours, theirs = self.reference.trace.info.inputs, self.candidate.trace.info.inputs
        if set(ours) == set(theirs):
            return [(name, name) for name in ours]
        return list(zip(ours, theirs, strict=True)) if len(ours) == len(theirs) else []

    def _add(self, r: str, c: str, by: str) -> None:
        if r in self._pairs or c in self._taken or r in self._skip or c in self._skip:
            return
        layout = self.book.choose(self.reference.shapes[r], self.candidate.shapes[c])
        self._pairs[r] = SitePair(r, c, layout, by)
        self._taken.add(c)

    def _free(self, side: _Side, taken: Mapping[str, object] | set[str]) -> list[str]:
        return [s for s in side.order if s not in taken and s not in self._skip]

    def _same(self, r: str, c: str, layout: Layout, candidate: _Side) -> bool:
        value = layout.to_reference(candidate.value(c))
        return relative_error(value, self.reference.value(r)) <= SAME_VALUE

    def _likeness(self, r: str, c: str) -> float:
        """Which of several equal values belong together: names, layer types, place in the run."""
        place = abs(
            self.reference.order[r] / len(self.reference.order)
            - self.candidate.order[c] / len(self.candidate.order)
        )
        types = self.reference.kind(r), self.candidate.kind(c)
        return (
            similarity(self.reference.names[r], self.candidate.names[c])
            + 0.5 * (types[0] == types[1] != "")
            - place
        )

    def _accept(self, proposals: list[tuple[float, str, str]], by: str) -> int:
        before = len(self._pairs)
        for _, r, c in sorted(proposals, key=lambda p: (-p[0], self.reference.order[p[1]])):
            self._add(r, c, by)
        return len(self._pairs) - before

    def _differences(self, trace: Trace) -> list[tuple[Kind, SitePair, Edge | None]]:
        """Everything matched that differs in a forced run, in the reference's order."""
        alignment = self.alignment(trace)
        found: list[tuple[Kind, SitePair, Edge | None]] = []
        for pair in alignment.pairs:
            value = trace.values.get(("activation", pair.candidate))
            truth = self.reference.value(pair.reference)
            if value is None or pair.layout is None or _far(value, truth, pair.layout):
                found.append(("activation", pair, None))
        for edge in alignment.edges:
            value = trace.values["input", edge.candidate]
            truth = self.reference.trace.values["input", edge.reference]
            if _far(value, truth, edge.layout):
                found.append(("input", edge.pair, edge))
        place = {key: i for i, key in enumerate(self.reference.trace.values)}
        return sorted(
            found, key=lambda f: place[f[0], f[1].reference if f[2] is None else f[2].reference]
        )

    def _pair_producers(self, edge: Edge, trace: Trace) -> bool:
        """Pair the two layers that made a differing input, if neither has a partner yet."""
        r = self.reference.trace.info.sources.get(edge.reference)
        c = trace.info.sources.get(edge.candidate)
        if r is None or c is None or r in self._pairs or c in self._taken:
            return False
        before = len(self._pairs)
        if self.book.choose(self.reference.shapes[r], self.candidate.shapes[c]) is not None:
            self._add(r, c, "order")
        return len(self._pairs) > before

    def _stretch(self, side: _Side, kind: Kind, site: str, taken: set[str]) -> set[str]:
        """Free sites that may lie behind a difference at ``site``.

        Those that ran after the last matched site before it; of a container's output, also all
        that the container called; if there is none, its elder siblings and what they called.
        """
        free = [s for s in side.order if s not in taken and s not in self._skip]
        earlier = [s for s in free if side.order[s] < side.order[site]]
        last = max(
            (i for s, i in side.order.items() if s in taken and s != site and i < side.order[site]),
            default=-1,
        )
        inside = {s for s in earlier if side.order[s] > last}
        if kind == "activation":
            inside |= {s for s in earlier if site in _ancestors(side.trace, s)}
        if not inside:
            parent = side.trace.info.parents.get(owner(site))
            inside = {s for s in earlier if parent in _ancestors(side.trace, s)}
        return inside

    def _anchored_sites(self) -> list[tuple[str, str]]:
        found = []
        for r_layer, c_layer in self._anchors:
            for call in _calls(self.reference, r_layer):
                twin = c_layer + call[len(r_layer) :]
                if twin in self.candidate.order:
                    found.append((call, twin))
        return found

    def _by_order(self, inside_r: set[str], inside_c: set[str]) -> list[tuple[str, str]]:
        """Layers of one type or alike in name, with shapes that fit, in execution order."""
        ours = sorted(inside_r, key=self.reference.order.__getitem__)
        theirs = sorted(inside_c, key=self.candidate.order.__getitem__)
        score = np.zeros((len(ours), len(theirs)))
        for i, r in enumerate(ours):
            for j, c in enumerate(theirs):
                shapes = self.reference.shapes[r], self.candidate.shapes[c]
                name = similarity(self.reference.names[r], self.candidate.names[c])
                alike = self.reference.kind(r) == self.candidate.kind(c) or name >= 0.6
                if alike and self.book.choose(*shapes) is not None:
                    score[i, j] = 0.2 + 2.0 * max(name, 0.5) ** 2
        return [(ours[i], theirs[j]) for i, j in best_monotone(score)]

    def _edges(self, pair: SitePair, candidate: Trace) -> list[Edge]:
        reference = self.reference.trace
        if owner(pair.reference) != pair.reference or owner(pair.candidate) != pair.candidate:
            return []  # a further output: the inputs belong to the first one
        ours, theirs = reference.inputs_of(pair.reference), candidate.inputs_of(pair.candidate)
        edges: list[Edge] = []
        free = list(theirs)
        for index, r in enumerate(ours):
            ranked = sorted(free, key=lambda c: (theirs.index(c) != index, theirs.index(c)))
            value = reference.values["input", r]
            fitting = []
            for c in ranked:
                other = candidate.values["input", c]
                layout = self.book.choose(value.shape, other.shape)
                if layout is not None:
                    error = relative_error(layout.to_reference(other), value)
                    fitting.append((error > SAME_VALUE, c, layout))
            if not fitting:
                continue
            differs, c, layout = min(fitting, key=lambda f: f[0])
            if differs and len(ours) != len(theirs):
                continue  # no telling which input it should have been
            free.remove(c)
            edges.append(Edge(r, c, layout, pair))
        return edges

    def _unmatched(self, side: _Side, taken: set[str]) -> tuple[str, ...]:
        known: defaultdict[bytes, list[str]] = defaultdict(list)
        for site in taken:
            if site in side.prints:
                known[side.prints[site].tobytes()].append(site)
        return tuple(
            site
            for site in self._free(side, taken)
            if not any(
                np.array_equal(side.value(site).ravel(), side.value(twin).ravel(), equal_nan=True)
                for twin in known[side.prints[site].tobytes()]
                if side.value(site).dtype.kind == "f"
            )
        )


def _calls(side: _Side, layer: str) -> list[str]:
    """The sites of all calls of a layer: ``fc``, ``fc#2``, ..."""
    found = []
    count, site = 1, layer
    while site in side.order:
        found.append(site)
        count += 1
        site = f"{layer}#{count}"
    return found


def _far(value: np.ndarray, truth: np.ndarray, layout: Layout) -> bool:
    return relative_error(layout.to_reference(value), truth) > SAME_VALUE


def _ancestors(trace: Trace, site: str) -> set[str]:
    """The calls during which ``site`` was called."""
    found: set[str] = set()
    parent = trace.info.parents.get(owner(site))
    while parent is not None and parent not in found:
        found.add(parent)
        parent = trace.info.parents.get(parent)
    return found


def pair_outputs(
    reference: Trace, candidate: Trace, *, explicit: Mapping[str, str], skip: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Pair the models' outputs: by name where both name them, else in order.

    Raises:
        CannotCompare: an output of one side has no counterpart and is not skipped.
    """
    taken = set(explicit) | set(explicit.values()) | set(skip)
    ours = [s for s in reference.info.outputs if s not in taken]
    theirs = [s for s in candidate.info.outputs if s not in taken]
    if len(ours) == len(theirs):
        suffixes = {s.partition(":")[2]: s for s in theirs}
        if {s.partition(":")[2] for s in ours} == set(suffixes):
            return [(s, suffixes[s.partition(":")[2]]) for s in ours]
        return list(zip(ours, theirs, strict=True))
    named = {s.partition(":")[2]: s for s in theirs}
    pairs = [(s, named[s.partition(":")[2]]) for s in ours if s.partition(":")[2] in named]
    alone_r = [s for s in ours if s not in {r for r, _ in pairs}]
    alone_c = [s for s in theirs if s not in {c for _, c in pairs}]
    lines = [
        f"the {side} has {len(outputs)} outputs, {capped(alone)} without a counterpart"
        for side, outputs, alone in (("reference", ours, alone_r), ("candidate", theirs, alone_c))
        if alone
    ]
    example = (alone_r + alone_c)[0]
    raise CannotCompare(
        "; ".join(lines) + f".\n  Fix: skip=[{example!r}] to leave it out, "
        "or sites={reference output: candidate output} to pair them"
    )


def _no_such_site(argument: str, name: str, side: _Side) -> str:
    tokens = canonical([name])[name]
    near = sorted(side.order, key=lambda s: -similarity(side.names[s], tokens))[:3]
    return f"{argument} names `{name}`, which is no site of that model; nearest: {capped(near)}"
