"""Stage 3, what is drawn: the same bits everywhere, and the distribution that is promised."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from crosscheck import inputs
from crosscheck.inputs import Spec, _stream, cotangent, draw, normal, parse_spec

GOLDEN = {
    "float32[3,5]": "f5e4c70cf502ac66",
    "float16[3,5]": "5579a8ce031750fd",
    "bfloat16[3,5]": "21ed4644df490d01",
    "float64[3,5]": "7cb83ff0063d7054",
    "float32[]": "4e87051562acf56d",
    "float32[7] -1..1": "f39e4db2c03bfeef",
    "bfloat16[7] -1..1": "f492ed11a19b528d",
    "int8[3,5] -128..128": "072a6829e9cdff38",
    "int64[3,5] 4..200": "e512ef78ceeca050",
    "int64[3] -9223372036854775808..9223372036854775808": "cf88ce6af938c812",
    "uint64[3] 0..18446744073709551616": "18f3606fda2194df",
    "uint8[3,5] 0..256": "80bebbc1523590c4",
    "bool[3,5]": "a918fe2ece21a07c",
}


def drawn(text: str, *, seed: int = 3, name: str = "x") -> np.ndarray:
    return draw(parse_spec(text), seed=seed, name=name)


def bits(array: np.ndarray) -> str:
    """A hash of dtype, shape and little-endian bits."""
    wide = f"<u{array.dtype.itemsize}"
    raw = array.reshape(-1).view(wide.replace("<", "=")).astype(wide)
    head = f"{array.dtype.name}{list(array.shape)}".encode()
    return hashlib.sha256(head + raw.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("text", GOLDEN)
def test_bits_never_change(text: str) -> None:
    assert bits(drawn(text)) == GOLDEN[text]


def test_cotangent_bits_never_change() -> None:
    value = np.zeros((3, 5), np.float32)
    assert bits(cotangent("output", value, seed=3)) == "4e9887e229f413a7"
    assert bits(cotangent("output", value.astype(np.float16), seed=3)) == "293237a03b2746d9"


# -- the generator, written down a second time -----------------------------------------------------


def philox(key: int, count: int) -> list[int]:
    """Philox-4x64-10 from the paper (Salmon et al. 2011), in Python integers; counter from 1."""
    low, words = 2**64 - 1, []
    for block in range(1, math.ceil(count / 4) + 1):
        c = [block, 0, 0, 0]
        k = [key & low, key >> 64]
        for _ in range(10):
            p, q = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
            c = [(q >> 64) ^ c[1] ^ k[0], q & low, (p >> 64) ^ c[3] ^ k[1], p & low]
            k = [(k[0] + 0x9E3779B97F4A7C15) & low, (k[1] + 0xBB67AE8584CAA73B) & low]
        words += c
    return words[:count]


def expected_words(seed: int, name: str, count: int) -> list[int]:
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return philox(int.from_bytes(digest[:16], "little"), count)


def test_normals_are_sums_of_twelve_philox_pieces() -> None:
    words = expected_words(7, "a", 3 * 5)
    pieces = [(word >> shift) & 0xFFFF for word in words for shift in (0, 16, 32, 48)]
    sums = [sum(pieces[i : i + 12]) for i in range(0, len(pieces), 12)]
    assert normal(7, "a", (5,)).tolist() == [(2 * s - 12 * 65535) / 131072 for s in sums]


def test_uniforms_integers_and_booleans_come_from_the_words() -> None:
    words = expected_words(7, "a", 6)
    assert drawn("float64[6] 0..1", seed=7, name="a").tolist() == [
        w // 2**11 / 2**53 for w in words
    ]
    assert drawn("int32[6] -5..8", seed=7, name="a").tolist() == [w % 13 - 5 for w in words]
    assert drawn("bool[6]", seed=7, name="a").tolist() == [w >= 2**63 for w in words]


# -- independence ----------------------------------------------------------------------------------


def test_a_value_depends_on_its_position_alone() -> None:
    assert np.array_equal(normal(0, "x", (20,))[:7], normal(0, "x", (7,)))
    assert np.array_equal(normal(0, "x", (4, 5)).ravel(), normal(0, "x", (20,)))
    assert np.array_equal(drawn("int64[20] 0..99")[:7], drawn("int64[7] 0..99"))


@pytest.mark.parametrize("other", [{"seed": 4}, {"seed": -3}, {"name": "y"}, {"name": "x "}])
def test_streams_of_other_seeds_and_names_are_uncorrelated(other: dict[str, Any]) -> None:
    one, two = drawn("float64[40000]"), drawn("float64[40000]", **other)
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / math.sqrt(one.size)
    assert not np.intersect1d(one[:50], two[:50]).size > 2


def test_seed_and_name_are_not_simply_put_together() -> None:
    assert not np.array_equal(normal(1, "23", (9,)), normal(12, "3", (9,)))
    assert not np.array_equal(normal(0, "output", (9,)), cotangent("output", np.zeros(9), seed=0))


# -- distributions ---------------------------------------------------------------------------------


def test_moments_of_the_normal() -> None:
    x = normal(0, "moments", (500, 1000))
    n = x.size
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((x**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((x**4).mean() - 2.9) < 4 * math.sqrt(96 / n)  # Irwin-Hall: 3 − 6/(5·12)
    assert 4 < np.abs(x).max() <= 6
    assert abs(np.corrcoef(x.ravel()[1:], x.ravel()[:-1])[0, 1]) < 4 / math.sqrt(n)
    inside = (np.abs(x) < 1).mean()
    assert inside == pytest.approx(0.6827, abs=0.01)


def test_normals_are_exact_in_float32() -> None:
    x = normal(0, "exact", (10000,))
    assert np.array_equal(x.astype(np.float32).astype(np.float64), x)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.3, 0.7), (-5.0, -4.9)])
def test_float_ranges_are_half_open_after_rounding(dtype: str, low: float, high: float) -> None:
    x = drawn(f"{dtype}[20000] {low}..{high}").astype(np.float64)
    assert low <= x.min() and x.max() < high
    step = (high - low) / 100 + 2.0**-8 * abs(high)  # reaches both ends, up to rounding
    assert x.min() < low + step and x.max() > high - step
    assert x.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low) + 1e-3 * abs(high))


def test_rounding_up_to_the_end_is_moved_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    top = np.full(4, 2**64 - 1, "<u8")
    monkeypatch.setattr("crosscheck.inputs._words", lambda stream, count: top[:count])
    assert drawn("float32[4] 0..1").tolist() == [1 - 2.0**-24] * 4
    assert drawn("float64[4] 1..2").tolist() == [2 - 2.0**-52] * 4
    assert drawn("bfloat16[1] 0.5..1").astype(float).tolist() == [1 - 2.0**-8]


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_signed_integers_reach_both_ends_and_no_further(dtype: str) -> None:
    info = np.iinfo(dtype)
    for low, high in ((info.min, info.min + 3), (info.max - 2, info.max + 1), (-2, 2)):
        x = drawn(f"{dtype}[300] {low}..{high}")
        assert x.dtype == dtype
        assert sorted({int(i) for i in x}) == list(range(low, high))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_unsigned_integers_reach_both_ends_and_no_further(dtype: str) -> None:
    top = np.iinfo(dtype).max
    for low, high in ((0, 3), (top - 2, top + 1)):
        x = drawn(f"{dtype}[300] {low}..{high}")
        assert x.dtype == dtype
        assert sorted({int(i) for i in x}) == list(range(low, high))


def test_a_full_range_of_64_bits_is_the_words_themselves() -> None:
    words = expected_words(3, "x", 5)
    assert drawn("uint64[5] 0..18446744073709551616").tolist() == words
    signed = drawn("int64[5] -9223372036854775808..9223372036854775808")
    assert signed.tolist() == [w - 2**63 for w in words]


def test_integers_are_uniform() -> None:
    counts = np.bincount(drawn("int32[70000] 0..7"))
    assert ((counts - 10000) ** 2 / 10000).sum() < 24  # χ² with 6 degrees of freedom, p ≈ 5e-4


def test_booleans_are_fair() -> None:
    assert abs(drawn("bool[40000]").mean() - 0.5) < 4 * 0.5 / 200


@pytest.mark.parametrize("text", [t for t in GOLDEN if "[3,5]" in t])
@pytest.mark.parametrize("shape", ["", "0", "2,0,3", "1"])
def test_scalar_and_empty_shapes(text: str, shape: str) -> None:
    x = drawn(text.replace("[3,5]", f"[{shape}]"))
    assert isinstance(x, np.ndarray)
    assert x.shape == tuple(int(n) for n in shape.split(",") if n)
    assert x.dtype == (ml_dtypes.bfloat16 if "bfloat16" in text else text.partition("[")[0])


def test_a_spec_made_by_hand_is_drawn_like_its_text() -> None:
    spec = Spec("int64", (2, 3), 4, 200)
    assert parse_spec("int64[2,3] 4..200") == spec
    assert np.array_equal(draw(spec, seed=3, name="x"), drawn("int64[2,3] 4..200"))


def test_a_cotangent_has_its_outputs_shape_and_dtype() -> None:
    value = np.zeros((2, 3), ml_dtypes.bfloat16)
    one = cotangent("output", value, seed=0)
    assert (one.shape, one.dtype) == ((2, 3), value.dtype)
    assert np.array_equal(one, cotangent("output", value + 1, seed=0))
    assert not np.array_equal(one, cotangent("output:1", value, seed=0))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 5, 8191, 8192, 8193, 20000, 99000])
def test_normals_are_those_of_the_raw_words(
    count: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However they are made, block by block or at once, by one thread or several."""
    monkeypatch.setattr(inputs, "_ALONE", 0)
    monkeypatch.setenv("CROSSCHECK_THREADS", str(threads))
    words = _stream(3, "x").random_raw(3 * count)
    pieces = np.asarray(words, "<u8").view("<u2").reshape(count, 12).astype(np.int64)
    expected = (2 * pieces.sum(axis=1) - 12 * 65535) / 131072.0
    np.testing.assert_array_equal(normal(3, "x", (count,)), expected)
    narrow = normal(3, "x", (count,), np.float32)
    assert narrow.dtype == np.float32
    np.testing.assert_array_equal(narrow.astype(np.float64), expected)
