"""Stage 5, align: two traces -> pairs of sites, and the layout that maps one onto the other.

In this order:

1. pairs that the caller gave, the model's inputs and its outputs;
2. by value. Up to the first divergence both sides hold the same numbers, so a fingerprint that does
   not depend on layout proposes, and an element-wise comparison in an enforced layout confirms.
   With the values matched so far forced onto the candidate, those behind a divergence match again;
   `crosscheck.single` repeats this until nothing new is found;
3. only where something matched differs, to narrow the stretch before it: the layers that produced
   a differing input; layers whose parameters were transferred (anchors); then order, shape and
   name. One pair at a time, the earliest, since what lies behind it may then match by value.

Sites without a partner are a result. A site that merely repeats the value of a matched one (a
dropout in eval mode, a wrapper around its last layer) is compared in effect and is not listed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from crosscheck.alignment import Alignment, Edge, SitePair
from crosscheck.edges import edges_of, joined, note_unlike_inputs
from crosscheck.fingerprints import (
    SAME_VALUE,
    Fingerprints,
    PreparedTrace,
    difference,
    repeating,
    size_and_kind,
)
from crosscheck.layout import SAME, fitting
from crosscheck.pairing import Pairing, far, pair_outputs
from crosscheck.refine import Refiner
from crosscheck.trace import Trace

__all__ = ["Aligner", "Alignment", "Edge", "SitePair", "pair_outputs"]

MOST_ALIKE = 48
"""Candidate sites that are compared to one reference site, of those with its fingerprint. A deep
residual stream hardly changes from one layer to the next: there any number of sites look alike."""


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
        self._pairing = Pairing(reference, candidate, explicit, skip)
        self._refiner = Refiner(self._pairing, anchors)
        self._learn_layouts()
        for r, c in explicit.items():
            self._pairing.add(r, c, "explicit")
        for r, c in self._named_inputs():
            layout = self._pairing.layout(r, c)
            values = self._pairing.candidate.value(c), self._pairing.reference.value(r)
            # Inputs that the caller made different on purpose are no divergence.
            if layout and not far(*values, layout):
                self._pairing.add(r, c, "input")
        for r, c in pair_outputs(reference, candidate, explicit=explicit, skip=skip):
            self._pairing.add(r, c, "output")
        self.match_values()

    # -- steps ---------------------------------------------------------------------------------

    def match_values(self, trace: Trace | None = None) -> int:
        """Pair free sites with equal values; of a forced run if one is given. Returns how many."""
        p = self._pairing
        candidate = p.candidate if trace is None else PreparedTrace.of(trace)
        proposals = []
        groups: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
        known = p.candidate.order  # a forced run may take another branch
        for site in (s for s in p.free_candidate(candidate) if s in known):
            groups[size_and_kind(candidate.value(site))].append(site)
        tables = {g: _table(candidate, sites) for g, sites in groups.items()}
        for r in p.free_reference():
            value = p.reference.value(r)
            group = size_and_kind(value)
            if value.size == 0 or group not in tables:
                continue
            alike = [groups[group][i] for i in tables[group].like(p.reference.print_of(r))]
            for c in p.nearest(r, alike)[:MOST_ALIKE]:
                layout = p.layout(r, c)
                if layout is None or (p.reference.is_constant(r) and not p.akin(r, c)):
                    continue
                error = difference(layout.to_reference(candidate.value(c)), value)
                if error <= SAME_VALUE:
                    proposals.append((p.likeness(r, c, layout, error), r, c, error))
        added = 0
        for _, r, c, error in sorted(
            proposals, key=lambda one: (-one[0], p.reference.order[one[1]])
        ):
            if p.add(r, c, "value"):
                added += 1
                if not self._same_layer(r, c):
                    note_unlike_inputs(p.pairs[r], error, p, candidate.trace)
        return added

    def refine(self, trace: Trace, *, at_once: bool = False, faded: bool = True) -> int:
        """Pair sites in the first stretch of a forced run that ends in a difference.

        Args:
            trace: the candidate, forced at the pairs found so far.
            at_once: take all anchored pairs of the stretch, not only the earliest.
            faded: where nothing differs clearly, look into what differs by more than rounding; the
                guesses need a forced run to be checked.

        Returns:
            How many pairs were added.
        """
        return self._refiner.add(self.alignment(trace), trace, at_once=at_once, faded=faded)

    def take_back(self, trace: Trace) -> int:
        """Undo what `refine` added last and ``trace``, forced at it, shows to be wrong.

        Returns:
            How many pairs were removed; they are not proposed again.
        """
        return self._refiner.take_back(trace)

    def alignment(self, trace: Trace | None = None) -> Alignment:
        """The result so far; ``trace``: the candidate's latest run, for its layers' inputs."""
        p = self._pairing
        candidate = p.candidate.trace if trace is None else trace
        pairs = tuple(sorted(p.pairs.values(), key=lambda one: p.reference.order[one.reference]))
        return Alignment(
            pairs=pairs,
            edges=(
                *(e for one in pairs if one.layout for e in edges_of(one, p, candidate)),
                *self._entries(candidate),
            ),
            unmatched_reference=_unmatched(p.reference, p.free_reference(), set(p.pairs)),
            unmatched_candidate=_unmatched(p.candidate, p.free_candidate(), p.taken),
        )

    # -- details -------------------------------------------------------------------------------

    def _same_layer(self, r: str, c: str) -> bool:
        """Whether two sites with equal values are one layer, by their parameters or their names. A
        norm gives the same for a scaled input: that its input differs must be seen."""
        if (r, c) in self._refiner.anchored:
            return True
        owned = r in self._refiner.owners or c in self._refiner.heirs
        return not owned and self._pairing.akin(r, c)

    def _entries(self, candidate: Trace) -> list[Edge]:
        """Where two layers with the same parameters return different quantities (one of them also
        applies the activation): what goes into them is comparable all the same."""
        p = self._pairing
        truths = p.reference.trace.values
        found: list[Edge] = []
        for r, c in self._refiner.anchored:
            if r in p.pairs or c in p.taken:
                continue
            edges = edges_of(SitePair(r, c, SAME, "anchor"), p, candidate)
            if not any(
                far(candidate.values["input", e.candidate], truths["input", e.reference], e.layout)
                for e in edges
            ):
                found += edges
        return joined(found)

    def _learn_layouts(self) -> None:
        """Let sites with equal content vote; the first partner of each is enough."""
        ours, theirs = self._pairing.reference, self._pairing.candidate
        groups: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
        for c, shape in theirs.shapes.items():
            if len(shape) >= 3:
                groups[tuple(sorted(shape))].append(c)
        tables = {g: _table(theirs, sites) for g, sites in groups.items()}
        proposals = []
        for r, shape in ours.shapes.items():
            group = tuple(sorted(shape))
            if len(shape) < 3 or group not in tables:
                continue
            value = ours.value(r)
            alike = [groups[group][i] for i in tables[group].like(ours.print_of(r))]
            for c in self._pairing.nearest(r, alike)[:MOST_ALIKE]:
                other = theirs.value(c)
                known = fitting(shape, other.shape)
                if any(difference(k.to_reference(other), value) <= SAME_VALUE for k in known):
                    proposals.append((r, c))
                    break
        pairs = ((ours.value(r), theirs.value(c)) for r, c in proposals)
        self._pairing.book.learn(pairs, tolerance=SAME_VALUE)

    def _named_inputs(self) -> list[tuple[str, str]]:
        """Inputs with the same content under the same name, or in the same place."""
        ours = self._pairing.reference.trace.info.inputs
        theirs = self._pairing.candidate.trace.info.inputs
        if set(ours) == set(theirs):
            return [(name, name) for name in ours]
        return list(zip(ours, theirs, strict=True)) if len(ours) == len(theirs) else []


def _table(side: PreparedTrace, sites: Sequence[str]) -> Fingerprints:
    return Fingerprints(np.array([side.print_of(site) for site in sites]))


def _unmatched(side: PreparedTrace, free: Sequence[str], taken: set[str]) -> tuple[str, ...]:
    """Free sites that do not merely repeat the value of a matched one."""
    known: defaultdict[bytes, list[str]] = defaultdict(list)
    for site in taken:
        if site in side.order:
            known[side.print_of(site).tobytes()].append(site)
    return tuple(
        site for site in free if not repeating(side, site, known[side.print_of(site).tobytes()])
    )
