"""Stage 5, align, where the reference is a sketch: both runs as short vectors that can be paired.

The projection is linear and keeps norms, so the sites of two runs can be paired by their projected
values as they are by the values themselves (`crosscheck.aligning.align`), once the candidate's lie
in the reference's layout. As there, few layouts are known, and which one holds is decided once for
each type of layer and number of axes, by the values that settle it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from crosscheck.aligning.fingerprints import SAME_VALUE
from crosscheck.aligning.layout import Layout, LayoutBook, between, layouts_of
from crosscheck.arrays import is_float
from crosscheck.observers import Key
from crosscheck.sketches.make import Record, Sketch
from crosscheck.sketches.project import Numbers, Plan, length_of, measure
from crosscheck.trace import Trace, owner
from crosscheck.traces.file import DTYPES, named_dtype
from crosscheck.traces.recorded import RecordedTrace

__all__ = ["Layouts", "Shadows", "shadows", "shadows_of_two"]

_FLOATS = {d.name for d in DTYPES.values() if is_float(np.empty(0, d))}


@dataclass(frozen=True)
class Layouts:
    """The layouts of a candidate's values.

    Attributes:
        types: layer -> its type. Those of one type decide together.
    """

    types: Mapping[str, str] = field(default_factory=dict)
    _book: LayoutBook = field(default_factory=LayoutBook)

    @classmethod
    def of(cls, sketch: Sketch, candidate: Trace) -> Layouts:
        """Let values vote that equal a sketched one in one layout alone."""
        found = cls(candidate.info.layers)
        groups: defaultdict[tuple[int, ...], list[Key]] = defaultdict(list)
        for kind, site in sketch.order:
            record = sketch.record((kind, site))
            if kind == "activation" and len(record.shape) >= 3 and record.dtype in _FLOATS:
                groups[tuple(sorted(record.shape))].append((kind, site))  # type: ignore[arg-type]
        settled: set[tuple[str, tuple[int, ...]]] = set()
        for site, value in candidate.activations().items():
            shaped = found._type(site), value.shape
            for key in groups.get(tuple(sorted(value.shape)), ()):
                record = sketch.record(key)
                options = between(record.shape, value.shape)
                if len(options) == 1 and shaped in settled:
                    continue
                equal = _equal(value, record, options, sketch.plan)
                if len(equal) == 1:
                    found._book.vote(equal, value.ndim, value.ndim, found._type(site))
                    settled.add(shaped)
                    break
        return found

    def between(
        self, reference: tuple[int, ...], candidate: tuple[int, ...], site: str, *, merged: bool
    ) -> Layout | None:
        """The layout that maps a candidate's shape onto a reference's; None: none does.

        Args:
            site: the candidate's.
        """
        return self._book.choose(reference, candidate, lambda: self._type(site), merged=merged)

    def alone(self, shape: tuple[int, ...], site: str, known: set[tuple[int, ...]]) -> Layout:
        """How to turn a value of the candidate before it is known whose partner it is; ``known``:
        the shapes of the reference's."""
        voted = self._book.voted(len(shape), len(shape), self._type(site))
        options = [*map(Layout, voted), *layouts_of(len(shape))]
        return next((one for one in options if one.shape_of(shape) in known), options[0])

    def _type(self, site: str) -> str:
        return self.types.get(owner(site), "")


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
    layouts = Layouts.of(sketch, candidate)
    known = {sketch.record(key).shape for key in sketch.order}
    lengths = _Lengths(sketch.plan.rows)
    reference = _shadow(sketch, lengths)
    theirs = {}
    for key, value in candidate.values.items():
        layout = layouts.alone(value.shape, key[1], known)
        numbers = measure(layout.to_reference(value), sketch.plan)
        theirs[key] = lengths.vector(numbers, length_of(value.shape, value.dtype.name), value.dtype)
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
    return found if kind in "fc" else np.clip(found * 2, -(2.0**62), 2.0**62).astype(np.int64)


def _equal(
    value: np.ndarray, record: Record, options: Sequence[Layout], plan: Plan
) -> list[Layout]:
    """The layouts in which a value is the sketched one."""
    if not _alike(value, record.numbers):
        return []
    measured = ((one, measure(one.to_reference(value), plan)) for one in options)
    return [one for one, numbers in measured if _error(numbers, record.numbers) <= SAME_VALUE]


def _alike(value: np.ndarray, numbers: Numbers) -> bool:
    """Whether the norms, which no layout changes, are about the same."""
    flat = value.reshape(-1).astype(np.float64)
    flat = flat[np.isfinite(flat)]
    l2 = math.sqrt(float(np.einsum("i,i->", flat, flat)))
    return abs(l2 - numbers.l2) <= 2 * SAME_VALUE * max(numbers.l2, 1e-300)


def _error(one: Numbers, other: Numbers) -> float:
    size = float(np.linalg.norm(other.projected))
    return float(np.linalg.norm(one.projected - other.projected)) / size if size else math.inf
