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

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crosscheck.assignment import best_monotone
from crosscheck.errors import CannotCompare, InvalidArgument, capped
from crosscheck.fingerprints import (
    SAME_VALUE,
    PreparedTrace,
    difference,
    fingerprint,
    looks_like,
    repeating,
    size_and_kind,
)
from crosscheck.layout import SAME, Layout, LayoutBook, fitting, relative_error
from crosscheck.names import canonical, similarity
from crosscheck.observers import Key
from crosscheck.taps import Kind
from crosscheck.trace import Trace, owner

__all__ = ["Aligner", "Alignment", "Edge", "SitePair", "pair_outputs"]

_AT_OUTPUTS: tuple[Kind, Kind] = ("activation", "cotangent")
_AT_INPUTS: tuple[Kind, Kind] = ("input", "input_cotangent")
ROUNDING = 1e-6
"""Relative 2-norm up to which two float32 values are taken for equally equal."""
CLOSER = 0.3
"""How much closer than an anchored pair, and how close, two values must be to replace it."""
WINDOW = 200
"""Most sites of a stretch that are paired by order: only the earliest pair is taken at a time."""


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


class Aligner:
    """Pairs found so far between a reference's free trace and runs of a candidate.

    Args:
        reference, candidate: the free traces.
        explicit: {reference site: candidate site}, overrides everything.
        anchors: (reference layer path, candidate layer path) whose parameters were transferred.
        skip: sites (of either side) to leave out.

    Raises:
        InvalidArgument: an explicit or skipped site does not exist, or one is paired twice.
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
        self.reference = PreparedTrace.of(reference)
        self.candidate = PreparedTrace.of(candidate)
        self.book = LayoutBook()
        self._anchors = anchors
        self._skip = set(skip)
        self._pairs: dict[str, SitePair] = {}
        self._taken: set[str] = set()
        self._no_pairs: set[tuple[str, str]] = set()
        self._check_names(explicit)
        self._learn_layouts()
        for r, c in explicit.items():
            self._add(r, c, "explicit")
        for r, c in self._named_inputs():
            layout = self.book.choose(self.reference.shapes[r], self.candidate.shapes[c])
            # Inputs that the caller made different on purpose are no divergence.
            if layout and not _far(self.candidate.value(c), self.reference.value(r), layout):
                self._add(r, c, "input")
        for r, c in pair_outputs(reference, candidate, explicit=explicit, skip=skip):
            self._add(r, c, "output")
        self.match_values()

    # -- steps ---------------------------------------------------------------------------------

    def match_values(self, trace: Trace | None = None) -> int:
        """Pair free sites with equal values; of a forced run if one is given. Returns how many."""
        candidate = self.candidate if trace is None else PreparedTrace.of(trace)
        proposals = []
        groups: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
        known = self.candidate.order  # a forced run may take another branch
        for site in (s for s in self._free(candidate, self._taken) if s in known):
            groups[size_and_kind(candidate.value(site))].append(site)
        tables = {g: np.array([candidate.print_of(s) for s in ss]) for g, ss in groups.items()}
        for r in self._free(self.reference, self._pairs):
            value = self.reference.value(r)
            group = size_and_kind(value)
            if value.size == 0 or group not in tables:
                continue
            for i in np.flatnonzero(looks_like(tables[group], self.reference.print_of(r))):
                c = groups[group][i]
                layout = self.book.choose(value.shape, candidate.shapes[c])
                if layout is None or (self.reference.is_constant(r) and not self._akin(r, c)):
                    continue
                error = difference(layout.to_reference(candidate.value(c)), value)
                if error <= SAME_VALUE:
                    proposals.append((self._likeness(r, c, error), r, c))
        return self._accept(proposals, "value")

    def refine(self, trace: Trace, *, at_once: bool = False) -> int:
        """Pair sites in the first stretch of a forced run that ends in a difference.

        Args:
            trace: the candidate, forced at the pairs found so far.
            at_once: take all anchored pairs of the stretch, not only the earliest.

        Returns:
            How many pairs were added.
        """
        free_r = self._free(self.reference, self._pairs)
        free_c = self._free(self.candidate, self._taken)
        if not free_r or not free_c:
            return 0
        anchored = self._anchored_sites()
        for kind, pair, edge in self._differences(trace):
            if edge is not None and self._pair_producers(edge, trace):
                return 1
            inside_r = _stretch(self.reference, kind, pair.reference, self._pairs, free_r)
            inside_c = _stretch(self.candidate, kind, pair.candidate, self._taken, free_c)
            here = [
                (r, c)
                for r, c in anchored
                if r in inside_r and c in inside_c and not self._ends_in_glue(r, c, trace)
            ]
            here.sort(key=lambda rc: self.reference.order[rc[0]])
            chosen = here if at_once else here[:1]
            for r, c in chosen:
                ends = self._closest(r, c, anchored, inside_r, inside_c, trace)
                self._add(*ends, "anchor" if ends == (r, c) else "value")
            if chosen:
                return len(chosen)
            ordered = self._aliases(pair, inside_r, inside_c) or self._by_order(
                inside_r, inside_c, anchored
            )
            if ordered:
                self._add(*ordered[0], "order")
                return 1
        return 0

    def alignment(self, trace: Trace | None = None) -> Alignment:
        """The result so far; ``trace``: the candidate's latest run, for its layers' inputs."""
        candidate = self.candidate.trace if trace is None else trace
        pairs = tuple(sorted(self._pairs.values(), key=lambda p: self.reference.order[p.reference]))
        return Alignment(
            pairs=pairs,
            edges=tuple(e for p in pairs if p.layout for e in self._edges(p, candidate)),
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
        twice = [c for c, count in Counter(explicit.values()).items() if count > 1]
        if twice:
            raise InvalidArgument(
                f"sites= pairs {capped(twice)} of the candidate with several reference sites; "
                "a site has one counterpart"
            )
        for name in self._skip:
            if name not in self.reference.order and name not in self.candidate.order:
                raise InvalidArgument(_no_such_site("skip=", name, self.reference))

    def _learn_layouts(self) -> None:
        """Let sites with equal content vote; the first partner of each is enough."""
        groups: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
        for c, shape in self.candidate.shapes.items():
            if len(shape) >= 3:
                groups[tuple(sorted(shape))].append(c)
        tables = {g: np.array([self.candidate.print_of(c) for c in cs]) for g, cs in groups.items()}
        proposals = []
        for r, shape in self.reference.shapes.items():
            group = tuple(sorted(shape))
            if len(shape) < 3 or group not in tables:
                continue
            value = self.reference.value(r)
            for i in np.flatnonzero(looks_like(tables[group], self.reference.print_of(r))):
                other = self.candidate.value(groups[group][i])
                known = fitting(shape, other.shape)
                if any(difference(k.to_reference(other), value) <= SAME_VALUE for k in known):
                    proposals.append((value, other))
                    break
        self.book.learn(proposals, tolerance=SAME_VALUE)

    def _named_inputs(self) -> list[tuple[str, str]]:
        """Inputs with the same content under the same name, or in the same place."""
        ours, theirs = self.reference.trace.info.inputs, self.candidate.trace.info.inputs
        if set(ours) == set(theirs):
            return [(name, name) for name in ours]
        return list(zip(ours, theirs, strict=True)) if len(ours) == len(theirs) else []

    def _add(self, r: str, c: str, by: str) -> None:
        if r in self._pairs or c in self._taken:
            return
        if by != "explicit" and (r in self._skip or c in self._skip):
            return
        layout = self.book.choose(self.reference.shapes[r], self.candidate.shapes[c])
        self._pairs[r] = SitePair(r, c, layout, by)
        self._taken.add(c)

    def _free(self, side: PreparedTrace, taken: Mapping[str, object] | set[str]) -> list[str]:
        return [s for s in side.order if s not in taken and s not in self._skip]

    def _akin(self, r: str, c: str) -> bool:
        """Whether names or types of two layers have something in common."""
        types = self.reference.kind(r), self.candidate.kind(c)
        names = self.reference.names[r], self.candidate.names[c]
        return types[0] == types[1] != "" or similarity(*names) >= 0.5

    def _likeness(self, r: str, c: str, error: float) -> float:
        """Which of several equal values belong together: names, layer types, place in the run, and
        how equal they are (a residual stream may hardly change from one layer to the next)."""
        place = abs(
            self.reference.order[r] / len(self.reference.order)
            - self.candidate.order[c] / len(self.candidate.order)
        )
        types = self.reference.kind(r), self.candidate.kind(c)
        return (
            similarity(self.reference.names[r], self.candidate.names[c])
            + 0.5 * (types[0] == types[1] != "")
            - place
            - 0.2 * math.log10(max(error / ROUNDING, 1.0))
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

    def _anchored_sites(self) -> list[tuple[str, str]]:
        found = []
        for r_layer, c_layer in self._anchors:
            for call in _calls(self.reference, r_layer):
                twin = c_layer + call[len(r_layer) :]
                if twin in self.candidate.order:
                    found.append((call, twin))
        return found

    def _closest(
        self,
        r: str,
        c: str,
        anchored: Sequence[tuple[str, str]],
        inside_r: set[str],
        inside_c: set[str],
        trace: Trace,
    ) -> tuple[str, str]:
        """An anchored pair, or the end of the fused layer that one side has in its place.

        Where one side does in one layer what the other does in several (a linear layer and its
        activation), the parameters say where the stretch begins and the values where it ends.
        """
        others = {site for pair in anchored for site in pair}
        options = [(o, c) for o in self._between(self.reference, r, inside_r, others)]
        options += [(r, o) for o in self._between(self.candidate, c, inside_c, others)]
        own = self._distance(r, c, trace)
        best, pair = min(((self._distance(*o, trace), o) for o in options), default=(own, (r, c)))
        return pair if best < min(CLOSER * own, CLOSER) else (r, c)

    def _ends_in_glue(self, r: str, c: str, trace: Trace) -> bool:
        """Whether one layer's output is what the code behind the other one makes of its output:
        an activation that is part of the layer here and a function call there."""
        ours, theirs = self.reference.value(r), trace.values.get(("activation", c))
        if (r, c) in self._no_pairs:
            return True
        if theirs is None or self._distance(r, c, trace) <= SAME_VALUE:
            return False
        found = _is_glue_of(self.reference.trace, r, theirs) or _is_glue_of(trace, c, ours)
        if found:
            self._no_pairs.add((r, c))
        return found

    @staticmethod
    def _between(side: PreparedTrace, site: str, inside: set[str], others: set[str]) -> list[str]:
        """The sites of a stretch behind ``site``, up to the next anchored one."""
        behind = sorted(
            (s for s in inside if side.order[s] > side.order[site]), key=side.order.__getitem__
        )
        return list(itertools.takewhile(lambda s: s not in others, behind))

    def _distance(self, r: str, c: str, trace: Trace) -> float:
        value = trace.values.get(("activation", c))
        layout = self.book.choose(self.reference.shapes[r], self.candidate.shapes[c])
        if value is None or layout is None:
            return math.inf
        return relative_error(layout.to_reference(value), self.reference.value(r))

    def _aliases(
        self, pair: SitePair, inside_r: set[str], inside_c: set[str]
    ) -> list[tuple[str, str]]:
        """The sites inside that hold the very value of a pair (the layer that made an output)."""
        ours = repeating(self.reference, pair.reference, inside_r)
        theirs = repeating(self.candidate, pair.candidate, inside_c)
        return [(ours[-1], theirs[-1])] if ours and theirs else []

    def _by_order(
        self, inside_r: set[str], inside_c: set[str], anchored: Sequence[tuple[str, str]]
    ) -> list[tuple[str, str]]:
        """Layers of one type or alike in name, with shapes that fit, in execution order.

        Not two layers of which each has its parameters from another one.
        """
        known = set(anchored)
        owners, heirs = {r for r, _ in known}, {c for _, c in known}
        ours = sorted(inside_r, key=self.reference.order.__getitem__)[:WINDOW]
        theirs = sorted(inside_c, key=self.candidate.order.__getitem__)[:WINDOW]
        score = np.zeros((len(ours), len(theirs)))
        for i, r in enumerate(ours):
            for j, c in enumerate(theirs):
                layout = self.book.choose(self.reference.shapes[r], self.candidate.shapes[c])
                strangers = r in owners and c in heirs and (r, c) not in known
                if layout is None or strangers or (r, c) in self._no_pairs:
                    continue
                name = similarity(self.reference.names[r], self.candidate.names[c])
                if self.reference.kind(r) == self.candidate.kind(c) or name >= 0.6:
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
            fitting: list[tuple[str, Layout]] = []
            differs = True
            for c in ranked:
                other = candidate.values["input", c]
                layout = self.book.choose(value.shape, other.shape)
                if layout is None:
                    continue
                differs = _far(other, value, layout)
                if not differs:
                    fitting = [(c, layout)]
                    break
                fitting.append((c, layout))
            if not fitting or (differs and len(ours) != len(theirs)):
                continue  # no telling which input it should have been
            c, layout = fitting[0]
            if differs and pair.by == "value" and self._other_sources(r, c, candidate):
                continue  # equal outputs: one side does in one layer what the other does in several
            free.remove(c)
            edges.append(Edge(r, c, layout, pair))
        return edges

    def _other_sources(self, r: str, c: str, candidate: Trace) -> bool:
        """Whether two inputs come from sites of which one has another partner."""
        ours, theirs = self.reference.trace.info.sources.get(r), candidate.info.sources.get(c)
        partner = self._pairs.get(ours) if ours is not None else None
        if partner is not None:
            return partner.candidate != theirs
        return theirs in self._taken

    def _unmatched(self, side: PreparedTrace, taken: set[str]) -> tuple[str, ...]:
        known: defaultdict[bytes, list[str]] = defaultdict(list)
        for site in taken:
            if site in side.order:
                known[side.print_of(site).tobytes()].append(site)
        return tuple(
            site
            for site in self._free(side, taken)
            if not repeating(side, site, known[side.print_of(site).tobytes()])
        )


def _is_glue_of(trace: Trace, site: str, value: np.ndarray) -> bool:
    """Whether ``value`` goes, in whatever layout, into the next layer after ``site`` whose input no
    site has produced."""
    keys = iter(trace.values)
    for key in keys:
        if key == ("activation", site):
            break
    for kind, slot in keys:
        if kind == "input" and slot not in trace.info.sources:
            made = trace.values[kind, slot]
            if size_and_kind(made) != size_and_kind(value):
                return False
            return bool(looks_like(fingerprint(made)[None], fingerprint(value)).all())
    return False


def _calls(side: PreparedTrace, layer: str) -> list[str]:
    """The sites of all calls of a layer: ``fc``, ``fc#2``, ..."""
    found = []
    count, site = 1, layer
    while site in side.order:
        found.append(site)
        count += 1
        site = f"{layer}#{count}"
    return found


def _far(value: np.ndarray, truth: np.ndarray, layout: Layout) -> bool:
    return not relative_error(layout.to_reference(value), truth) <= SAME_VALUE  # NaN is far


def _stretch(
    side: PreparedTrace, kind: Kind, site: str, taken: Iterable[str], free: Sequence[str]
) -> set[str]:
    """Free sites that may lie behind a difference at ``site``.

    Those that ran after the last matched site before it; of a container's output, also all
    that the container called; if there is none, its elder siblings and what they called.
    """
    here = side.order[site]
    earlier = [s for s in free if side.order[s] < here]
    last = max(
        (side.order[s] for s in taken if s in side.order and side.order[s] < here), default=-1
    )
    inside = {s for s in earlier if side.order[s] > last}
    if kind == "activation":
        inside |= {s for s in earlier if site in side.ancestors(s)}
    if not inside:
        parent = side.trace.info.parents.get(owner(site))
        inside = {s for s in earlier if parent in side.ancestors(s)}
    return inside


def pair_outputs(
    reference: Trace, candidate: Trace, *, explicit: Mapping[str, str], skip: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Pair the models' outputs: by name where both name them, else in order.

    Raises:
        CannotCompare: an output of one side has no counterpart and is not skipped.
    """
    ours = [s for s in reference.info.outputs if s not in {*explicit, *skip}]
    theirs = [s for s in candidate.info.outputs if s not in {*explicit.values(), *skip}]
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


def _no_such_site(argument: str, name: str, side: PreparedTrace) -> str:
    tokens = canonical([name])[name]
    near = sorted(side.order, key=lambda s: -similarity(side.names[s], tokens))[:3]
    return f"{argument} names `{name}`, which is no site of that model; nearest: {capped(near)}"
