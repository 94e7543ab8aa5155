"""Part of stage 5, align: what has been paired so far, and what the rules of pairing are."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from crosscheck.aligning.alignment import SitePair
from crosscheck.aligning.distances import Distances, rounding_between
from crosscheck.aligning.fingerprints import SAME_VALUE, PreparedTrace, copies, is_slice_of_result
from crosscheck.aligning.layout import Layout, LayoutBook, fitting, relative_error
from crosscheck.aligning.names import canonical, similarity
from crosscheck.errors import CannotCompare, InvalidArgument, capped
from crosscheck.trace import Trace, is_beside, owner

__all__ = ["Pairing", "far", "pair_outputs"]

ROUNDING = 1e-6
"""Relative 2-norm up to which two float32 values are taken for equally equal."""
UNLIKE = 0.1
"""Relative 2-norm from which on it tells nothing how far two outputs are apart."""


class Pairing:
    """Pairs found so far between a reference's free trace and runs of a candidate.

    Attributes:
        reference, candidate: the free traces, prepared.
        rounding: the relative error that rounding may leave between two values.
        same: the one up to which they are taken for the same quantity.
        book: the layouts that are in force.
        pairs: reference site -> its pair.
        taken: candidate site -> its partner.
        refused: pairs that the values have ruled out.
        entered: (reference site, candidate site) of layers whose inputs are compared, whatever they
            return; False where the values have ruled that out.
        unlike: (reference slot, candidate slot) of layers that return the same from different
            inputs: one of them does what the other side does in several.
        changes: how often a pair was added or removed.
    """

    def __init__(
        self, reference: Trace, candidate: Trace, explicit: Mapping[str, str], skip: Sequence[str]
    ) -> None:
        self.reference = PreparedTrace.of(reference)
        self.candidate = PreparedTrace.of(candidate)
        self.rounding = rounding_between(reference, candidate)
        self.same = max(SAME_VALUE, self.rounding)
        self.book = LayoutBook()
        self.pairs: dict[str, SitePair] = {}
        self.taken: dict[str, str] = {}
        self.refused: set[tuple[str, str]] = set()
        self.entered: dict[tuple[str, str], bool] = {}
        self.unlike: set[tuple[str, str]] = set()
        self.changes = 0
        self._distances = Distances(reference, candidate)
        self._skip = set(skip)
        self._check_names(explicit)

    def distances(self, run: Trace) -> Distances:
        """Of a run of the candidate; those of the latest are kept."""
        if self._distances.run is not run:
            self._distances = Distances(self.reference.trace, run)
        return self._distances

    def layout(self, r: str, c: str) -> Layout | None:
        """The layout between two sites; a model's outputs must agree in their shapes."""
        outputs = self.reference.trace.info.outputs, self.candidate.trace.info.outputs
        return self.book.choose(
            self.reference.shapes[r],
            self.candidate.shapes[c],
            lambda: self.types(r, c),
            merged=r not in outputs[0] and c not in outputs[1],
        )

    def layout_into(self, r: str, c: str, run: Trace, *, merged: bool = True) -> Layout | None:
        """The layout between inputs of two layers; ``run``: of the candidate."""
        shapes = self.reference.trace.values["input", r].shape, run.values["input", c].shape
        return self.book.choose(*shapes, lambda: self.types(r, c), merged=merged)

    def types(self, r: str, c: str) -> tuple[str, str]:
        """The types of the layers that two sites, or inputs, belong to."""
        layers = self.reference.trace.info.layers, self.candidate.trace.info.layers
        return layers[0].get(owner(r), ""), layers[1].get(owner(c), "")

    def add(self, r: str, c: str, by: str) -> bool:
        """Pair two sites that are free; says whether they were."""
        if r in self.pairs or c in self.taken:
            return False
        if by != "explicit" and (r in self._skip or c in self._skip):
            return False
        self.pairs[r] = SitePair(r, c, self.layout(r, c), by)
        self.taken[c] = r
        self.changes += 1
        return True

    def remove(self, pair: SitePair) -> None:
        """Take back a pair that turned out wrong; it is not proposed again."""
        self.release(pair)
        self.refused.add((pair.reference, pair.candidate))

    def release(self, pair: SitePair) -> None:
        """Take back a pair; it may be proposed again."""
        del self.pairs[pair.reference]
        del self.taken[pair.candidate]
        self.changes += 1

    def enter(self, r: str, c: str, compared: bool = True) -> None:
        """Compare what goes into two layers, or no longer."""
        self.entered[r, c] = compared
        self.changes += 1

    def free_reference(self) -> list[str]:
        """The reference's sites without partner that are not skipped."""
        return self._free(self.reference, self.pairs)

    def free_candidate(self, side: PreparedTrace | None = None) -> list[str]:
        """The candidate's; ``side``: of another run of it."""
        return self._free(side or self.candidate, self.taken)

    def _free(self, side: PreparedTrace, taken: Iterable[str]) -> list[str]:
        taken = set(taken)
        return [s for s in side.order if s not in taken and s not in self._skip]

    def akin(self, r: str, c: str) -> bool:
        """Whether names or types of two layers have something in common."""
        types = self.reference.kind(r), self.candidate.kind(c)
        names = self.reference.names[r], self.candidate.names[c]
        return types[0] == types[1] != "" or similarity(*names) >= 0.5

    def likeness(self, r: str, c: str, layout: Layout, error: float) -> float:
        """Which of several equal values belong together: names, layer types, place in the run,
        shape, and how equal they are (a residual stream may hardly change from one layer to the
        next)."""
        types = self.reference.kind(r), self.candidate.kind(c)
        return (
            similarity(self.reference.names[r], self.candidate.names[c])
            + 0.5 * (types[0] == types[1] != "")
            - self._apart(r, c)
            - 0.5 * (layout.shapes is not None)
            - 0.5 * (is_beside(r) != is_beside(c))
            - 0.2 * math.log10(max(error / ROUNDING, 1.0))
        )

    def told_already(self, r: str, c: str) -> bool:
        """Whether one site is what a layer returns beside its result and the other goes on, so that
        their values are the same and their cotangents are two things: nothing uses what is beside,
        or it is a slice of the result (the final state of a recurrent layer), or a copy of a value
        that has a partner. What goes on is that value, not the copy."""
        ours, theirs = (self.reference, r), (self.candidate, c)
        if is_beside(r) == is_beside(c):
            copied = False
        elif is_beside(r):
            copied = _is_copy(*ours, self.pairs)
        else:
            copied = _is_copy(*theirs, self.taken)
        return (
            copied
            or (is_beside(r) and _is_unused(*ours) and not _is_unused(*theirs))
            or (is_beside(c) and _is_unused(*theirs) and not _is_unused(*ours))
            or self.is_slice_of_one(r, c)
        )

    def is_slice_of_one(self, r: str, c: str) -> bool:
        """Whether one of two sites is a slice of what its layer returns, and the other is not: the
        partner of the slice lies within the partner of that."""
        return is_slice_of_result(self.reference, r) != is_slice_of_result(self.candidate, c)

    def _apart(self, r: str, c: str) -> float:
        """How far from each other two sites come in their runs, as a part of the whole."""
        return abs(
            self.reference.order[r] / len(self.reference.order)
            - self.candidate.order[c] / len(self.candidate.order)
        )

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


def _is_copy(side: PreparedTrace, site: str, paired: Iterable[str]) -> bool:
    """Of a value within the model that has a partner."""
    ends = {*side.trace.info.inputs, *side.trace.info.outputs}
    return bool(copies(side, site, (s for s in paired if s in side.order and s not in ends)))


def _is_unused(side: PreparedTrace, site: str) -> bool:
    """Whether the cotangent there is known, and zero."""
    value = side.trace.values.get(("cotangent", site))
    return value is not None and not value.astype(bool).any()


def far(value: np.ndarray, truth: np.ndarray, layout: Layout, limit: float) -> bool:
    """Whether a candidate's value is not the reference's, beyond what a small defect does."""
    return not relative_error(layout.to_reference(value), truth) <= limit  # NaN is far


def pair_outputs(
    reference: Trace, candidate: Trace, *, explicit: Mapping[str, str], skip: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Pair the models' outputs: by name where both use the same names, else in order; where both
    name them, and otherwise, by what they hold, since the order of a dict means nothing.

    Raises:
        CannotCompare: an output of one side has no counterpart and is not skipped.
    """
    ours = [s for s in reference.info.outputs if s not in {*explicit, *skip}]
    theirs = [s for s in candidate.info.outputs if s not in {*explicit.values(), *skip}]
    if len(ours) == len(theirs):
        suffixes = {s.partition(":")[2]: s for s in theirs}
        if {s.partition(":")[2] for s in ours} == set(suffixes):
            return [(s, suffixes[s.partition(":")[2]]) for s in ours]
        if _named(ours) and _named(theirs):
            return _by_content(reference, candidate, ours, theirs)
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


def _named(outputs: Sequence[str]) -> bool:
    """Whether they are the values of a dict, or fields: the first of them shows no name."""
    return any(not part.isdigit() for site in outputs for part in site.split(":")[1:])


def _by_content(
    reference: Trace, candidate: Trace, ours: Sequence[str], theirs: Sequence[str]
) -> list[tuple[str, str]]:
    """Outputs that hold the same, then those whose shapes fit; what is left, in order."""
    sides = ((reference, ours), (candidate, theirs))
    truths, values = ([t.values.get(("activation", s)) for s in some] for t, some in sides)
    nearest: list[tuple[float, int, int, int]] = []
    for (i, truth), (j, value) in itertools.product(enumerate(truths), enumerate(values)):
        if truth is None or value is None:  # a sketch keeps none
            continue
        fits = fitting(truth.shape, value.shape)
        errors = [relative_error(one.to_reference(value), truth) for one in fits]
        nearest += [(min(*errors, UNLIKE), abs(i - j), i, j)] if errors else []
    found: dict[int, int] = {}
    for _, _, i, j in sorted(nearest):
        if i not in found and j not in found.values():
            found[i] = j
    left = (j for j in range(len(theirs)) if j not in found.values())
    return [(s, theirs[found[i] if i in found else next(left)]) for i, s in enumerate(ours)]


def _no_such_site(argument: str, name: str, side: PreparedTrace) -> str:
    tokens = canonical([name])[name]
    near = sorted(side.order, key=lambda s: -similarity(side.names[s], tokens))[:3]
    return f"{argument} names `{name}`, which is no site of that model; nearest: {capped(near)}"
