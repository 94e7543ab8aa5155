"""Stage 5, align, where the reference is a sketch: both runs as short vectors that can be paired.

The projection is linear and keeps norms, so the sites of two runs can be paired by their projected
values as they are by the values themselves (`crosscheck.aligning.align`), once the candidate's lie
in the reference's layout. As there, only two layouts are known, and which one holds is decided once
for each number of axes, by the values that settle it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from crosscheck.aligning.fingerprints import SAME_VALUE
from crosscheck.aligning.layout import SAME, Layout, between, fitting
from crosscheck.arrays import is_float
from crosscheck.observers import Key
from crosscheck.sketches.make import Sketch
from crosscheck.sketches.project import Numbers, measure
from crosscheck.trace import Trace
from crosscheck.traces.file import DTYPES, named_dtype
from crosscheck.traces.recorded import RecordedTrace

__all__ = ["Layouts", "Shadows", "shadows", "shadows_of_two"]

_FLOATS = {d.name for d in DTYPES.values() if is_float(np.empty(0, d))}


@dataclass
class Layouts:
    """The layout of each number of axes.

    Attributes:
        votes: number of axes -> the layout that equal values have.
    """

    votes: Mapping[int, Layout] = field(default_factory=dict)

    def between(
        self, reference: tuple[int, ...], candidate: tuple[int, ...], *, merged: bool
    ) -> Layout | None:
        """The layout that maps a candidate's shape onto a reference's; None: none does."""
        options = (between if merged else fitting)(reference, candidate)
        voted = self.votes.get(len(reference))
        return voted if voted in options else next(iter(options), None)


@dataclass(frozen=True)
class Shadows:
    """Both runs with a short vector in the place of every value.

    Attributes:
        layouts: of the values themselves.
    """

    reference: RecordedTrace
    candidate: RecordedTrace
    layouts: Layouts


def shadows(sketch: Sketch, candidate: RecordedTrace) -> Shadows:
    """Project the candidate's values as the sketch's were, in the sketch's layout."""
    layouts = Layouts(_votes(sketch, candidate))
    known = {sketch.record(key).shape for key in sketch.order}
    lengths = _Lengths(sketch.plan.rows)
    reference = _shadow(sketch, lengths)
    theirs = {}
    for key, value in candidate.values.items():
        layout = _own_layout(value.shape, layouts, known)
        numbers = measure(layout.to_reference(value), sketch.plan)
        theirs[key] = lengths.vector(numbers, value.size, value.dtype)
    return Shadows(reference, replace(candidate, values=theirs), layouts)


def shadows_of_two(reference: Sketch, candidate: Sketch) -> Shadows:
    """The same of two sketches of one plan, whose layouts are taken to be the same."""
    lengths = _Lengths(reference.plan.rows)
    return Shadows(_shadow(reference, lengths), _shadow(candidate, lengths), Layouts())


def _shadow(sketch: Sketch, lengths: _Lengths) -> RecordedTrace:
    """A sketch as a run of short vectors."""
    records = [(key, sketch.record(key)) for key in sketch.order]
    values = {key: lengths.vector(r.numbers, r.size, named_dtype(r.dtype)) for key, r in records}
    gradients = {name: np.zeros(1) for kind, name in sketch.records if kind == "gradient"}
    buffers = {name: np.zeros(1) for kind, name in sketch.records if kind == "buffer"}
    return RecordedTrace(
        values=values,  # type: ignore[arg-type]
        info=replace(sketch.info, parameter_gradients=gradients, buffers=buffers),
        framework=sketch.framework,
        inputs_sha256=sketch.inputs_sha256,
        parameters=sketch.parameters,
        seed=sketch.seed,
        train=sketch.train,
        version=sketch.version,
        device=sketch.device,
        origin=sketch.origin,
    )


@dataclass
class _Lengths:
    """Gives the vectors of values of one size and kind one length, others another."""

    rows: int
    _places: dict[tuple[int, str], int] = field(default_factory=dict, init=False)

    def vector(self, numbers: Numbers, size: int, dtype: np.dtype) -> np.ndarray:
        kind = "f" if is_float(np.empty(0, dtype)) else dtype.kind.replace("u", "i")
        place = self._places.setdefault((size, kind), len(self._places))
        return _vector(numbers, self.rows + place, kind)


def _vector(numbers: Numbers, length: int, kind: str) -> np.ndarray:
    """The projections, padded: values of another size or kind have another length."""
    found = np.zeros(length + 1)
    found[: numbers.projected.size] = numbers.projected
    bad = numbers.counts[:3].sum()
    if bad:  # it counts in every fingerprint, so that it tells values apart
        found[-1] = math.nan
    return found if kind == "f" else np.clip(found * 2, -(2.0**62), 2.0**62).astype(np.int64)


def _own_layout(shape: tuple[int, ...], layouts: Layouts, known: set[tuple[int, ...]]) -> Layout:
    """How to turn a value of the candidate before it is known whose partner it is."""
    options = [layouts.votes.get(len(shape), SAME), SAME]
    if len(shape) >= 3:
        inner = tuple(range(1, len(shape) - 1))
        options += [
            Layout((0, len(shape) - 1, *inner)),
            Layout((0, *range(2, len(shape)), 1)),
            Layout((1, 0, *range(2, len(shape)))),
        ]
    for layout in options:
        axes = layout.axes or range(len(shape))
        if tuple(shape[a] for a in axes) in known:
            return layout
    return options[0]


def _votes(sketch: Sketch, candidate: Trace) -> dict[int, Layout]:
    """Let values vote that equal a sketched one in one layout alone."""
    groups: defaultdict[tuple[int, ...], list[Key]] = defaultdict(list)
    for kind, site in sketch.order:
        record = sketch.record((kind, site))
        if kind == "activation" and len(record.shape) >= 3 and record.dtype in _FLOATS:
            groups[tuple(sorted(record.shape))].append((kind, site))  # type: ignore[arg-type]
    votes: defaultdict[int, Counter[Layout]] = defaultdict(Counter)
    for value in candidate.activations().values():
        for key in groups.get(tuple(sorted(value.shape)), ()):
            record = sketch.record(key)
            options = between(record.shape, value.shape)
            if len(options) < 2 or not _alike(value, record.numbers):
                continue
            equal = [
                layout
                for layout in options
                if _error(measure(layout.to_reference(value), sketch.plan), record.numbers)
                <= SAME_VALUE
            ]
            if len(equal) == 1:
                votes[value.ndim][equal[0]] += 1
                break
    return {ndim: counter.most_common(1)[0][0] for ndim, counter in votes.items()}


def _alike(value: np.ndarray, numbers: Numbers) -> bool:
    """Whether the norms, which no layout changes, are about the same."""
    flat = value.reshape(-1).astype(np.float64)
    flat = flat[np.isfinite(flat)]
    l2 = math.sqrt(float(np.einsum("i,i->", flat, flat)))
    return abs(l2 - numbers.l2) <= 2 * SAME_VALUE * max(numbers.l2, 1e-300)


def _error(one: Numbers, other: Numbers) -> float:
    size = float(np.linalg.norm(other.projected))
    return float(np.linalg.norm(one.projected - other.projected)) / size if size else math.inf
