"""The numbers that stand for an array: norms, counts, a seeded sample, seeded projections.

The projection is a sparse Johnson-Lindenstrauss map of k rows (Kane & Nelson, "Sparser
Johnson-Lindenstrauss transforms", J. ACM 61, 2014; with one group it is the fast AMS sketch of
Thorup & Zhang, SODA 2004). Every element is added, with a random sign and the factor 1/2, to one
random row in each of four groups of k/4 rows. Signs and rows are the bits of one Philox word, which
depends on the seed and on the element's flat index alone, so no matrix is ever held, and a value in
another layout is transposed first. The map is linear, and for a difference d

    E ‖Sd‖² = ‖d‖²,    Var ‖Sd‖² ≤ (2/k) ‖d‖⁴ .
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from crosscheck.arrays import is_float, real_parts

__all__ = ["FACTS", "Numbers", "Plan", "measure"]

GROUPS = 4
BLOCK = 1 << 16
COMPILED = 1 << 20  # elements; an array so large is rarely alone, and compiling takes a second
FILL, FILL_SHARE = 1e8, 1e-3
FACTS = ("l2", "maximum", "mean", "nan", "positive", "negative", "fill")
"""What is stored of an array beside its sample and projections."""


@dataclass(frozen=True)
class Plan:
    """How every array of a run is sketched.

    Attributes:
        seed: of signs, rows and sampled places.
        rows: k, a multiple of 4. An array of at most k elements is kept whole.
        sample: how many elements of a larger one are kept as they are.
        wide: whether numbers are kept in float64 (some value of the run has float64).
    """

    seed: int
    rows: int
    sample: int
    wide: bool = False

    @property
    def dtype(self) -> np.dtype:
        """In which the numbers are kept."""
        return np.dtype("<f8" if self.wide else "<f4")

    def places(self, size: int) -> np.ndarray:
        """Flat indices of the sampled elements of an array of ``size``."""
        words = _stream(self.seed, f"sample {size}").random_raw(self.sample)
        return (np.asarray(words, np.uint64) % np.uint64(max(size, 1))).astype(np.int64)

    def length(self, size: int) -> int:
        """How many numbers are kept of an array of ``size``, facts left out."""
        return size if size <= self.rows else self.rows + self.sample


@dataclass(frozen=True)
class Numbers:
    """What is known of one array.

    Attributes:
        facts: `FACTS`: 2-norm, largest size and mean of the finite elements; how many are NaN,
            +Inf, -Inf, and how many stand for minus infinity (one huge number, as in a mask).
        projected: float64 (k,) or fewer: S x, or all elements of a small array.
        sampled: float64 (m,), empty for a small one.
    """

    facts: np.ndarray
    projected: np.ndarray
    sampled: np.ndarray

    @property
    def l2(self) -> float:
        """2-norm of the finite elements; NaN where it is not known, as that of a sum of values."""
        return float(self.facts[0])

    @property
    def scale(self) -> float:
        """2-norm, estimated where it is not known."""
        return float(np.linalg.norm(self.projected)) if math.isnan(self.l2) else self.l2

    @property
    def maximum(self) -> float:
        """The largest size of a finite element; NaN where it is not known."""
        return float(self.facts[1])

    @property
    def mean(self) -> float:
        """Mean of the finite elements."""
        return float(self.facts[2])

    @property
    def counts(self) -> np.ndarray:
        """Elements that are NaN, +Inf, -Inf, and fill."""
        return self.facts[3:]


def length_of(shape: tuple[int, ...], dtype: str) -> int:
    """How many numbers a value holds: a complex element is two."""
    return math.prod(shape) * (2 if dtype.startswith("complex") else 1)


def measure(value: np.ndarray, plan: Plan) -> Numbers:
    """Sketch an array, which lies in the layout of the reference; any dtype, one pass.

    The numbers are rounded as the file rounds them, so that equal arrays give equal numbers.
    """
    flat = real_parts([value])[0].reshape(-1)
    counts, huge = _counts(flat)
    projected = np.zeros(plan.rows if flat.size > plan.rows else flat.size)
    squares = total = largest = 0.0
    stream = _stream(plan.seed, "rows")
    add = _kernel(flat.size)
    for start in range(0, flat.size, BLOCK):
        block = _finite(flat[start : start + BLOCK], huge)
        size = np.abs(block)
        top = float(size.max(initial=0.0))
        largest = max(largest, top)
        with np.errstate(over="ignore"):
            squares += float(np.einsum("i,i->", block, block))
        total += float(block.sum())
        if flat.size <= plan.rows:
            projected[:] = block
        else:
            add(block, np.asarray(stream.random_raw(block.size), np.uint64), projected)
    if flat.size > plan.rows:
        projected *= 1.0 / math.sqrt(GROUPS)
        sampled = _finite(flat[plan.places(flat.size)], huge)
    else:
        sampled = np.zeros(0)
    facts = [math.sqrt(squares), largest, total / max(flat.size, 1), *counts]
    return Numbers(*(_kept(np.asarray(part), plan) for part in (facts, projected, sampled)))


def _kernel(size: int) -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """What adds S x of a block of an array of ``size`` to the rows."""
    if size < COMPILED:
        return _add_signed
    from crosscheck.kernels.projection import add_signed

    return add_signed


def _add_signed(block: np.ndarray, words: np.ndarray, rows: np.ndarray) -> None:
    """Add S x of one block to ``rows`` (without the factor): `crosscheck.kernels.projection`."""
    per_group = rows.size // GROUPS
    for group in range(GROUPS):
        bits = ((words >> np.uint64(16 * group)) & np.uint64(0xFFFF)).astype(np.int64)
        row = ((bits >> 1) * per_group) >> 15
        signed = np.where(bits & 1, block, -block)
        part = slice(group * per_group, (group + 1) * per_group)
        rows[part] += np.bincount(row, weights=signed, minlength=per_group)


def _counts(flat: np.ndarray) -> tuple[tuple[float, float, float, float], float | None]:
    """NaN, +Inf, -Inf and fill, and the number that is fill (None: none is)."""
    if not is_float(flat) or flat.size == 0:
        return (0, 0, 0, 0), None
    wide = flat if flat.dtype.kind == "f" else flat.astype(np.float32)
    top = bottom = 0.0
    nan = positive = negative = 0
    for start in range(0, wide.size, BLOCK):
        block = wide[start : start + BLOCK]
        finite = np.isfinite(block)
        if not finite.all():
            nan += int(np.isnan(block).sum())
            positive += int(np.isposinf(block).sum())
            negative += int(np.isneginf(block).sum())
        top = max(top, float(np.max(block, initial=0.0, where=finite)))
        bottom = min(bottom, float(np.min(block, initial=0.0, where=finite)))
    huge = _fill(wide, top if top >= -bottom else bottom)
    fill = 0 if huge is None else int(np.count_nonzero(wide == huge))
    return (nan, positive, negative, fill), huge


def _fill(flat: np.ndarray, largest: float) -> float | None:
    """``largest``, if it stands for minus infinity: huge, and nothing else is nearly as large."""
    if abs(largest) < FILL:
        return None
    size = np.abs(flat)
    beside = np.isfinite(flat) & (flat != largest) & (size > FILL_SHARE * abs(largest))
    rest = np.isfinite(flat) & (flat != largest)
    return None if beside.any() or not rest.any() else largest


def _finite(block: np.ndarray, huge: float | None) -> np.ndarray:
    wide = block.astype(np.float64)
    if huge is not None:
        wide[wide == huge] = 0.0
    finite = np.isfinite(wide)
    return wide if finite.all() else np.where(finite, wide, 0.0)


def _kept(numbers: np.ndarray, plan: Plan) -> np.ndarray:
    """As they come back from a file: rounded, and finite."""
    most = float(np.finfo(plan.dtype).max)
    clipped = np.clip(np.nan_to_num(numbers.astype(np.float64), nan=0.0), -most, most)
    return clipped.astype(plan.dtype).astype(np.float64)


def _stream(seed: int, name: str) -> np.random.Philox:
    digest = hashlib.sha256(f"sketch {name} {seed}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))
