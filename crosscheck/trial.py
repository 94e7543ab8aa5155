"""What names and shapes leave open about the weights is settled by running the candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set

from crosscheck.aligning.align import Aligner
from crosscheck.aligning.layout import relative_error
from crosscheck.errors import SideFailed
from crosscheck.kernels.on_device import as_host
from crosscheck.pipeline import align
from crosscheck.run import Runner
from crosscheck.trace import Trace
from crosscheck.weights import Fit, Match

__all__ = ["by_running"]


def by_running(
    candidate: Runner, reference: Trace, explicit: Mapping[str, str], skip: Sequence[str]
) -> Callable[[Match], Fit]:
    """How well the candidate fits once it holds the weights of a match.

    It counts the sites that match by value when everything before them is right, so that a defect
    does not hide what lies behind it; between equals the outputs' error decides.
    """

    def fit(match: Match) -> Fit:
        candidate.adapter.load(match.values())
        try:
            free = candidate.record(passive=True)
            aligner = Aligner(
                reference, free, explicit=explicit, anchors=match.anchors(), skip=skip
            )
            alignment, _ = align(aligner, reference, free, candidate)
        except SideFailed:
            return Fit(-1, math.inf)
        errors = [
            relative_error(
                p.layout.to_reference(free.values["activation", p.candidate]),
                reference.values["activation", p.reference],
            )
            for p in alignment.pairs
            if p.by == "output" and p.layout is not None
        ]
        matched = {(p.reference, p.candidate) for p in alignment.pairs if p.by == "value"}
        right = frozenset(_right(match.anchors(), matched, reference, free))
        return Fit(len(matched), min(errors, default=math.inf), right, _given(right, free))

    return fit


def _right(
    anchors: Iterable[tuple[str, str]],
    pairs: Set[tuple[str, str]],
    reference: Trace,
    free: Trace,
) -> Iterator[str]:
    """The candidate's layers that match by value: all of one, or what one makes and the other has
    before it ends (a norm with its activation inside)."""
    for r, c in anchors:
        inside = {(s, c) for s in reference.inside(r)} | {(r, s) for s in free.inside(c)}
        if {(r, c), *inside} & pairs:
            yield c


def _given(layers: Iterable[str], run: Trace) -> dict[str, Hashable]:
    """`Fit.given` of layers with one input."""
    slots = {layer: run.inputs_of(layer) for layer in layers}
    return {
        layer: run.info.sources.get(of[0]) or as_host(run.values["input", of[0]]).tobytes()
        for layer, of in slots.items()
        if len(of) == 1
    }
