"""Stage 7 at work: what becomes of one comparison."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from crosscheck.aligning.layout import Layout
from crosscheck.compare import compare
from crosscheck.comparisons import (
    Item,
)
from crosscheck.judging.judge import (
    NO_ORACLE,
    Judge,
    Perturbation,
    exact,
    in_reference_layout,
    shrinks,
    without_fill,
)
from crosscheck.judging.noise import Tolerance
from crosscheck.judging.reductions import Reductions
from crosscheck.judging.weights import judge_weights
from crosscheck.weights import Transform
from tests.stages.graphs import trace

NAN, INF = math.nan, math.inf
RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=(5, 8))
REFERENCE = TRUTH.astype(np.float32)


ITEM = Item("forward", "activation", "fc", "fc", Layout(), "value")


def judge_for(
    reference: np.ndarray = REFERENCE, oracle: np.ndarray | None = TRUTH, **options: Any
) -> Judge:
    ours = trace(reference)
    fields = {"free_oracle": None, "free_candidate": trace(None)} | options
    return Judge(
        reference=ours,
        oracle=None if oracle is None else trace(oracle),
        reductions=Reductions((), ours, frozenset({"fc"})),
        **fields,
    )


def verdict(candidate: np.ndarray, item: Item = ITEM, **options: Any) -> str:
    return judge_for(**options).judge(item, trace(candidate)).verdict


# -- one comparison --------------------------------------------------------------------------------


def test_against_the_oracle_and_not_against_the_reference() -> None:
    sloppy = (TRUTH * (1 + 1e-4)).astype(np.float32)
    assert verdict(REFERENCE, reference=sloppy) == "agree"  # the candidate is the better one
    assert verdict(sloppy) == "diverge"
    assert verdict((TRUTH * (1 + 1e-6)).astype(np.float32)) == "suspect"


def test_the_record() -> None:
    candidate = REFERENCE.copy()
    candidate[3, 2] += 1
    result = judge_for().judge(ITEM, trace(candidate))
    assert result.verdict == "diverge" and result.ratio > 1e5
    assert result.metrics is not None and result.metrics.worst_index == (3, 2)
    assert (result.shape, result.dtype, result.candidate_dtype) == ((5, 8), "float32", "float32")
    assert (result.aligned_by, result.notes, result.free_ratio) == ("value", (), None)


def test_a_value_that_no_layout_maps_diverges_with_both_shapes() -> None:
    result = judge_for().judge(replace(ITEM, layout=None), trace(REFERENCE.T))
    assert (result.verdict, result.ratio, result.metrics) == ("diverge", INF, None)
    assert (result.shape, result.candidate_shape) == ((5, 8), (8, 5))
    assert judge_for().judge(ITEM, trace(REFERENCE[:, :1])).ratio == INF  # never broadcast


def test_a_value_that_never_arrived_is_zero() -> None:
    result = judge_for().judge(ITEM, trace(None))
    assert result.verdict == "diverge"
    assert result.metrics is not None and result.metrics.rel_l2 == 1.0
    nothing = np.zeros_like(REFERENCE)
    assert judge_for(nothing, nothing.astype(float)).judge(ITEM, trace(None)).verdict == "agree"


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_non_finite_values_must_be_where_the_reference_has_them(bad: float) -> None:
    ours, truth = REFERENCE.copy(), TRUTH.copy()
    ours[1, 1] = truth[1, 1] = bad
    assert verdict(ours.copy(), reference=ours, oracle=truth) == "agree"
    assert verdict(REFERENCE, reference=ours, oracle=truth) == "diverge"
    assert verdict(ours) == "diverge"
    other = ours.copy()
    other[1, 1] = INF if bad != INF else NAN
    assert verdict(other, reference=ours, oracle=truth) == "diverge"


def test_what_overflows_on_both_sides_and_not_in_float64_agrees() -> None:
    ours, truth = REFERENCE.copy(), TRUTH.copy()
    ours[0], truth[0] = -INF, 2 * float(np.finfo(np.float32).min)  # two masks, added up
    assert verdict(ours.copy(), reference=ours, oracle=truth) == "agree"
    worse = ours.copy()
    worse[2, 2] += 1e-2
    assert verdict(worse, reference=ours, oracle=truth) == "diverge"
    missing = ours.copy()
    missing[0, 3] = 0
    assert verdict(missing, reference=ours, oracle=truth) == "diverge"


def test_a_mask_of_the_lowest_number_of_each_precision_agrees() -> None:
    ours, truth = REFERENCE.copy(), TRUTH.copy()
    ours[:, :4], truth[:, :4] = np.finfo(np.float32).min, np.finfo(np.float64).min
    assert verdict(ours.copy(), reference=ours, oracle=truth) == "agree"


def test_the_wider_rounding_side_sets_the_floor() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        narrow = TRUTH.astype(dtype)
        assert verdict(narrow) == "agree"
        assert verdict(narrow.astype(np.float32)) == "diverge"  # float32 that holds less
        assert verdict((TRUTH * 1.5).astype(dtype)) == "diverge"


def test_without_an_oracle_the_reference_is_the_truth_and_the_record_says_so() -> None:
    judge = judge_for(oracle=None)
    assert judge.judge(ITEM, trace(REFERENCE.copy())).notes == (NO_ORACLE,)
    off = (REFERENCE * np.float32(1.0001)).astype(np.float32)
    assert judge.judge(ITEM, trace(off)).verdict == "diverge"


def test_a_measured_perturbation_raises_the_floor() -> None:
    off = (TRUTH * (1 + 1e-5)).astype(np.float32)
    norm = float(np.linalg.norm(TRUTH))
    assert verdict(off) == "diverge"
    wide = {ITEM: Perturbation(1e-5 * norm, 1e-5 * float(np.abs(TRUTH).max()))}
    assert verdict(off, perturbations=wide) == "agree"
    elsewhere = {replace(ITEM, reference="other"): wide[ITEM]}
    assert verdict(off, perturbations=elsewhere) == "diverge"


def test_a_tolerance_replaces_the_floor() -> None:
    off = (REFERENCE * np.float32(1.0009)).astype(np.float32)
    assert verdict(off, tolerance=Tolerance(1e-3, 0.0)) == "agree"
    assert verdict(off, tolerance=Tolerance(8e-4, 0.0)) == "diverge"
    sloppy = (TRUTH * 1.01).astype(np.float32)
    assert verdict(sloppy, tolerance=Tolerance(1e-6, 0.0), reference=sloppy) == "agree"


def test_a_tolerance_is_not_for_weights() -> None:
    item = replace(ITEM, phase="weights")
    off = (REFERENCE * np.float32(1.0009)).astype(np.float32)
    judge = judge_for(tolerance=Tolerance(1e-3, 0.0))
    assert judge.judge(ITEM, trace(off)).verdict == "agree"
    assert judge.judge(item, trace(off)).verdict == "diverge"


def test_the_free_ratio_is_of_the_free_runs() -> None:
    free = (TRUTH * (1 + 1e-3)).astype(np.float32)
    judge = judge_for(free_oracle=trace(TRUTH), free_candidate=trace(free))
    result = judge.judge(ITEM, trace(REFERENCE.copy()))
    assert result.verdict == "agree"
    assert result.free_ratio is not None and result.free_ratio > 1000
    other = replace(ITEM, layout=None)
    never = replace(ITEM, reference="fc", candidate="never ran")
    expected = {ITEM: result.free_ratio, other: INF, never: None}
    assert judge.free_ratios([ITEM, other, never]) == expected


@pytest.mark.parametrize(
    ("value", "reference", "agrees"),
    [
        ([1, 2], [1, 2], True),
        ([1, 3], [1, 2], False),
        ([True, False], [True, False], True),
        ([1, 0], [True, False], False),
        ([1.0, 2.0], [1, 2], False),
        ([], [], False),
    ],
)
def test_integers_and_booleans_are_equal_or_not(value: Any, reference: Any, agrees: bool) -> None:
    got = exact(np.array(value), np.array(reference, np.int32 if reference == [] else None))
    assert (got.verdict, got.ratio) == (("agree", 0.0) if agrees else ("diverge", INF))


def test_integer_widths_do_not_matter_and_large_ones_are_exact() -> None:
    assert exact(np.int32([1, 2]), np.uint8([1, 2])).verdict == "agree"
    big = np.int64([2**53])
    assert exact(big + 1, big).verdict == "diverge"


def test_weights_are_equal_up_to_the_cast() -> None:
    item = Item("weights", "parameter", "w", "w", Transform((1, 0)), "parameter")
    rounded = REFERENCE.T.astype(ml_dtypes.bfloat16).astype(np.float32)
    one = REFERENCE.T.copy()
    one[0, 0] *= np.float32(1.001)
    held = [REFERENCE.T.copy(), REFERENCE.T.astype(np.float16), rounded, one, REFERENCE]
    found = judge_weights([(item, REFERENCE, value) for value in held])
    assert [one.verdict for one in found] == ["agree", "agree", "diverge", "diverge", "diverge"]
    assert found[1].candidate_dtype == "float16" and found[4].ratio == INF


@pytest.mark.parametrize(
    ("narrow", "wide", "answer"),
    [(1e-4, 1e-13, True), (1e-4, 1e-8, True), (1e-4, 9e-5, False), (1e-4, 1e-5, None)],
)
def test_precision_scaling(narrow: float, wide: float, answer: bool | None) -> None:
    errors = [compare(TRUTH * (1 + e), TRUTH) for e in (wide, narrow)]
    assert shrinks(*errors) is answer


def test_one_element_that_stays_is_not_rounding() -> None:
    off = np.ones(10_000)
    off[17] += 1e-4
    noisy = off * (1 + 1e-7 * RNG.normal(size=off.size))
    assert shrinks(compare(off, np.ones(10_000)), compare(noisy, np.ones(10_000))) is False


def test_a_transform_without_inverse_gives_no_value() -> None:
    item = replace(ITEM, layout=Transform(function=lambda w: w * 2))
    assert in_reference_layout(item, REFERENCE, REFERENCE) is None


@pytest.mark.parametrize("fill", [-1e9, -3.4e38, 1e4])
def test_what_stands_for_minus_infinity_does_not_count(fill: float) -> None:
    truth = RNG.normal(size=(4, 6)).astype(np.float32)
    truth[RNG.random(truth.shape) < 0.4] = fill
    wrong = truth * np.where(truth == np.float32(fill), 1.0, 1.01).astype(np.float32)
    kept = without_fill(wrong, truth, truth)
    assert [k.size for k in kept] == [int((truth != np.float32(fill)).sum())] * 3
    assert relative_l2(*kept[::2]) == pytest.approx(0.01, rel=1e-4)


def test_a_mask_that_differs_stays_and_so_does_what_is_small() -> None:
    truth = np.array([1.0, -2.0, -1e9, -1e9], np.float32)
    moved = np.array([1.0, -2.0, -1e9, -1.1e9], np.float32)
    assert without_fill(moved, truth, truth)[0] is moved  # one mask is another number
    small = np.array([1.0, 2e-5], np.float32)
    assert without_fill(small, small, small)[0] is small


def relative_l2(value: np.ndarray, truth: np.ndarray) -> float:
    found = compare(value, truth)
    return found.l2 / found.truth_l2


@pytest.mark.filterwarnings("error:Casting complex")
def test_complex_weights_are_equal_or_not() -> None:
    """Nothing compares only the real parts."""
    truth = np.array([1.0 + 1.0j, 2.0])
    item = Item("weights", "parameter", "w", "w", Transform(), "parameter")
    same, other = judge_weights([(item, truth, truth.copy()), (item, truth, truth.conj())])
    assert (same.verdict, other.verdict) == ("agree", "diverge")
