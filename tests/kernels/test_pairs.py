"""The compiled pass against plain float64 NumPy: any shape, stride, dtype and non-finite value."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import crosscheck
from crosscheck.compare import tally
from crosscheck.errors import InvalidArgument
from crosscheck.kernels import blocked, pairs
from crosscheck.kernels.blocked import PairSums
from crosscheck.kernels.plan import BLOCK, CHUNK, plan, supported

INF, NAN = float("inf"), float("nan")
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
EXACT = ("count", "nonfinite", "mismatch", "first_mismatch", "max_diff", "argmax", "max_a", "max_b")


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("numba")
    monkeypatch.setenv("CROSSCHECK_KERNELS", "numba")
    yield


def definition(a: np.ndarray, b: np.ndarray, limit: float = INF) -> PairSums:
    """What the sums mean, in the flat order of the logical shape."""
    x, y = (np.array(v, np.float64, order="C").ravel() for v in (a, b))
    finite = np.isfinite(x) & np.isfinite(y)
    with np.errstate(invalid="ignore"):
        bad = np.flatnonzero(~finite & ~((np.isnan(x) & np.isnan(y)) | (x == y)))
    p, q = x[finite], y[finite]
    d = np.abs(p - q)
    return PairSums(
        count=d.size,
        diff2=math.fsum(d * d),
        a2=math.fsum(p * p),
        b2=math.fsum(q * q),
        ab=math.fsum(p * q),
        max_diff=float(d.max(initial=0.0)),
        argmax=int(np.flatnonzero(finite)[d.argmax()]) if d.size else -1,
        max_a=float(np.abs(p).max(initial=0.0)),
        max_b=float(np.abs(q).max(initial=0.0)),
        over=int(np.count_nonzero(d > limit)),
        nonfinite=x.size - d.size,
        mismatch=bad.size,
        first_mismatch=int(bad[0]) if bad.size else -1,
    )


def assert_same(got: PairSums, want: PairSums) -> None:
    for name in (*EXACT, "over"):
        assert getattr(got, name) == getattr(want, name), name
    for name in ("diff2", "a2", "b2"):
        assert getattr(got, name) == pytest.approx(getattr(want, name), rel=1e-12), name
    assert got.ab == pytest.approx(want.ab, rel=1e-12, abs=1e-12 * math.sqrt(want.a2 * want.b2))


def laid_out(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same values somewhere else in memory: axes in another order, with gaps, backwards."""
    order = rng.permutation(values.ndim)
    steps = rng.choice([1, 1, 1, 2, -1, -3], size=values.ndim)
    room = np.zeros(
        [values.shape[k] * abs(s) + 1 for k, s in zip(order, steps, strict=True)], values.dtype
    )
    places = [slice(1, None, s) if s > 0 else slice(-1, 0, s) for s in steps]
    view = room[tuple(places)][tuple(slice(values.shape[k]) for k in order)]
    view = view.transpose(np.argsort(order))
    view[...] = values
    return view


def drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    values = rng.normal(size=shape)
    if rng.random() < 0.4:
        values = np.round(values)  # many ties
    values = np.array(values)
    if rng.random() < 0.5:
        some = rng.random(shape) < rng.choice([0.001, 0.2])
        values[some] = rng.choice([INF, -INF, NAN, 65504.0, 6e-8], size=int(some.sum()))
    return values.astype(dtype)


@pytest.mark.parametrize("seed", range(60))
def test_any_shape_and_layout(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.choice([1, 2, 3, 7, 16, 33, 70], size=rng.integers(1, 5)))
    dtypes = rng.choice(len(DTYPES), size=2)
    a, b = (laid_out(drawn(rng, shape, DTYPES[k]), rng) for k in dtypes)
    if rng.random() < 0.3:
        b[...] = a.astype(b.dtype)
    limit = float(rng.choice([INF, 0.0, 1.0]))
    got = pairs.group_sums([(a, b)], [limit])[0][0]
    assert_same(got, definition(a, b, limit))
    assert_same(blocked.pair_sums(a, b, limit), definition(a, b, limit))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 70, 45, 33), (3, 3, 130, 130), (1, 2100, 40)])
def test_channels_last_against_first(shape: tuple[int, ...], dtype: type) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    a[0, 1, 5:9] = b[0, 1, 5:9] = INF
    last = np.ascontiguousarray(np.moveaxis(b, 1, -1))
    want = definition(a, b)
    assert_same(pairs.pair_sums(a, np.moveaxis(last, -1, 1)), want)
    assert_same(pairs.pair_sums(np.moveaxis(last, -1, 1), a), definition(b, a))


def test_broadcast_and_single_values() -> None:
    base = np.random.default_rng(2).normal(size=(5, 70, 41)).astype(np.float32)
    for a, b in [
        (np.broadcast_to(np.float32(0.5), base.shape), base),
        (base, np.broadcast_to(base[:, :1], base.shape)),
        (np.broadcast_to(base[:1, :, :1], base.shape), np.broadcast_to(base[:, :, :1], base.shape)),
        (np.array(2.5), np.array(2.0)),
        (base[:0], base[:0]),
    ]:
        assert_same(pairs.pair_sums(a, b), definition(a, b))


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17])
def test_sizes_around_blocks_and_chunks(size: int) -> None:
    rng = np.random.default_rng(size)
    a, b = rng.normal(size=size).astype(np.float32), rng.normal(size=size).astype(np.float32)
    b[-1] = NAN
    assert_same(pairs.pair_sums(a, b), definition(a, b))


def test_every_float16_and_bfloat16() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        values = bits.view(dtype)
        with np.errstate(invalid="ignore"):
            same = values.astype(np.float64)
        got = pairs.pair_sums(values, same)
        assert (got.mismatch, got.max_diff) == (0, 0.0)
        assert got.nonfinite == np.count_nonzero(~np.isfinite(same))
        assert_same(pairs.pair_sums(values[::-1], same), definition(values[::-1], same))


def test_three_at_once_are_three_pairs() -> None:
    rng = np.random.default_rng(3)
    shape = (4, 33, 17, 9)
    truth = rng.normal(size=shape)
    reference, value = truth.astype(np.float32), truth.astype(ml_dtypes.bfloat16)
    reference[0, 5], value[1, 1, 1, 1], truth[2] = -INF, NAN, 1e200
    value = np.ascontiguousarray(value.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    found = pairs.group_sums([(value, reference, truth), (value[1:2], reference[1:2], truth[1:2])])
    assert found[0][0].unit > 1.0  # squares overflow: taken by the other implementation
    wanted = (value, truth), (reference, truth), (value, reference)
    for got, (a, b) in zip(found[1], wanted, strict=True):
        assert_same(got, definition(a[1:2], b[1:2]))


def test_many_small_groups_in_one_call() -> None:
    rng = np.random.default_rng(4)
    shapes = [(int(n),) for n in rng.integers(0, 60, 40)] + [
        (),
        (3, 0),
        (2 * CHUNK + 5,),
        (7, 5, 3),
    ]
    groups = [
        tuple(drawn(rng, shape, DTYPES[rng.integers(4)]) for _ in range(2)) for shape in shapes
    ]
    groups.append((np.arange(9), np.arange(9)[::-1]))  # integers: NumPy's part
    limits = rng.random(len(groups)).tolist()
    for (got,), (a, b), limit in zip(pairs.group_sums(groups, limits), groups, limits, strict=True):
        assert_same(got, definition(a, b, limit))


def test_the_same_bits_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    a = rng.normal(size=(8, 70, 40, 41)).astype(np.float32)
    a[3, 3, 3] = NAN
    b = np.ascontiguousarray(np.round(a, 1).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    seen = set()
    monkeypatch.setattr(pairs, "ALONE", 0)
    for count in (1, 2, 3, 7):
        monkeypatch.setenv("CROSSCHECK_THREADS", str(count))
        sums, print_ = pairs.pair_sums(a, b), pairs.moments(a)
        assert print_ is not None
        seen.add((repr(sums), *(part.tobytes() for part in print_)))
    assert len(seen) == 1
    assert_same(sums, definition(a, b))


def test_calls_from_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "ALONE", 0)
    monkeypatch.setenv("CROSSCHECK_THREADS", "2")
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(2, 4 * CHUNK)).astype(np.float32)
    found: list[PairSums] = []
    callers = [
        threading.Thread(target=lambda: found.append(pairs.pair_sums(a, b))) for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 4 and len(set(map(repr, found))) == 1


def test_moments_are_those_of_the_values_in_any_order() -> None:
    rng = np.random.default_rng(7)
    for dtype in DTYPES:
        value = drawn(rng, (3, 40, 50), dtype)
        value[0, :3, 0] = NAN, INF, -INF
        found = pairs.moments(laid_out(value, rng))
        assert found is not None
        x = value.astype(np.float64)
        x = x[np.isfinite(x)]
        rms = math.sqrt(np.mean(x * x))
        want = x.sum(), x @ x, np.abs(x).sum(), value.size - x.size, np.abs(x).max()
        assert found[0] == pytest.approx(want, rel=1e-12, abs=1e-9)
        tails = x - rms, -x - rms, np.abs(x) - 2 * rms
        assert found[1] == pytest.approx([np.maximum(t, 0).sum() for t in tails], rel=1e-9)


def test_what_compiled_code_cannot_read_is_read_by_numpy() -> None:
    record = np.zeros(50, np.dtype([("x", "<f4"), ("tag", "u1")]))
    odd, swapped = record["x"], np.arange(50, dtype=">f4")
    assert not supported(odd) and not supported(swapped)
    odd[7] = 3.0
    for a in (odd, swapped):
        assert_same(pairs.pair_sums(a, np.ones(50)), definition(a, np.ones(50)))
    many = np.random.default_rng(8).normal(size=(2,) * 11).astype(np.float32)
    turned = many.transpose(rng_order := np.random.default_rng(9).permutation(11))
    assert rng_order.tolist() != sorted(rng_order.tolist())
    assert_same(pairs.pair_sums(many, turned), definition(many, turned))


def test_a_plan_covers_every_element_once() -> None:
    a = np.zeros((3, 70, 33))
    p = plan([(a, a.transpose(0, 1, 2)), (a.transpose(0, 2, 1), np.zeros((3, 33, 70)))])
    assert p.first.tolist() == [0, int(np.flatnonzero(p.chunks[:, 0] == 1)[0])]
    for job in (0, 1):
        own = p.chunks[p.chunks[:, 0] == job]
        assert own[0, 1] == 0 and (own[1:, 1] == own[:-1, 2]).all()


@pytest.mark.parametrize("size", [300, 3 * CHUNK])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tally_counts_what_is_over_and_measures_units_in_the_last_place(
    dtype: type, size: int
) -> None:
    rng = np.random.default_rng(10)
    reference = rng.uniform(0.1, 8, size).astype(dtype)
    wide = reference.astype(np.float64)
    unit = 2.0 ** np.floor(np.log2(wide)) * float(ml_dtypes.finfo(dtype).eps)
    candidate = (wide + 3 * unit * rng.choice([-1, 1], size)).astype(dtype)
    candidate[0] = NAN
    off = np.abs(candidate.astype(np.float64) - wide)[1:]
    found = tally(candidate, reference, float(np.median(off)))
    assert (found.size, found.over) == (size, np.count_nonzero(off > np.median(off)))
    assert 2.0 <= found.ulps[0] <= 4.0 and 3.0 <= found.ulps[-1] <= 4.0
    assert found == tally(candidate, reference, float(np.median(off)))
    mixed = tally(candidate.astype(np.float64), reference, INF)
    assert mixed.ulps == found.ulps and mixed.over == 0
    nothing = tally(np.full(size, NAN), wide, 0.0)
    assert nothing.over == 0 and all(map(math.isnan, nothing.ulps))


# -- which implementation --------------------------------------------------------------------------


def test_numpy_on_request_and_below_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("Numba was asked for")

    monkeypatch.setattr(pairs, "_load", refuse)
    small, large = np.ones(100, np.float32), np.ones(pairs.LARGE, np.float32)
    monkeypatch.setenv("CROSSCHECK_KERNELS", "auto")
    assert pairs.pair_sums(small, small).count == 100
    assert len(pairs.group_sums([(small, small)] * 50)) == 50
    with pytest.raises(AssertionError, match="asked for"):
        pairs.pair_sums(large, large)
    monkeypatch.setenv("CROSSCHECK_KERNELS", "numpy")
    assert pairs.pair_sums(large, large).count == large.size
    assert pairs.moments(large) is None
    monkeypatch.setenv("CROSSCHECK_KERNELS", "fast")
    with pytest.raises(InvalidArgument, match="CROSSCHECK_KERNELS=fast: must be auto, numpy or"):
        pairs.pair_sums(small, small)


def test_without_numba_everything_is_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    pairs._load.cache_clear()
    a = np.arange(9.0)
    assert_same(pairs.pair_sums(a, a[::-1]), definition(a, a[::-1]))
    pairs._load.cache_clear()


def test_small_arrays_and_the_command_line_do_not_load_numba() -> None:
    code = (
        "import sys, numpy as np, crosscheck.cli\n"
        "from crosscheck.compare import compare, describe\n"
        "a = np.ones((64, 64), np.float32)\n"
        "compare(a, a), describe(a, a)\n"
        "assert 'numba' not in sys.modules\n"
    )
    root = str(Path(crosscheck.__file__).parent.parent)
    env = {"PYTHONPATH": root, "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
