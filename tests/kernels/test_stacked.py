"""Many small groups at once: the very bits of a call each."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from crosscheck.aligning.layout import relative_error, relative_errors
from crosscheck.compare import compare, compare_each, compare_three, describe
from crosscheck.kernels import blocked, pairs, stacked

SHAPES = [(4, 8, 32), (3, 5), (7,), (), (2, 0), (1, 1), (90, 100)]
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


@pytest.fixture(autouse=True)
def numpy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSCHECK_KERNELS", "numpy")


def groups(sides: int) -> list[tuple[np.ndarray, ...]]:
    """Of several shapes, dtypes and strides; some hold NaN, Inf or what overflows when squared."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(140):
        shape = SHAPES[i % len(SHAPES)]
        arrays = [
            np.array(rng.standard_normal(shape)).astype(DTYPES[(i + k) % 4]) for k in range(sides)
        ]
        if i % 11 == 0 and arrays[0].size:
            arrays[0].flat[-1] = (math.nan, math.inf)[i % 2]
            arrays[1].flat[-1] = (math.nan, -math.inf)[i % 2]
        if i % 13 == 0:
            arrays[0] = np.asarray(arrays[0].astype(np.float64) * 1e300)
        if i % 5 == 0 and len(shape) > 1:
            arrays[1] = np.ascontiguousarray(arrays[1].T).T
        made.append(tuple(arrays))
    return made


@pytest.mark.parametrize("sides", [2, 3])
@pytest.mark.parametrize("limit", [math.inf, 0.5])
def test_together_they_are_what_they_are_alone(sides: int, limit: float) -> None:
    many = groups(sides)
    chosen = [(0, 1)] if sides == 2 else [(0, 2), (1, 2), (0, 1)]
    found = pairs.group_sums(many, [limit] * len(many))
    for arrays, sums in zip(many, found, strict=True):
        alone = [blocked.pair_sums(arrays[i], arrays[j], limit) for i, j in chosen]
        assert repr(list(sums)) == repr(alone)


def test_relative_errors_are_those_of_one_pair_each() -> None:
    many = groups(2)
    assert repr(relative_errors(iter(many))) == repr([relative_error(*pair) for pair in many])
    assert repr(compare_each(many)) == repr([compare(*pair) for pair in many])
    with pytest.raises(ValueError, match="shapes differ"):
        relative_errors([(np.ones(1), np.ones(3))])


def test_a_reference_that_is_its_own_truth_is_compared_once() -> None:
    for value, reference in groups(2):
        (found,) = compare_three([(value, reference, reference)])
        (apart,) = compare_three([(value, reference, reference.copy())])
        assert repr(found) == repr(apart)
        assert repr(found.metrics) == repr(describe(value, reference))


def test_thousands_are_a_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def matrix(arrays: list[np.ndarray]) -> np.ndarray:
        nonlocal calls
        calls += 1
        return original(arrays)

    original = stacked.matrix
    monkeypatch.setattr(stacked, "matrix", matrix)
    value = np.ones((4, 64), np.float32)
    assert len(pairs.group_sums([(value, value)] * 4096)) == 4096
    assert calls == 2 * 4096 * value.size // stacked.AT_ONCE
