"""Stage 5, align: one trace prepared for matching, each value with a fingerprint.

A fingerprint is a few numbers that no permutation of the elements changes. It proposes which
values may be the same quantity in another layout; only a comparison of all elements confirms it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from crosscheck.aligning.layout import Two, relative_errors
from crosscheck.aligning.names import Tokens, canonical
from crosscheck.arrays import is_float, real_parts
from crosscheck.kernels.on_device import DeviceArray, is_one_number
from crosscheck.kernels.pairs import moments_of
from crosscheck.kernels.stacked import matrix, of_one_size
from crosscheck.observers import Key
from crosscheck.trace import Trace, is_beside, owner

__all__ = [
    "SAME_VALUE",
    "Fingerprints",
    "PreparedTrace",
    "copies",
    "differences",
    "fingerprint",
    "fingerprints",
    "least_errors",
    "looks_like",
    "repeating",
    "size_and_kind",
]

SAME_VALUE = 1e-3
"""Relative 2-norm below which two values are taken for the same quantity (of coarse types, see
`Pairing.same`). Far above rounding, so that a small defect does not break alignment; far
below what unrelated values show."""
HUGE = 1e100
"""Numbers above are squared in units of the largest."""
SAMPLE = 4096
"""Elements that are looked at before all of two values are compared."""
MOST_SAMPLES = 256  # held at once: 8 MiB
AT_ONCE = 1 << 16
"""Fingerprints that are looked at in one call: a few megabytes."""


def fingerprint(value: np.ndarray) -> np.ndarray:
    """Numbers that no permutation of the elements changes, and a small error hardly does.

    Each is Lipschitz: an error δ in the values moves it by no more than 3·rms(δ). (A maximum or a
    third moment tells more values apart, but a small offset or one wrong element would, too.)

    Returns:
        float64 (7,): mean, rms, mean |x|, and the means of what exceeds the rms, of what falls
        below minus the rms, and of what exceeds twice the rms in size (over finite elements); the
        count of non-finite elements.
    """
    return fingerprints([value])[0]


def fingerprints(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The `fingerprint` of each value; small ones are looked at together."""
    values = [real_parts([value])[0] for value in values]
    found: dict[int, np.ndarray] = {}
    for some in of_one_size([value.size for value in values]):
        rows = matrix([values[i] for i in some])
        ordinary = np.abs(rows).max(axis=1) <= HUGE  # not where something is NaN
        if not ordinary.all():
            some, rows = np.array(some)[ordinary].tolist(), rows[ordinary]
        found |= zip(some, _of_rows(rows), strict=True)
    others = [i for i in range(len(values)) if i not in found]
    for i, sums in zip(others, moments_of([values[i] for i in others]), strict=True):
        if sums is not None and sums[0][4] <= HUGE:
            (total, squares, sizes, bad, _), tails = sums
            n = max(values[i].size - bad, 1.0)
            found[i] = np.array([total / n, math.sqrt(squares / n), sizes / n, *(tails / n), bad])
        else:
            found[i] = _fingerprint(values[i].reshape(-1).astype(np.float64))
    return [found[i] for i in range(len(values))]


def _fingerprint(flat: np.ndarray) -> np.ndarray:
    """`fingerprint` of any float64 numbers, in NumPy."""
    finite = np.isfinite(flat)
    bad = flat.size - int(np.count_nonzero(finite))
    flat = flat[finite] if bad else flat
    if flat.size == 0:
        return np.array([0, 0, 0, 0, 0, 0, bad], np.float64)
    largest = float(np.abs(flat).max())
    unit = largest if largest > HUGE else 1.0  # an attention mask may hold the lowest float64
    one: np.ndarray = _of_rows(flat[None] / unit)[0] * unit
    one[6] = bad
    return one


def _of_rows(rows: np.ndarray) -> np.ndarray:
    """Of the rows of finite float64 (k, n), n > 0: (k, 7)."""
    some = rows * rows
    rms = np.sqrt(np.mean(some, axis=1))
    size, level = np.abs(rows), rms[:, None]
    means = [rows.mean(axis=1), rms, size.mean(axis=1)]
    np.subtract(rows, level, out=some)
    means.append(np.maximum(some, 0.0, out=some).mean(axis=1))
    np.subtract(np.negative(rows, out=some), level, out=some)
    means.append(np.maximum(some, 0.0, out=some).mean(axis=1))
    np.subtract(size, 2.0 * level, out=some)
    means.append(np.maximum(some, 0.0, out=some).mean(axis=1))
    return np.stack([*means, np.zeros(len(rows))], 1)


def looks_like(prints: np.ndarray, one: np.ndarray, same: float = SAME_VALUE) -> np.ndarray:
    """Which rows of ``prints`` (m, 7) could be the same content as ``one``, (7,) or (m, 7), up to
    a relative error of ``same``."""
    off = np.abs(prints - one)
    allowed = 3.0 * same * one[..., 1:2]
    close: np.ndarray = (off[:, :6] <= allowed).all(axis=1) & (off[:, 6] <= 0.0)
    return close


def least_errors(values: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """How far two values are apart at least (‖v − t‖ / ‖t‖, (n,)), from their fingerprints, (n, 7)
    each: an error moves them by three times its size at most."""
    finite = (values[:, 6] == 0.0) & (truths[:, 6] == 0.0) & (truths[:, 1] > 0.0)
    moved = np.abs(values[:, :6] - truths[:, :6]).max(axis=1)
    least = np.zeros(len(values))
    np.divide(moved, 3.0 * truths[:, 1], out=least, where=finite)
    return 0.999 * least  # the fingerprints are rounded as well


class Fingerprints:
    """The fingerprints of many values, searched by one of their numbers first: no value looks at
    all others."""

    def __init__(self, prints: np.ndarray, same: float = SAME_VALUE) -> None:
        """``prints``: (m, 7); ``same``: the relative error up to which values are the same."""
        self._same = same
        self._columns = np.ascontiguousarray(prints.T)
        self._sorted = np.sort(self._columns[:6], axis=1)

    def like(self, others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Which rows could be the same content as each of ``others`` (k, 7): so many at a time as
        are looked at together, (indices of others, ascending; indices of rows, ascending for each
        of them)."""
        allowed, wanted = 3.0 * self._same * others[:, 1], np.ascontiguousarray(others.T)
        windows = []  # of the rows in the order of each number; norms make one rms of everything
        for column, own in zip(self._sorted, wanted, strict=False):
            low = np.searchsorted(column, own - allowed)
            high = np.searchsorted(column, own + allowed, side="right")
            windows.append((high - low, low))
        best, *rest = np.argsort([counts.sum() for counts, _ in windows]).tolist()
        by_column = np.argsort(self._columns[best], kind="stable")
        counts, first = windows[best]
        ends = np.cumsum(counts)
        start, number = 0, len(by_column)
        while start < len(others):
            done = int(ends[start - 1]) if start else 0
            stop = max(int(np.searchsorted(ends, done + AT_ONCE, side="right")), start + 1)
            asked = np.repeat(np.arange(start, stop), counts[start:stop])
            there = np.arange(done, done + len(asked)) + (first - ends + counts)[asked]
            rows = by_column[there]
            for k in (*rest, 6):  # as `looks_like`, which looks at all numbers of all rows
                limit = allowed[asked] if k < 6 else 0.0
                close = np.abs(self._columns[k][rows] - wanted[k][asked]) <= limit
                asked, rows = asked[close], rows[close]
            yield np.divmod(np.sort(asked * number + rows), number)
            start = stop


def differences(pairs: Iterable[Two]) -> list[float]:
    """The relative error of each value; inf where a sample of the elements already shows that the
    two have nothing in common."""
    apart: list[bool] = []
    samples = _Samples()

    def alike() -> Iterator[Two]:
        for value, truth in pairs:
            # A smaller one is looked at as a whole just as fast.
            sampled = truth.size > 2 * SAMPLE
            apart.append(sampled and _nothing_in_common(samples.of(value), samples.of(truth)))
            if not apart[-1]:
                yield value, truth

    errors = iter(relative_errors(alike()))
    return [math.inf if far else next(errors) for far in apart]


def _nothing_in_common(value: np.ndarray, truth: np.ndarray) -> bool:
    """Whether most elements are off by more than a tenth of their size."""
    with np.errstate(invalid="ignore", over="ignore"):
        error, squares = np.abs(value - truth), truth * truth
    finite = np.isfinite(error)
    if not finite.all():
        error, squares = error[finite], squares[finite]
    above = np.count_nonzero(error > 0.1 * math.sqrt(squares.mean())) if error.size else 0
    return bool(2 * above > error.size)


class _Samples:
    """The sampled elements of arrays that are compared with several others."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[np.ndarray], np.ndarray]] = {}

    def of(self, value: np.ndarray) -> np.ndarray:
        """Float64 (`SAMPLE`,), in the order of the array's axes."""
        held, sample = self._known.get(id(value), (None, None))
        if held is None or sample is None or held() is not value:
            if len(self._known) >= MOST_SAMPLES:
                self._known.clear()
            flat = np.linspace(0, value.size - 1, SAMPLE).astype(int)
            if isinstance(value, DeviceArray):
                sample = value.take_flat(flat).astype(np.float64)
            elif value.flags.c_contiguous:
                sample = value.reshape(-1)[flat].astype(np.float64)
            else:
                sample = value[np.unravel_index(flat, value.shape)].astype(np.float64)
            self._known[id(value)] = weakref.ref(value), sample
        return sample


def size_and_kind(value: np.ndarray) -> tuple[int, str]:
    """Only values of one size and one kind can be the same: True is not 1, and 1 is not 1.0."""
    return value.size, "f" if is_float(value) else value.dtype.kind.replace("u", "i")


@dataclass
class PreparedTrace:
    """One trace, prepared for matching. Fingerprints are taken when they are asked for."""

    trace: Trace
    order: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    _prints: dict[str, np.ndarray] = field(default_factory=dict)
    _constant: dict[str, bool] = field(default_factory=dict)
    _ancestors: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, trace: Trace) -> PreparedTrace:
        shapes = trace.shapes()
        return cls(trace, {site: i for i, site in enumerate(shapes)}, shapes)

    @cached_property
    def names(self) -> Mapping[str, Tokens]:
        """site -> the words of its path."""
        return canonical(self.shapes)

    @property
    def place(self) -> dict[Key, int]:
        """`Trace.place`."""
        return self.trace.place

    def value(self, site: str) -> np.ndarray:
        return self.trace.values["activation", site]

    def prints_of(self, sites: Sequence[str]) -> list[np.ndarray]:
        """The fingerprint of each site."""
        new = [site for site in dict.fromkeys(sites) if site not in self._prints]
        self._prints |= zip(new, fingerprints([self.value(site) for site in new]), strict=True)
        return [self._prints[site] for site in sites]

    def is_constant(self, site: str) -> bool:
        """One number throughout: that another site holds it too says little."""
        if site not in self._constant:
            value = self.value(site)
            first, last = (0,) * value.ndim, (-1,) * value.ndim
            self._constant[site] = not value.size or bool(
                value[first] == value[last]  # as a rule, these tell
                and is_one_number(value)
            )
        return self._constant[site]

    def kind(self, site: str) -> str:
        return self._kinds[site]

    @cached_property
    def _kinds(self) -> dict[str, str]:
        layers = self.trace.info.layers
        return {site: layers.get(owner(site), "").lower() for site in self.order}

    def ancestors(self, site: str) -> frozenset[str]:
        """The calls during which ``site`` was called."""
        call = owner(site)
        if call not in self._ancestors:
            found: list[str] = []
            parent = self.trace.info.parents.get(call)
            while parent is not None and parent not in found:
                found.append(parent)
                parent = self.trace.info.parents.get(parent)
            self._ancestors[call] = frozenset(found)
        return self._ancestors[call]


def repeating(side: PreparedTrace, site: str, others: Iterable[str]) -> list[str]:
    """Those of ``others`` that hold the very numbers of ``site``, in execution order."""
    value = side.value(site)
    if not is_float(value) or side.is_constant(site):
        return []
    return sorted(
        (
            o
            for o in others
            if o != site and np.array_equal(side.value(o).ravel(), value.ravel(), equal_nan=True)
        ),
        key=side.order.__getitem__,
    )


def copies(side: PreparedTrace, site: str, others: Iterable[str]) -> list[str]:
    """Those of ``others`` that hold the numbers of ``site``, in whatever order of axes."""
    value = side.value(site)
    if not is_float(value) or side.is_constant(site):
        return []
    like = size_and_kind(value)
    alike = [o for o in others if o != site and size_and_kind(side.value(o)) == like]
    numbers = np.sort(value, axis=None) if alike else value
    return [
        o
        for o in alike
        if np.array_equal(np.sort(side.value(o), axis=None), numbers, equal_nan=True)
    ]


def is_slice_of_result(side: PreparedTrace, site: str) -> bool:
    """Whether a site is what a layer returns beside its result, and is the first or the last of it
    along one axis: the final state of a recurrent layer."""
    result = side.trace.values.get(("activation", owner(site))) if is_beside(site) else None
    return result is not None and is_slice(side.value(site), result)


def is_slice(value: np.ndarray, whole: np.ndarray) -> bool:
    """Whether a value is the first or the last of another one along one axis."""
    value = value.squeeze()
    if not 0 < value.size < whole.size:
        return False
    return any(
        np.array_equal(np.take(whole, place, axis).squeeze(), value, equal_nan=is_float(value))
        for axis, length in enumerate(whole.shape)
        if value.size * length == whole.size
        for place in (0, -1)
    )
