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

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence

from crosscheck.aligning.alignment import Alignment, Edge, SitePair
from crosscheck.aligning.edges import (
    BegunEarlier,
    compare_inputs_ahead,
    edges_of,
)
from crosscheck.aligning.entries import entries_of
from crosscheck.aligning.fingerprints import (
    PreparedTrace,
    differences,
    repeating,
    size_and_kind,
)
from crosscheck.aligning.layout import SAME, Layout, Shape, between, mergings
from crosscheck.aligning.lookalikes import Alike, Key, LookAlikes
from crosscheck.aligning.nearer import move_to_nearer
from crosscheck.aligning.pairing import ROUNDING, Pairing, far, pair_outputs
from crosscheck.aligning.rectified import Side, applied_behind
from crosscheck.aligning.refine import Refiner
from crosscheck.aligning.unlike import handed_on, note_idle_inputs, note_unlike_inputs
from crosscheck.trace import Trace

__all__ = ["Aligner", "Alignment", "Edge", "Side", "SitePair", "pair_outputs"]

STRANGE = 0.5
"""How much less likely a pair is for each of its layers that has parameters from another one; if
both have, their values must be equal but for rounding."""


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
        self._look_alikes = LookAlikes(
            self._pairing.reference, self._pairing.candidate, self._pairing.same
        )
        self._latest: tuple[int, Trace, Alignment] | None = None
        self._forward_only: set[str] = set()
        self._told_apart: set[SitePair] = set()
        self._makers: dict[tuple[bool, str], str | None] = {}
        self._free_errors: dict[tuple[str, str, Layout], float] = {}
        self._learn_layouts()
        for r, c in explicit.items():
            self._pairing.add(r, c, "explicit")
        for r, c in self._named_inputs():
            layout = self._pairing.layout(r, c)
            values = self._pairing.candidate.value(c), self._pairing.reference.value(r)
            # Inputs that the caller made different on purpose are no divergence.
            if layout and not far(*values, layout, self._pairing.same):
                self._pairing.add(r, c, "input")
        for r, c in pair_outputs(reference, candidate, explicit=explicit, skip=skip):
            self._pairing.add(r, c, "output")
        self.match_values()

    # -- steps ---------------------------------------------------------------------------------

    def match_values(self, trace: Trace | None = None) -> int:
        """Pair free sites with equal values; of a forced run if one is given. Returns how many."""
        p = self._pairing
        candidate = p.candidate if trace is None else PreparedTrace.of(trace)
        added = self._match_entered(candidate)
        for r, c, error in self._likeliest_first(self._alike(candidate), candidate):
            if not p.told_already(r, c) and p.add(r, c, "value"):
                added += 1
                one = self._same_layer(r, c)
                note_unlike_inputs(p.pairs[r], error, p, candidate.trace, same_layer=one)
        return added + move_to_nearer(p, candidate)

    def _match_entered(self, candidate: PreparedTrace) -> int:
        """Pair layers that return the same for the inputs that both were given, before anything
        around them that hands the value on."""
        p = self._pairing
        asked = [
            (r, c, layout)
            for (r, c), compared in p.entered.items()
            if compared
            and (r not in p.pairs and c not in p.taken and c in candidate.order)
            and (layout := p.layout(r, c))
        ]
        errors = self._errors(asked, candidate)
        return sum(
            error <= p.same and p.add(r, c, "anchor")
            for (r, c, _), error in zip(asked, errors, strict=True)
        )

    def _alike(self, candidate: PreparedTrace) -> Alike:
        """Free sites whose values have one fingerprint; ``candidate``: the run to look at."""
        p = self._pairing
        known = p.candidate.order  # a forced run may take another branch
        theirs = {
            c: size_and_kind(candidate.value(c)) for c in p.free_candidate(candidate) if c in known
        }
        ours = {r: size_and_kind(p.reference.value(r)) for r in p.free_reference()}
        return self._look_alikes.among({r: g for r, g in ours.items() if g[0]}, theirs, candidate)

    def _likeliest_first(
        self, alike: Alike, candidate: PreparedTrace
    ) -> Iterator[tuple[str, str, float]]:
        """Those with equal values, and how far these are apart. Values are only compared where
        neither site has a partner by the time that no likelier pair is left to compare."""
        p = self._pairing
        errors: dict[tuple[str, str], float] = {}
        equal: list[tuple[Key, tuple[str, str, float]]] = []
        for todo, keys in alike.likeliest_first((p.pairs, p.taken)):
            for i, ((r, c), key) in enumerate(zip(todo, keys, strict=True)):
                while equal and equal[0][0] < key:
                    yield heapq.heappop(equal)[1]
                if r in p.pairs or c in p.taken:
                    continue
                if (r, c) not in errors:
                    errors |= self._next_errors(todo[i:], errors, candidate)
                error, layout, strangers = errors[r, c], p.layout(r, c), self._strangers(r, c)
                if layout and error <= (p.same if strangers < 2 else max(ROUNDING, p.rounding)):
                    likeness = p.likeness(r, c, layout, error) - STRANGE * strangers
                    heapq.heappush(equal, ((-likeness, *key[1:]), (r, c, error)))
        while equal:
            yield heapq.heappop(equal)[1]

    def _strangers(self, r: str, c: str) -> int:
        """How many of two sites have their parameters from another one than the other site. What a
        norm is given that has not been trained is as near to what it returns as values must be to
        be taken for the same, and so is what a block returns that adds next to nothing: each of the
        layers around would do for the other one."""
        p = self._pairing
        ours = self._making(p.reference, r, self._refiner.owners)
        theirs = self._making(p.candidate, c, self._refiner.heirs)
        if (ours, theirs) in self._refiner.anchored:
            return 0
        return (ours is not None) + (theirs is not None)

    def _making(self, side: PreparedTrace, site: str, layers: Container[str]) -> str | None:
        """Which of some layers makes what a site holds: itself, or the last one in a container that
        hands that on."""
        if site in layers:
            return site
        key = side is self._pairing.reference, site
        if key not in self._makers:
            inside = [s for s in side.trace.inside(site) if s in side.order]
            last = max(inside, key=side.order.__getitem__, default=None)
            self._makers[key] = None  # also of what a damaged recording says to lie within itself
            if last is not None and repeating(side, site, [last]):
                self._makers[key] = self._making(side, last, layers)
        return self._makers[key]

    def _next_errors(
        self,
        todo: Sequence[tuple[str, str]],
        known: Mapping[tuple[str, str], float],
        candidate: PreparedTrace,
    ) -> dict[tuple[str, str], float]:
        """How far the values of some pairs are apart: of each free site's the first that is not
        known."""
        p = self._pairing
        first: dict[str, str] = {}
        for r, c in todo:
            free = r not in first and r not in p.pairs and c not in p.taken
            if free and (r, c) not in known:
                first[r] = c
        asked = [
            (r, c, layout)
            for r, c in first.items()
            if (layout := p.layout(r, c)) and not (p.reference.is_constant(r) and not p.akin(r, c))
        ]
        found = dict.fromkeys(first.items(), math.inf)
        errors = self._errors(asked, candidate)
        return found | {(r, c): e for (r, c, _), e in zip(asked, errors, strict=True)}

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
        """Undo what `refine` added last and ``trace``, forced at it, shows to be wrong, and the
        inputs that it shows to be different quantities.

        Returns:
            How many pairs, or inputs, were removed; they are not proposed again.
        """
        return self._refiner.take_back(trace) or note_idle_inputs(
            self.alignment(trace), self._pairing, trace
        )

    def tell_apart(self, trace: Trace, reference: Side, candidate: Side) -> int:
        """Undo the pairs of layers of which one applies a rectifier that the other side applies in
        the code behind (`rectified`).

        Args:
            trace: the candidate, forced at the pairs found so far.

        Returns:
            How many pairs were removed; they are not proposed again.
        """
        pairs = [p for p in self.alignment(trace).pairs if p not in self._told_apart]
        self._told_apart.update(pairs)
        found = applied_behind(pairs, trace, reference, candidate, self._pairing.same)
        for pair in found:
            self._pairing.remove(pair)
        return len(found)

    def compare_forward_only(self, sites: Iterable[str]) -> None:
        """Leave the cotangents of these sites of the reference alone from now on."""
        self._forward_only.update(sites)
        self._latest = None

    def alignment(self, trace: Trace | None = None) -> Alignment:
        """The result so far; ``trace``: the candidate's latest run, for its layers' inputs."""
        p = self._pairing
        candidate = p.candidate.trace if trace is None else trace
        changes, run, made = self._latest or (None, None, None)
        if made is None or changes != p.changes or run is not candidate:
            made = self._made(candidate).forward_only(self._forward_only)
            self._latest = p.changes, candidate, made
        return made

    def _made(self, candidate: Trace) -> Alignment:
        p = self._pairing
        pairs = tuple(sorted(p.pairs.values(), key=lambda one: p.reference.order[one.reference]))
        laid_out = [one for one in pairs if one.layout]
        free = p.free_reference(), p.free_candidate()
        compare_inputs_ahead(laid_out, p, candidate)
        begun = BegunEarlier(p, self._refiner.anchored, self._refiner.ends)
        return Alignment(
            pairs=pairs,
            edges=(
                *(
                    e
                    for one in laid_out
                    if not self._begins_in_code(one, candidate)
                    for e in edges_of(one, p, candidate)
                    if e not in begun
                ),
                *self._entries(candidate, begun),
            ),
            unmatched_reference=_unmatched(p.reference, free[0], p.pairs),
            unmatched_candidate=_unmatched(p.candidate, free[1], p.taken),
            complete=not all(free),
            anchored=tuple(self._refiner.anchored),
        )

    # -- details -------------------------------------------------------------------------------

    def _same_layer(self, r: str, c: str) -> bool:
        """Whether two sites with equal values are one layer, by their parameters or their names. A
        norm gives the same for a scaled input: that its input differs must be seen."""
        if (r, c) in self._refiner.anchored:
            return True
        owned = r in self._refiner.owners or c in self._refiner.heirs
        return not owned and self._pairing.akin(r, c)

    def _begins_in_code(self, pair: SitePair, candidate: Trace) -> bool:
        """Whether one layer has parameters and the other one has none and hands on what it is given
        (a dropout that is off): then the code before that one does what the first one does (a norm
        with a dropout and an activation inside), and they are given different quantities, however
        little the numbers differ (a norm that has not been trained)."""
        r, c = pair.reference, pair.candidate
        if (r in self._refiner.owners) == (c in self._refiner.heirs):
            return False
        one = (candidate, c) if r in self._refiner.owners else (self._pairing.reference.trace, r)
        return handed_on(*one) is not None

    def _entries(self, candidate: Trace, begun: BegunEarlier) -> list[Edge]:
        """Where two layers with the same parameters return different quantities (one of them also
        applies the activation, or the norm): what goes into them is comparable all the same."""
        p = self._pairing
        distances = p.distances(candidate)
        found: list[Edge] = []
        for r, c in self._refiner.anchored:
            apart = (r in p.pairs or c in p.taken) and (r, c) not in begun.beginnings
            if apart or (r, c) in self._refiner.ends:
                continue
            edges = edges_of(SitePair(r, c, SAME, "anchor"), p, candidate)
            errors = [distances.of("input", e.reference, e.candidate, e.layout) for e in edges]
            if p.entered.get((r, c)) or all(error <= p.same for error in errors):
                found += edges
        return entries_of(found, self._refiner.anchored, (p.reference.trace, candidate))

    def _learn_layouts(self) -> None:
        """Let sites with equal content vote; the first partner of each is enough."""
        p = self._pairing
        shapes = p.reference.shapes, p.candidate.shapes
        alike = [{s: sorted(one) for s, one in side.items() if len(one) >= 3} for side in shapes]
        self._let_vote(*({s: tuple(one) for s, one in side.items()} for side in alike))
        open_ = _open_mergings(*({*side.values()} for side in shapes))
        if open_:
            self._let_vote(
                *({s: math.prod(o) for s, o in side.items() if o in open_} for side in shapes)
            )

    def _let_vote(self, ours: Mapping[str, Hashable], theirs: Mapping[str, Hashable]) -> None:
        """``ours``, ``theirs``: site -> what two values must have in common to be looked at."""
        p = self._pairing
        equal: dict[str, tuple[str, list[Layout]]] = {}
        for nearest in self._look_alikes.among(ours, theirs, p.candidate).of_rank(equal):
            equal |= self._equal_in(nearest)
        for r, (c, layouts) in equal.items():
            shapes = p.reference.shapes[r], p.candidate.shapes[c]
            p.book.vote(layouts, len(shapes[0]), len(shapes[1]), p.types(r, c))

    def _equal_in(self, pairs: Sequence[tuple[str, str]]) -> dict[str, tuple[str, list[Layout]]]:
        """Of those pairs whose values are equal: by reference site the other, and the layouts."""
        ours, theirs = self._pairing.reference, self._pairing.candidate
        laid_out = [
            (r, c, layout) for r, c in pairs for layout in between(ours.shapes[r], theirs.shapes[c])
        ]
        found: dict[str, tuple[str, list[Layout]]] = {}
        for (r, c, layout), error in zip(laid_out, self._errors(laid_out, theirs), strict=True):
            if error <= self._pairing.same:
                found.setdefault(r, (c, []))[1].append(layout)
        return found

    def _errors(
        self, asked: Sequence[tuple[str, str, Layout]], candidate: PreparedTrace
    ) -> list[float]:
        """`differences` of sites of the reference and of ``candidate``; between the free runs each
        is computed once."""
        ours = self._pairing.reference
        known = self._free_errors if candidate is self._pairing.candidate else {}
        new = [one for one in dict.fromkeys(asked) if one not in known]
        errors = differences(
            (layout.to_reference(candidate.value(c)), ours.value(r)) for r, c, layout in new
        )
        known |= zip(new, errors, strict=True)
        return [known[one] for one in asked]

    def _named_inputs(self) -> list[tuple[str, str]]:
        """Inputs with the same content under the same name, or in the same place."""
        ours = self._pairing.reference.trace.info.inputs
        theirs = self._pairing.candidate.trace.info.inputs
        if set(ours) == set(theirs):
            return [(name, name) for name in ours]
        return list(zip(ours, theirs, strict=True)) if len(ours) == len(theirs) else []


def _open_mergings(ours: set[Shape], theirs: set[Shape]) -> set[Shape]:
    """The shapes between which neighbouring axes can be merged in several orders."""
    found: set[Shape] = set()
    for one, other in itertools.product(ours, theirs):
        if math.prod(one) == math.prod(other) and len(mergings(one, other)) > 1:
            found |= {one, other}
    return found


def _unmatched(side: PreparedTrace, free: Sequence[str], taken: Iterable[str]) -> tuple[str, ...]:
    """Free sites that do not merely repeat the value of a matched one."""
    known: defaultdict[bytes, list[str]] = defaultdict(list)
    matched = [site for site in taken if site in side.order]
    for site, one in zip(matched, side.prints_of(matched), strict=True):
        known[one.tobytes()].append(site)
    prints = zip(free, side.prints_of(free), strict=True)
    return tuple(site for site, one in prints if not repeating(side, site, known[one.tobytes()]))
