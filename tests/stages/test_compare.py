"""Stage 6, compare: against plain sums, element by element."""

from __future__ import annotations

import itertools
import math

import ml_dtypes
import numpy as np
import pytest

from crosscheck.compare import compare, compare_two, describe, equal, root_mean_squares
from crosscheck.kernels.blocked import BLOCK, PairSums, pair_sums

INF, NAN = float("inf"), float("nan")
DTYPES = ["float16", "bfloat16", "float32", "float64", "int8", "int64", "uint16", "bool"]


def plain(a: np.ndarray, b: np.ndarray) -> PairSums:
    """The same sums, one element after the other, exactly rounded."""
    ours = [float(v) for v in a.ravel()]
    theirs = [float(v) for v in b.ravel()]
    finite = [math.isfinite(x) and math.isfinite(y) for x, y in zip(ours, theirs, strict=True)]
    pairs = [p for p, ok in zip(zip(ours, theirs, strict=True), finite, strict=True) if ok]
    places = [i for i, ok in enumerate(finite) if ok]
    sizes = [abs(x - y) for x, y in pairs]
    largest = max(sizes, default=0.0)
    bad = [
        i
        for i, (x, y) in enumerate(zip(ours, theirs, strict=True))
        if not finite[i] and not (x == y or (math.isnan(x) and math.isnan(y)))
    ]
    return PairSums(
        count=len(pairs),
        diff2=math.fsum((x - y) ** 2 for x, y in pairs),
        a2=math.fsum(x * x for x, _ in pairs),
        b2=math.fsum(y * y for _, y in pairs),
        ab=math.fsum(x * y for x, y in pairs),
        max_diff=largest,
        argmax=places[sizes.index(largest)] if sizes else -1,
        max_b=max((abs(y) for _, y in pairs), default=0.0),
        nonfinite=len(ours) - len(pairs),
        mismatch=len(bad),
        first_mismatch=bad[0] if bad else -1,
    )


def assert_same(got: PairSums, want: PairSums) -> None:
    size = math.sqrt(want.a2 * want.b2)
    for name in ("diff2", "a2", "b2"):
        assert getattr(got, name) == pytest.approx(getattr(want, name), rel=1e-12), name
    assert got.ab == pytest.approx(want.ab, rel=1e-12, abs=1e-12 * size)
    for name in ("count", "max_diff", "argmax", "max_b", "nonfinite", "mismatch", "first_mismatch"):
        assert getattr(got, name) == getattr(want, name), name
    assert got.unit == 1.0


def random(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=shape) * 20
    if dtype == "bool":
        return values > 0
    if dtype == "uint16":
        values = np.abs(values)
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


@pytest.mark.parametrize("size", [0, 1, 2, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_sizes_around_the_block(size: int) -> None:
    a, b = random("float32", (size,), 0), random("float32", (size,), 1)
    assert_same(pair_sums(a, b), plain(a, b))


@pytest.mark.parametrize(("one", "two"), itertools.combinations_with_replacement(DTYPES, 2))
def test_mixed_dtypes(one: str, two: str) -> None:
    a, b = random(one, (7, 11), 2), random(two, (7, 11), 3)
    assert_same(pair_sums(a, b), plain(a, b))


def test_views_are_compared_in_index_order() -> None:
    base = random("float32", (4, 6, 5, 3), 4)
    other = random("float32", (4, 3, 6, 5), 5)
    views = [
        (base.transpose(0, 3, 1, 2), other),
        (base[::-1, ::2, 1:, ::-1], base[:, 1::2, :-1, :]),
        (np.broadcast_to(base[:1, :, :1], base.shape), base),
        (np.broadcast_to(np.float32(2.5), base.shape), np.asfortranarray(base)),
    ]
    for a, b in views:
        assert_same(pair_sums(a, b), plain(a, b))


@pytest.mark.parametrize("shapes", [((4, 1), (4,)), ((4,), (1,)), ((), (1,)), ((2, 3), (3, 2))])
def test_shapes_are_never_broadcast(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = np.ones(shapes[0]), np.ones(shapes[1])
    for function in (pair_sums, compare, describe):
        with pytest.raises(ValueError, match="shapes differ: "):
            function(a, b)


@pytest.mark.parametrize("where", [0, 5, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
@pytest.mark.parametrize(("x", "y"), itertools.product([INF, -INF, NAN, 1.0], repeat=2))
def test_every_combination_of_non_finite_values(x: float, y: float, where: int) -> None:
    a, b = random("float32", (2 * BLOCK + 9,), 6), random("float32", (2 * BLOCK + 9,), 7)
    a[where], b[where] = x, y
    a[100], b[100] = -INF, -INF  # an attention mask: never a difference
    got, same = pair_sums(a, b), x == y or (x != x and y != y)
    finite = math.isfinite(x) and math.isfinite(y)
    assert got.nonfinite == 1 + (not finite)
    assert got.count == a.size - got.nonfinite
    assert (got.mismatch, got.first_mismatch) == ((0, -1) if same or finite else (1, where))
    keep = np.ones(a.size, bool)
    keep[[where, 100]] = finite, False
    with np.errstate(invalid="ignore"):
        differences = np.where(keep, np.abs(a.astype(float) - b), -1)
    assert got.diff2 == pytest.approx(np.square(differences[keep]).sum(), rel=1e-12)
    metrics = describe(a, b)
    assert (metrics.nonfinite, metrics.nonfinite_mismatch) == (got.nonfinite, got.mismatch)
    if got.mismatch:
        assert metrics.worst_index == (where,)
        assert repr(metrics.worst_candidate) == repr(x) and repr(metrics.worst_reference) == repr(y)
    else:
        assert metrics.worst_index == (int(differences.argmax()),)


def test_the_first_of_several_mismatches_is_kept() -> None:
    a, b = np.zeros(3 * BLOCK), np.zeros(3 * BLOCK)
    a[[BLOCK + 4, 2 * BLOCK]] = NAN
    b[[BLOCK + 9]] = INF
    got = pair_sums(a, b)
    assert (got.mismatch, got.first_mismatch, got.nonfinite) == (3, BLOCK + 4, 3)


def test_nothing_finite_has_no_largest_difference() -> None:
    mask = np.full((2, 3), -INF, np.float32)
    got = pair_sums(mask, mask)
    assert (got.count, got.argmax, got.max_diff, got.mismatch) == (0, -1, 0.0, 0)
    metrics = describe(mask, mask)
    assert (metrics.worst_index, metrics.rel_l2, metrics.cosine) == (None, 0.0, 1.0)


def test_the_largest_difference_is_at_a_finite_element() -> None:
    a, b = np.array([-INF, NAN, 3.0, 3.0]), np.array([-INF, NAN, 3.0, 3.0])
    assert describe(a, b).worst_index == (2,)


def test_ties_go_to_the_first_also_across_blocks() -> None:
    a = np.zeros(2 * BLOCK + 5, np.float32)
    a[[17, 40, BLOCK + 3]] = 1, -1, 1
    assert pair_sums(a, np.zeros_like(a)).argmax == 17
    a[BLOCK + 3] = np.nextafter(np.float32(1), np.float32(2))
    assert pair_sums(a, np.zeros_like(a)).argmax == BLOCK + 3


def test_signed_zeros_are_equal() -> None:
    a, b = np.array([0.0, -0.0, 1.0]), np.array([-0.0, 0.0, 1.0])
    assert compare(a, b).l2 == compare(a, b).maximum == 0
    assert describe(a, b).max_abs == 0


def test_denormals_are_not_lost() -> None:
    tiny = np.float32(1e-45)
    a, b = np.full(9, tiny), np.full(9, 2 * tiny)
    assert describe(a, b).rel_l2 == 0.5
    assert describe(a, b).max_abs == float(tiny)
    assert compare(a, np.zeros_like(a)).l2 == pytest.approx(3 * float(tiny))


@pytest.mark.parametrize("size", [3e38, 1e200])
def test_squares_that_overflow_do_not(size: float) -> None:
    b = np.array([size, -size, size / 2], np.float32 if size < 1e39 else np.float64)
    b = b / 4
    a = b * b.dtype.type(1.25)
    d = compare(a, b)
    assert d.l2 == pytest.approx(0.25 * 1.5 * size / 4)
    assert d.truth_l2 == pytest.approx(1.5 * size / 4)
    assert (d.maximum, d.truth_max) == (pytest.approx(size / 16), pytest.approx(size / 4))
    metrics = describe(a, b)
    assert metrics.rel_l2 == pytest.approx(0.25)
    assert metrics.cosine == pytest.approx(1)
    assert metrics.max_abs == pytest.approx(size / 16)


def test_norms_beyond_float64_stay_finite_so_that_their_ratio_is_one() -> None:
    lowest = np.finfo(np.float64).min
    truth = np.full(100, lowest)
    masks = np.full(100, np.finfo(np.float32).min)
    ours, theirs = compare(masks, truth), compare(masks.copy(), truth)
    assert ours.l2 / theirs.l2 == ours.maximum / theirs.maximum == 1.0
    assert math.isfinite(ours.truth_l2)


def test_the_same_bits_every_time() -> None:
    a, b = random("float32", (3 * BLOCK + 1,), 8), random("float32", (3 * BLOCK + 1,), 9)
    shifted = np.empty(a.size + 1, np.float32)[1:]  # another alignment in memory
    shifted[:] = a
    assert pair_sums(a, b) == pair_sums(a, b) == pair_sums(shifted, b)


def test_inputs_are_left_alone() -> None:
    a, b = np.array([1.0, NAN, 2.0]), np.array([1.5, 0.0, INF])
    before = a.tobytes(), b.tobytes()
    describe(a, b)
    assert (a.tobytes(), b.tobytes()) == before


# -- what is reported ------------------------------------------------------------------------------


def test_candidate_first_reference_second() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    candidate = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
    m = describe(candidate, reference)
    assert m.rel_l2 == pytest.approx(2 / 5)
    assert m.max_abs == 2.0
    assert m.worst_index == (1, 1)
    assert (m.worst_reference, m.worst_candidate) == (0.0, 2.0)
    assert m.cosine == pytest.approx(25 / (5 * math.sqrt(29)))
    d = compare(candidate, reference)
    assert (d.size, d.l2, d.truth_l2, d.truth_max) == (4, 2.0, 5.0, 4.0)


@pytest.mark.parametrize(
    ("candidate", "reference", "rel_l2", "cosine"),
    [
        ([0.0, 0.0], [0.0, 0.0], 0.0, 1.0),
        ([3.0, 4.0], [0.0, 0.0], 5.0, 0.0),
        ([0.0, 0.0], [3.0, 4.0], 1.0, 0.0),
        ([-3.0, -4.0], [3.0, 4.0], 2.0, -1.0),
        ([-4.0, 3.0], [3.0, 4.0], math.sqrt(2), 0.0),
    ],
)
def test_zeros_and_directions(
    candidate: list[float], reference: list[float], rel_l2: float, cosine: float
) -> None:
    m = describe(np.array(candidate), np.array(reference))
    assert (m.rel_l2, m.cosine) == (pytest.approx(rel_l2), pytest.approx(cosine))


def test_empty_and_scalar() -> None:
    empty = describe(np.zeros((2, 0)), np.zeros((2, 0)))
    assert (empty.worst_index, empty.worst_reference, empty.rel_l2) == (None, None, 0.0)
    assert compare(np.zeros(0), np.zeros(0)).truth_l2 == 0.0
    scalar = describe(np.array(2.5), np.array(2.0))
    assert (scalar.worst_index, scalar.worst_candidate, scalar.max_abs) == ((), 2.5, 0.5)


@pytest.mark.parametrize("dtype", ["bool", "int32", "uint8"])
def test_integers_do_not_wrap(dtype: str) -> None:
    a, b = np.array([0, 1], dtype), np.array([1, 0], dtype)
    assert describe(a, b).max_abs == 1.0
    assert (describe(a, b).worst_candidate, describe(a, b).worst_reference) == (0.0, 1.0)


# -- many at once ----------------------------------------------------------------------------------


def test_two_at_a_time_are_what_each_is() -> None:
    rng = np.random.default_rng(3)
    pairs = [(rng.normal(size=n), rng.normal(size=n)) for n in (1, 7, 300, BLOCK + 5)]
    pairs.append((np.array([np.nan, 1.0]), np.array([np.nan, 2.0])))
    for two, (a, b) in zip(compare_two(pairs), pairs, strict=True):
        assert two.between == compare(a, b)
        assert two.metrics == describe(a, b)


def test_of_equal_arrays_the_cosine_is_one() -> None:
    x = np.random.default_rng(4).normal(size=1001) / 3.0
    assert describe(x, x.copy()).cosine == 1.0


def test_equal_numbers() -> None:
    x = np.array([1.0, np.nan, np.inf, -0.0])
    other = x.copy()
    other[0] = np.nextafter(1.0, 2.0)
    tiny = np.array([5e-324, 0.0])
    pairs = [
        (x, x.copy()),
        (x, np.array([1.0, np.nan, np.inf, 0.0])),
        (x, other),
        (x, np.array([1.0, np.nan, -np.inf, 0.0])),
        (tiny, np.zeros(2)),
        (np.array([1, 2]), np.array([1, 2])),
        (np.array([1, 2]), np.array([1, 3])),
        (np.array([1j]), np.array([2j])),
        (np.zeros((2, 3)), np.zeros((3, 2))),
    ]
    assert equal(pairs) == [True, True, False, False, False, True, False, False, False]


def test_root_mean_square_is_of_finite_elements() -> None:
    values = [[3.0, np.nan, -3.0, np.inf], [1e300, -1e300], [np.nan], []]
    found = root_mean_squares([np.array(value) for value in values])
    assert found == [3.0, pytest.approx(1e300), 0.0, 0.0]


def test_many_places_are_those_of_each_alone() -> None:
    rng = np.random.default_rng(0)
    shapes: list[tuple[int, ...]] = [(3, 4), (), (2, 3, 4), (0, 5), (12,), (4, 3)]
    pairs = [(rng.normal(size=shape), rng.normal(size=shape)) for shape in shapes * 3]
    pairs[7][0][...] = np.nan
    for two, (a, b) in zip(compare_two(pairs), pairs, strict=True):
        worst, off = two.metrics.worst_index, np.abs(a - b)
        if not a.size:
            assert worst is None and two.metrics.worst_candidate is None
        elif np.isnan(off).any():
            assert worst == (0,) * a.ndim
        else:
            assert worst == np.unravel_index(off.argmax(), a.shape)
            assert (two.metrics.worst_candidate, two.metrics.worst_reference) == (
                a[worst],
                b[worst],
            )
