"""Part of stage 5, align: narrow the stretch that ends in a difference.

Values no longer tell there which sites belong together. What does: the layers that made a differing
input; layers whose parameters were transferred (anchors); then order, shape and name. One pair at
a time, the earliest, since what lies behind it may then match by value.

Such a pair is a guess about two layers with different outputs, and it may be wrong: what one side
computes inside a layer (an activation) the other may compute behind it. Forcing tells: a wrong pair
feeds the code behind it with a quantity that it was not made for, and what comes out there is
further from the truth than before. Then the pair is taken back. A pair found later in front of
others puts them in question: they were made while what goes into them was wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field, replace

import numpy as np

from crosscheck.aligning.alignment import Alignment, Edge, SitePair
from crosscheck.aligning.assignment import best_monotone
from crosscheck.aligning.distances import noticed
from crosscheck.aligning.edges import edges_of
from crosscheck.aligning.fingerprints import repeating
from crosscheck.aligning.layout import SAME, Layout, cut_of, repeats
from crosscheck.aligning.names import abbreviated, ends_in, similarity
from crosscheck.aligning.pairing import Pairing
from crosscheck.aligning.stretches import (
    Anchors,
    HandedOn,
    anchored_calls,
    calls_in,
    comes_later,
    ends_behind,
    is_glue_of,
    lies_in,
    makers,
    runs_after,
    stretch,
    until_the_next,
)
from crosscheck.aligning.trials import Trials
from crosscheck.taps import Kind
from crosscheck.trace import Trace, owner

__all__ = ["Refiner"]

CLOSER = 0.3
"""How much closer than an anchored pair, and how close, two values must be to replace it."""
WINDOW = 200
"""Most sites of a stretch that are paired by order: only the earliest pair is taken at a time."""


@dataclass
class Refiner:
    """Adds pairs where values differ, and takes back those that forcing rules out.

    Args:
        anchors: (reference layer path, candidate layer path) whose parameters were transferred.

    Attributes:
        anchored: (reference site, candidate site) of the calls of those layers, paired or not.
        ends: those of them that have only what they return in common.
        owners, heirs: the reference's and the candidate's sites among them.
    """

    pairing: Pairing
    anchors: InitVar[Anchors]
    anchored: dict[tuple[str, str], None] = field(init=False)
    ends: set[tuple[str, str]] = field(init=False)
    owners: set[str] = field(init=False)
    heirs: set[str] = field(init=False)
    _trials: Trials = field(init=False)
    _transferred: Anchors = ()

    def __post_init__(self, anchors: Anchors) -> None:
        self._transferred = tuple(anchors)
        self._trials = Trials(self.pairing)
        self.anchored, self.ends = anchored_calls(self.pairing, anchors)
        self.owners = {r for r, _ in self.anchored}
        self.heirs = {c for _, c in self.anchored}

    # -- steps ---------------------------------------------------------------------------------

    def add(self, alignment: Alignment, trace: Trace, *, at_once: bool, faded: bool = True) -> int:
        """Pair sites in the first stretch that ends in a difference; returns how many.

        Args:
            alignment: what ``trace`` was forced at.
            trace: the candidate's latest run.
            at_once: take all anchored pairs of the stretch, not only the earliest.
            faded: where nothing differs clearly, look into what differs by more than rounding.
        """
        if not self.pairing.free_reference() or not self.pairing.free_candidate():
            return 0
        found = self._narrow(alignment, trace, at_once=at_once)
        if found or not faded or self._trials.fail_too_often:
            return found
        return self._narrow(alignment, trace, at_once=at_once, faded=True)

    def _narrow(
        self, alignment: Alignment, trace: Trace, *, at_once: bool, faded: bool = False
    ) -> int:
        p = self.pairing
        free_r, free_c = p.free_reference(), p.free_candidate()
        for kind, pair, edge in self._differences(alignment, trace, faded=faded):
            if edge is not None and self._pair_producers(edge, trace):
                return 1
            inside_r = stretch(p.reference, kind, pair.reference, p.pairs, free_r)
            inside_c = stretch(p.candidate, kind, pair.candidate, p.taken, free_c)
            known = HandedOn(p, self._trials.guessed)
            here = [
                (r, c)
                for r, c in self.anchored
                if r in inside_r
                and c in inside_c
                and (r, c) not in p.refused
                and not known.as_another(r, c)
                and not self._is_a_part(r, c)
                and not self._ends_in_glue(r, c, trace)
                and not self._is_cut_behind(r, c, alignment, trace)
                and not self._is_repeated(r, c, trace)
            ]
            here.sort(key=lambda rc: p.reference.order[rc[0]])
            if any(self._enter(r, c, alignment, trace) for r, c in here):
                return 1
            chosen = here if at_once else here[:1]
            for r, c in chosen:
                ends = self._closest(r, c, inside_r, inside_c, trace)
                by = "anchor" if ends == (r, c) else "value"
                others = [] if faded else self._other_ends(r, c, ends, inside_r, inside_c)
                self._guess(*ends, by, alignment, trace, faded=faded, others=others)
            if chosen:
                return len(chosen)
            inside = inside_r, inside_c
            ordered = self._aliases(pair, *inside) or self._by_order(*inside, known)
            if faded:  # here names and types alone say too little
                ordered = [o for o in ordered if self._distance(*o, trace) <= CLOSER]
            if ordered:
                self._guess(*ordered[0], "order", alignment, trace, faded=faded)
                return 1
        return 0

    def take_back(self, trace: Trace) -> int:
        """Remove the guesses that ``trace``, forced at them, proves wrong; returns how many."""
        return self._trials.take_back(trace)

    # -- guesses -------------------------------------------------------------------------------

    def _guess(
        self,
        r: str,
        c: str,
        by: str,
        alignment: Alignment,
        trace: Trace,
        *,
        faded: bool,
        others: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Add a pair, and note what lies behind it, and which ``others`` may be meant."""
        if not self.pairing.add(r, c, by):
            return
        self._trials.begin(self.pairing.pairs[r], alignment, trace, faded=faded, others=others)
        self._trials.reopen_behind(r)

    def _enter(self, r: str, c: str, alignment: Alignment, trace: Trace) -> bool:
        """Compare what goes into two layers with the same parameters, where that differs: given
        the same they may return the same, or what does not belong together (one of them also
        applies the activation). Says whether that is new."""
        pair = SitePair(r, c, SAME, "entry")
        if (
            (r, c) in self.ends
            or (r, c) in self.pairing.entered
            or not any(
                self._error("input", e.reference, e.candidate, e.layout, trace) > self.pairing.same
                for e in edges_of(replace(pair, by="anchor"), self.pairing, trace)
            )
        ):
            return False
        self.pairing.enter(r, c)
        self._trials.begin(pair, alignment, trace, faded=False)
        return True

    def _error(self, kind: Kind, r: str, c: str, layout: Layout, trace: Trace) -> float:
        return self.pairing.distances(trace).of(kind, r, c, layout)

    # -- what differs --------------------------------------------------------------------------

    def _differences(
        self, alignment: Alignment, trace: Trace, *, faded: bool
    ) -> list[tuple[Kind, SitePair, Edge | None]]:
        """Everything matched that differs in a forced run, in the reference's order."""
        reference, distances = self.pairing.reference, self.pairing.distances(trace)
        matched: list[tuple[Kind, str, str, Layout | None, SitePair, Edge | None]] = [
            ("activation", p.reference, p.candidate, p.layout, p, None) for p in alignment.pairs
        ]
        matched += [
            ("input", e.reference, e.candidate, e.layout, e.pair, e) for e in alignment.edges
        ]
        distances.ahead(
            (kind, r, c, layout) for kind, r, c, layout, _, _ in matched if layout is not None
        )

        def differs(kind: Kind, r: str, c: str, layout: Layout | None) -> bool:
            if layout is None or (kind, c) not in trace.values:
                return True
            values = reference.trace.values[kind, r], trace.values[kind, c]
            same = self.pairing.same
            limit = noticed(same, *values) if faded else same
            return not distances.of(kind, r, c, layout) <= limit  # NaN differs

        found = [one for one in matched if differs(*one[:4])]
        found.sort(key=lambda one: reference.place[one[0], one[1]])
        return [(kind, pair, edge) for kind, _, _, _, pair, edge in found]

    def _pair_producers(self, edge: Edge, trace: Trace) -> bool:
        """Pair the two layers that made a differing input, if neither has a partner yet."""
        reference = self.pairing.reference.trace
        r, c = reference.info.sources.get(edge.reference), trace.info.sources.get(edge.candidate)
        if r is not None and c is not None:
            r, c = makers(reference, r, trace, c)
        if r is None or c is None or (r, c) in self.pairing.refused:
            return False
        if comes_later(self.pairing, self.anchored, r, c) or self.pairing.is_slice_of_one(r, c):
            return False
        # One end of a layer that the other side has in several; two with parameters are two layers.
        ends = (r in self.owners) != (c in self.heirs)
        by = "anchor" if (r, c) in self.anchored else "value" if ends else "order"
        added = self.pairing.layout(r, c) is not None and self.pairing.add(r, c, by)
        if added:
            self._trials.reopen_behind(r)
        return added

    # -- anchors -------------------------------------------------------------------------------

    def _closest(
        self,
        r: str,
        c: str,
        inside_r: set[str],
        inside_c: set[str],
        trace: Trace,
    ) -> tuple[str, str]:
        """An anchored pair, or the end of the fused layer that one side has in its place.

        Where one side does in one layer what the other does in several (a linear layer and its
        activation), the parameters say where the stretch begins and the values where it ends.
        """
        options = [(o, c) for o in until_the_next(self.pairing.reference, r, inside_r, self.owners)]
        options += [(r, o) for o in until_the_next(self.pairing.candidate, c, inside_c, self.heirs)]
        own = self._distance(r, c, trace)
        best, pair = min(((self._distance(*o, trace), o) for o in options), default=(own, (r, c)))
        return pair if best < min(CLOSER * own, CLOSER) else (r, c)

    def _other_ends(
        self,
        r: str,
        c: str,
        chosen: tuple[str, str],
        inside_r: set[str],
        inside_c: set[str],
    ) -> list[tuple[str, str]]:
        """Where else an anchored pair may end: a product and the sum with its bias, which an ONNX
        file has in two nodes. Far from the truth values say nothing, and only a run tells."""
        p = self.pairing
        theirs = ends_behind(p.candidate, c, inside_c, self.heirs)
        ours = ends_behind(p.reference, r, inside_r, self.owners)
        found = [(r, c), *((r, end) for end in theirs), *((end, c) for end in ours)]
        return [
            one
            for one in found
            if one != chosen and one not in p.refused and p.layout(*one) is not None
        ]

    def _is_a_part(self, r: str, c: str) -> bool:
        """Whether one of two layers does what several on the other side do together.

        It holds a layer whose partner runs only after the other one (attention whose packed
        projection went to a layer of its own). Or no layout maps the two, and it holds a layer
        whose partner lies elsewhere, or has its parameters from several layers (an LSTM of two
        directions from two cells), or is called otherwise often (a GRU once, its cell each step).
        """
        p = self.pairing
        beyond = [  # partners of what the one holds and the other does not
            (p.candidate, b, c) if lies_in(a, owner(r)) else (p.reference, a, r)
            for a, b in self._transferred
            if lies_in(a, owner(r)) != lies_in(b, owner(c))
        ]
        if any(runs_after(side, layer, site) for side, layer, site in beyond):
            return True
        if p.layout(r, c) is not None:
            return False
        return (
            bool(beyond)
            or len({b for a, b in self.anchored if a == r}) > 1
            or len({a for a, b in self.anchored if b == c}) > 1
            or len(calls_in(p.reference, owner(r).partition("#")[0]))
            != len(calls_in(p.candidate, owner(c).partition("#")[0]))
        )

    def _ends_in_glue(self, r: str, c: str, trace: Trace) -> bool:
        """Whether one layer's output is what the code behind the other one makes of its output:
        an activation that is part of the layer here and a function call there."""
        ours = self.pairing.reference.value(r)
        theirs = trace.values.get(("activation", c))
        if theirs is None or self._distance(r, c, trace) <= self.pairing.same:
            return False
        reference, same = self.pairing.reference.trace, self.pairing.same
        found = is_glue_of(reference, r, theirs, same) or is_glue_of(trace, c, ours, same)
        if found:
            self.pairing.refused.add((r, c))
        return found

    def _is_cut_behind(self, r: str, c: str, alignment: Alignment, trace: Trace) -> bool:
        """Whether one layer returns a part of what the other one does, of which no more is used:
        what comes next is right (a causal convolution that is padded at both ends, and cut)."""
        p = self.pairing
        theirs = trace.values.get(("activation", c))
        if theirs is None or p.layout(r, c) is not None:
            return False
        behind = self._trials.behind(r, c, alignment, trace)
        if behind is None or self._error(*behind, trace) > p.same:
            return False
        found = bool(cut_of(theirs, p.reference.value(r), p.same))
        if found:
            p.refused.add((r, c))
        return found

    def _is_repeated(self, r: str, c: str, trace: Trace) -> bool:
        """Whether two layers return the same, once on one side and many times on the other, for the
        code behind to add to a batch: that no layout maps one onto the other is no difference."""
        theirs = trace.values.get(("activation", c))
        if theirs is None or self.pairing.layout(r, c) is not None:
            return False
        found = repeats(theirs, self.pairing.reference.value(r), self.pairing.same)
        if found:
            self.pairing.refused.add((r, c))
        return found

    def _distance(self, r: str, c: str, trace: Trace) -> float:
        layout = self.pairing.layout(r, c)
        return math.inf if layout is None else self._error("activation", r, c, layout, trace)

    # -- order ---------------------------------------------------------------------------------

    def _aliases(
        self, pair: SitePair, inside_r: set[str], inside_c: set[str]
    ) -> list[tuple[str, str]]:
        """The sites inside that hold the very value of a pair (the layer that made an output)."""
        ours = repeating(self.pairing.reference, pair.reference, inside_r)
        theirs = repeating(self.pairing.candidate, pair.candidate, inside_c)
        found = [(ours[-1], theirs[-1])] if ours and theirs else []
        return [f for f in found if f not in self.pairing.refused]

    def _by_order(
        self, inside_r: set[str], inside_c: set[str], known: HandedOn
    ) -> list[tuple[str, str]]:
        """Layers of one type or alike in name, with shapes that fit, in execution order. Not two
        of which each has its parameters from another one, or one from another that runs later."""
        p = self.pairing
        ours = sorted(inside_r, key=p.reference.order.__getitem__)[:WINDOW]
        theirs = sorted(inside_c, key=p.candidate.order.__getitem__)[:WINDOW]
        score = np.zeros((len(ours), len(theirs)))
        for i, r in enumerate(ours):
            for j, c in enumerate(theirs):
                strangers = r in self.owners and c in self.heirs and (r, c) not in self.anchored
                if strangers or (r, c) in p.refused or p.layout(r, c) is None:
                    continue
                if comes_later(p, self.anchored, r, c):
                    continue
                names = p.reference.names[r], p.candidate.names[c]
                name = similarity(*names)
                if abbreviated(*names) or ends_in(r, c):
                    name = max(name, 0.6 + 0.4 * name)
                alike = p.reference.kind(r) == p.candidate.kind(c) or name >= 0.6
                if alike and not known.as_another(r, c):
                    score[i, j] = 0.2 + 2.0 * max(name, 0.5) ** 2
        return [(ours[i], theirs[j]) for i, j in best_monotone(score)]
