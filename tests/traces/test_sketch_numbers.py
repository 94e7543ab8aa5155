"""What the numbers of a sketch promise: the bounds of docs/traces.md, measured."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest

from crosscheck.aligning.layout import SAME
from crosscheck.comparisons import Item
from crosscheck.sketches.judge import difference, judged
from crosscheck.sketches.make import Record
from crosscheck.sketches.probability import misplaced, missed, spread, tail, tail_of_any
from crosscheck.sketches.project import Plan, measure

SIZE, SEEDS = 3000, 300


def estimates(d: np.ndarray, rows: int, seeds: int = SEEDS) -> np.ndarray:
    """‖Sd‖² / ‖d‖² for many seeds."""
    true = float(d @ d)
    found = [measure(d, Plan(seed, rows, 4, wide=True)).projected for seed in range(seeds)]
    return np.array([float(s @ s) / true for s in found])


@pytest.mark.parametrize("rows", [16, 64])
def test_the_estimate_is_unbiased_and_as_wide_as_derived(rows: int) -> None:
    d = np.random.default_rng(0).normal(size=SIZE)
    found = estimates(d, rows)
    derived = math.sqrt(2 / rows)
    assert abs(found.mean() - 1) < 4 * derived / math.sqrt(SEEDS)
    assert 0.8 * derived < found.std() < 1.2 * derived


def test_misses_are_no_more_frequent_than_the_bound() -> None:
    d = np.random.default_rng(1).normal(size=SIZE)
    rows, seeds = 16, 1500
    found = estimates(d, rows, seeds)
    for share in (0.5, 0.35, 0.25):
        bound = missed(rows, share)
        allowed = bound + 4 * math.sqrt(bound / seeds)
        assert np.mean(found <= share) <= allowed
    assert np.mean(found <= 0.5) > 0  # else nothing was measured
    assert missed(16, 1 / 16) < 1e-6


def test_one_wrong_element_is_always_seen_in_full() -> None:
    for place in (0, 7, SIZE - 1):
        d = np.zeros(SIZE)
        d[place] = 3.0
        np.testing.assert_allclose(estimates(d, 16, 50), 1.0)


def test_two_opposite_elements_hardly_ever_cancel() -> None:
    d = np.zeros(SIZE)
    d[5], d[500] = 1.0, -1.0
    found = estimates(d, 16, 1000)
    assert found.min() >= 0.25 and abs(found.mean() - 1) < 0.1


def test_the_map_is_linear_and_does_not_depend_on_memory() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 40, 50))
    plan = Plan(0, 32, 8, wide=True)
    both = measure(a + b, plan)
    np.testing.assert_allclose(
        both.projected, measure(a, plan).projected + measure(b, plan).projected, atol=1e-10
    )
    turned = np.asfortranarray(a)
    np.testing.assert_array_equal(measure(turned, plan).projected, measure(a, plan).projected)
    assert np.abs(measure(a.T, plan).projected - measure(a, plan).projected).max() > 0.1


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    value = np.random.default_rng(3).normal(size=5000)
    plan = Plan(0, 32, 8, wide=True)
    whole = measure(value, plan)
    monkeypatch.setattr("crosscheck.sketches.project.BLOCK", 700)
    np.testing.assert_allclose(measure(value, plan).projected, whole.projected, atol=1e-10)


def test_the_compiled_projection_is_the_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    value = np.random.default_rng(11).normal(size=70_000).astype(np.float32)
    plan = Plan(0, 36, 8, wide=True)
    plain = measure(value, plan)
    monkeypatch.setattr("crosscheck.sketches.project.COMPILED", 1)
    compiled = measure(value, plan)
    np.testing.assert_allclose(compiled.projected, plain.projected, atol=1e-10)
    np.testing.assert_array_equal(compiled.facts, plain.facts)


def test_a_small_array_is_kept_whole() -> None:
    value = np.arange(12.0).reshape(3, 4)
    found = measure(value, Plan(0, 16, 4))
    np.testing.assert_array_equal(found.projected, np.arange(12.0))
    assert found.sampled.size == 0 and found.mean == 5.5 and found.maximum == 11.0
    assert measure(np.zeros((0, 3)), Plan(0, 16, 4)).l2 == 0.0


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    value = np.random.default_rng(4).normal(size=200).astype(np.float32)
    plan = Plan(0, 16, 4)
    clean = measure(np.where(np.arange(200) < 4, np.float32(0), value), plan)
    value[:4] = np.nan, np.inf, np.inf, -np.inf
    found = measure(value, plan)
    assert found.counts.tolist() == [1, 2, 1, 0]
    np.testing.assert_array_equal(found.projected, clean.projected)


def test_what_stands_for_minus_infinity_hides_nothing() -> None:
    value = np.random.default_rng(5).normal(size=200).astype(np.float32)
    plan = Plan(0, 16, 4)
    for huge in (-1e9, float(np.finfo(np.float32).min)):
        masked = value.copy()
        masked[::3] = huge
        found = measure(masked, plan)
        assert found.counts[3] == 67 and found.maximum < 10
        masked[1] += np.float32(1e-3)
        assert np.linalg.norm(measure(masked, plan).projected - found.projected) > 9e-4
    every = measure(np.full(200, 1e9, np.float32), plan)
    assert every.counts[3] == 0 and every.l2 == pytest.approx(1e9 * math.sqrt(200))


def test_narrow_dtypes_are_read() -> None:
    import ml_dtypes

    value = np.random.default_rng(6).normal(size=300).astype(ml_dtypes.bfloat16)
    wide = value.astype(np.float32)
    plan = Plan(0, 16, 4)
    np.testing.assert_array_equal(measure(value, plan).projected, measure(wide, plan).projected)


def judged_ratios(d: np.ndarray, rows: int, seeds: int) -> np.ndarray:
    """The judged ratio of a difference d that stands at one floor, for many seeds."""
    found = []
    floor = float(np.linalg.norm(d))
    item = Item("forward", "activation", "a", "a", SAME, "name")
    for seed in range(seeds):
        plan = Plan(seed, rows, 4, wide=True)
        # Norm, mean and largest element are equal: the projections alone have to tell.
        nothing = measure(np.zeros(d.shape), plan)
        blind = dataclasses.replace(measure(d, plan), facts=nothing.facts, sampled=nothing.sampled)
        record = Record(d.shape, "float32", nothing, (floor, math.inf))
        reading = difference(blind, record, plan)
        found.append(judged(item, reading, record, d.shape, np.dtype("float32")).ratio)
    return np.array(found)


@functools.cache
def spread_out(rows: int) -> np.ndarray:
    """The ratio over the true one of a difference in all elements; it grows with the difference."""
    return judged_ratios(np.random.default_rng(7).normal(size=400), rows, 800)


def no_more_often(hits: np.ndarray, bound: float) -> bool:
    """Whether a frequency is compatible with a probability of at most ``bound``.

    Four standard deviations of the binomial, and one case more: a test of a true bound fails with
    a probability below 1e-4, and never with fixed seeds once it has passed.
    """
    n = len(hits)
    return hits.sum() <= n * bound + 4 * math.sqrt(n * bound * (1 - bound)) + 1


@pytest.mark.parametrize(("rows", "floors"), [(16, 12), (16, 16), (32, 12), (16, 32)])
def test_the_stated_probability_of_a_miss_holds(rows: int, floors: float) -> None:
    passed = floors * spread_out(rows) <= 8
    assert no_more_often(passed, tail(rows, (8 / floors) ** 2))
    assert (rows, floors) != (16, 12) or passed.any()  # else the bound was not put to the test


def test_the_stated_probability_of_a_false_alarm_holds() -> None:
    for floors in (4.0, 6.5, 7.0):
        alarms = floors * spread_out(16) > 8
        assert no_more_often(alarms, tail(16, (8 / floors) ** 2))
    assert alarms.any()


def test_the_bounds_for_any_difference_hold_for_few_elements() -> None:
    d = np.zeros(400)
    d[[5, 90, 91, 300]] = 1.0, -1.0, 2.0, 0.5
    found = judged_ratios(d, 16, 600) ** 2
    assert found.std() > 0.1
    assert no_more_often(found <= 0.4, tail_of_any(16, 0.4))
    assert no_more_often(found >= 1.6, tail_of_any(16, 1.6))


@pytest.mark.parametrize("rows", [16, 32])
def test_the_stated_accuracy_of_the_estimate_holds(rows: int) -> None:
    """Within k standard deviations in at least 1 - 1/k² of all cases (Chebyshev)."""
    off = np.abs(spread_out(rows) ** 2 - 1)
    for k in (1.5, 2.0, 3.0):
        assert no_more_often(off > k * spread(rows), 1 / k**2)


def test_a_departure_is_found_first_with_the_stated_probability() -> None:
    """Twenty values: honest ones at three floors, from the tenth on wrong by 32."""
    rows, values, trials = 16, 20, 30
    rng = np.random.default_rng(10)
    first = []
    for trial in range(trials):
        d = rng.normal(size=(values, 300))
        plan = Plan(trial, rows, 4, wide=True)
        for i in range(values):
            estimate = float(np.linalg.norm(measure(d[i], plan).projected / np.linalg.norm(d[i])))
            if estimate * (3 if i < 10 else 32) > 8:
                first.append(i)
                break
    wrong = np.array([i != 10 for i in first])
    assert len(first) == trials and no_more_often(wrong, misplaced(rows, values))
