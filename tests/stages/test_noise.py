"""Stage 7, judge: the formulas, the thresholds, an explicit tolerance."""

from __future__ import annotations

import math
from dataclasses import astuple, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from crosscheck.compare import Difference, Differences, compare
from crosscheck.errors import InvalidArgument
from crosscheck.judging.noise import (
    Floor,
    Judgement,
    Tolerance,
    judge,
    judge_each,
    underflow,
    unit_roundoff,
    verdict_of,
    within,
)

U = 2.0**-24
N = 10_000
TRUTH_L2, TRUTH_MAX = 50.0, 3.0


def difference(l2: float = 0.0, maximum: float = 0.0, **other: Any) -> Difference:
    fields = {"size": N, "truth_l2": TRUTH_L2, "truth_max": TRUTH_MAX, "mismatch": 0}
    return Difference(l2=l2, maximum=maximum, **{**fields, **other})


def eta(reference: Difference, floor: Floor) -> tuple[float, float]:
    """Read η of the two norms off the ratios of unit errors."""
    l2 = judge(replace(reference, l2=1.0, maximum=0.0, mismatch=0), reference, floor).ratio
    top = judge(replace(reference, l2=0.0, maximum=1.0, mismatch=0), reference, floor).ratio
    return 1 / l2, 1 / top


def test_the_rounding_of_one_operation_is_the_least_floor() -> None:
    l2, top = eta(difference(), Floor(U))
    assert l2 == pytest.approx(U * TRUTH_L2)
    spread = math.sqrt(2 * math.log(N))
    assert top == pytest.approx(max(0.5 * U * TRUTH_L2 / math.sqrt(N) * spread, U * TRUTH_MAX))
    assert top == pytest.approx(U * TRUTH_MAX)


def test_many_are_judged_as_each_is_alone_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    errors, own = np.exp(rng.normal(-16, 6, size=(2, 400, 6)))
    for table in (errors, own):
        table[:, 0] = np.resize([0, 1, 2, 3, 1000, 12345], 400)
        table[:, 5] = rng.random(400) < 0.1
    own[::5] = 0.0
    floors = [Floor(U, *rng.choice([0.0, 0.3, 700.0], size=4).tolist()) for _ in errors]
    many, truths = Differences(errors), Differences(own)
    judged = judge_each(many, truths, [astuple(floor) for floor in floors])
    assert repr(judged) == repr([judge(many[i], truths[i], floors[i]) for i in range(400)])
    assert {one.verdict for one in judged} == {"agree", "suspect", "diverge"}
    assert judge_each(Differences(errors[:0]), Differences(own[:0]), []) == []


def test_long_sums_raise_the_floor_by_their_root() -> None:
    l2, top = eta(difference(), Floor(U, reduction=90_000.0))
    assert l2 == pytest.approx(150 * U * TRUTH_L2)
    assert top == pytest.approx(150 * U * TRUTH_L2 / 100 * math.sqrt(2 * math.log(N)))
    assert eta(difference(), Floor(U, reduction=4.0))[0] == pytest.approx(U * TRUTH_L2)
    assert eta(difference(), Floor(U, reduction=0.0)) == eta(difference(), Floor(U))


def test_the_references_own_error_is_a_floor_in_either_norm() -> None:
    plain = eta(difference(), Floor(U))
    assert eta(difference(l2=1e-3), Floor(U)) == (pytest.approx(1e-3), pytest.approx(plain[1]))
    assert eta(difference(maximum=1e-3), Floor(U)) == (pytest.approx(plain[0]), pytest.approx(1e-3))


def test_the_measured_perturbation_is_a_floor_in_either_norm() -> None:
    plain = eta(difference(), Floor(U))
    measured = Floor(U).with_perturbation(1e-2, 0.0)
    assert eta(difference(), measured) == (pytest.approx(1e-2), pytest.approx(plain[1]))
    measured = Floor(U).with_perturbation(0.0, 1e-2)
    assert eta(difference(), measured) == (pytest.approx(plain[0]), pytest.approx(1e-2))


def test_scale_stands_in_for_a_truth_that_cancels() -> None:
    nothing = difference(truth_l2=0.0, truth_max=0.0)
    l2, top = eta(nothing, Floor(U, reduction=16.0, scale=20.0))
    assert l2 == pytest.approx(2 * U * 20)
    assert top == pytest.approx(2 * U * 20 / 100 * math.sqrt(2 * math.log(N)))
    assert eta(difference(), Floor(U, scale=20.0)) == eta(difference(), Floor(U))


def test_a_zero_truth_of_unknown_scale_allows_underflow_and_nothing_more() -> None:
    nothing = difference(truth_l2=0.0, truth_max=0.0)
    assert eta(nothing, Floor(U)) == (pytest.approx(1.2e-38 * 100), pytest.approx(1.2e-38))
    assert judge(nothing, nothing, Floor(U)) == Judgement(0.0, 0.0, "agree")
    assert judge(replace(nothing, l2=1e-30, maximum=1e-32), nothing, Floor(U)).verdict == "diverge"


def test_the_floor_is_reported_relative_to_the_scale() -> None:
    assert judge(difference(), difference(l2=0.5), Floor(U)).noise_floor == pytest.approx(0.01)
    assert judge(difference(), difference(), Floor(U)).noise_floor == pytest.approx(U)
    cancelled = difference(truth_l2=0.0)
    assert judge(cancelled, cancelled, Floor(U, scale=2.0)).noise_floor == pytest.approx(U)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (0.0, "agree"),
        (8.0, "agree"),
        (math.nextafter(8.0, 9.0), "suspect"),
        (32.0, "suspect"),
        (math.nextafter(32.0, 33.0), "diverge"),
        (math.inf, "diverge"),
        (math.nan, "diverge"),
    ],
)
def test_thresholds_are_inclusive(ratio: float, verdict: str) -> None:
    assert verdict_of(ratio) == verdict
    if math.isfinite(ratio):
        own = difference(l2=1.0)
        assert judge(replace(own, l2=ratio), own, Floor(U)).verdict == verdict


def test_a_non_finite_mismatch_diverges_however_small_the_rest() -> None:
    one = judge(difference(mismatch=1), difference(), Floor(U))
    assert (one.ratio, one.verdict) == (math.inf, "diverge")


def test_nan_in_either_norm_is_never_agreement() -> None:
    assert judge(difference(l2=math.nan), difference(), Floor(U)).verdict == "diverge"


def test_monotone_in_the_error_and_in_every_part_of_the_floor() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        e, r = (difference(*10.0 ** rng.uniform(-9, 0, 2)) for _ in range(2))
        floor = Floor(U, *10.0 ** rng.uniform([0, -3, -9, -9], [6, 3, 0, 0]))
        base = judge(e, r, floor).ratio
        assert judge(replace(e, l2=e.l2 * 2), r, floor).ratio >= base
        assert judge(replace(e, maximum=e.maximum * 2), r, floor).ratio >= base
        for part in ("unit", "reduction", "scale", "pert_l2", "pert_max"):
            wider = replace(floor, **{part: 2 * getattr(floor, part)})
            assert judge(e, r, wider).ratio <= base, part
        for part in ("l2", "maximum"):
            assert judge(e, replace(r, **{part: 2 * getattr(r, part)}), floor).ratio <= base
        assert base == pytest.approx(max(e.l2 / eta(r, floor)[0], e.maximum / eta(r, floor)[1]))


def test_scaling_everything_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=500)
    reference = truth.astype(np.float32)
    candidate = (truth * (1 + 1e-6 * rng.normal(size=500))).astype(np.float32)
    ratios = [
        judge(compare(candidate * s, truth * s), compare(reference * s, truth * s), Floor(U)).ratio
        for s in (np.float32(2.0**-60), np.float32(1), np.float32(2.0**60))
    ]
    assert ratios[0] == pytest.approx(ratios[1]) == pytest.approx(ratios[2])
    assert 8 < ratios[0] < 50


def test_one_wrong_element_in_a_million_is_seen_in_the_maximum_norm() -> None:
    truth = np.random.default_rng(2).normal(size=1_000_000)
    reference = truth.astype(np.float32)
    candidate = reference.copy()
    candidate[123456] += np.float32(2e-5)
    pair = compare(candidate, truth), compare(reference, truth)
    assert judge(*pair, Floor(U)).verdict == "diverge"
    assert pair[0].l2 / (U * pair[0].truth_l2) < 1  # the 2-norm does not see it


def test_a_small_error_everywhere_is_seen_in_the_2_norm() -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(size=100_000)
    truth[:10] = 300.0  # a large element hides the error from the maximum norm
    reference = truth.astype(np.float32)
    candidate = (truth + 1e-5 * np.sign(truth)).astype(np.float32)
    pair = compare(candidate, truth), compare(reference, truth)
    assert judge(*pair, Floor(U)).ratio > 4 * pair[0].maximum / (U * 300)
    assert judge(*pair, Floor(U)).verdict == "diverge"


def test_unit_roundoff_is_the_widest() -> None:
    bf16 = np.dtype(ml_dtypes.bfloat16)
    assert unit_roundoff(np.dtype("float32")) == 2.0**-24 == np.finfo(np.float32).eps / 2
    assert unit_roundoff(np.dtype("float64")) == np.finfo(np.float64).eps / 2
    assert unit_roundoff(np.dtype("float16")) == float(np.finfo(np.float16).eps) / 2
    assert unit_roundoff(bf16) == float(ml_dtypes.finfo(bf16).eps) / 2
    assert unit_roundoff(np.dtype("float32"), bf16, np.dtype("float16")) == 2.0**-8
    assert unit_roundoff(np.dtype("int64"), np.dtype("bool")) == unit_roundoff() == 0.0


def test_underflow_does_not_hide_small_float16_gradients() -> None:
    assert underflow(np.dtype("float32")) == pytest.approx(np.finfo(np.float32).tiny, rel=0.03)
    assert underflow(np.dtype(ml_dtypes.bfloat16)) == underflow(np.dtype("float32"))
    assert underflow(np.dtype("float64")) == pytest.approx(np.finfo(np.float64).tiny, rel=0.04)
    assert underflow(np.dtype("float16")) == pytest.approx(2.0**-24, rel=0.01)
    truth = np.random.default_rng(4).normal(size=1000) * 1e-4
    reference = truth.astype(np.float16)
    floor = Floor(2.0**-11, tiny=underflow(np.dtype("float16")))
    doubled = judge(compare(2 * reference, truth), compare(reference, truth), floor)
    assert doubled.verdict == "diverge"


# -- an explicit tolerance -------------------------------------------------------------------------


def test_a_tolerance_is_the_sum_of_both_parts_inclusive() -> None:
    r = np.array([2.0, -8.0, 0.0])
    tolerance = Tolerance(rtol=0.25, atol=0.5)
    exactly = r + np.array([1.0, 2.5, -0.5])
    assert within(tolerance, exactly, r) == Judgement(0.25, 1.0, "agree")
    above = exactly.copy()
    above[1] = np.nextafter(above[1], 9)
    assert within(tolerance, above, r).verdict == "diverge"


def test_the_tolerance_is_relative_to_the_reference() -> None:
    one, two = np.array([1.0]), np.array([1.5])
    assert within(Tolerance(0.4, 0.0), one, two).verdict == "agree"
    assert within(Tolerance(0.4, 0.0), two, one).verdict == "diverge"


@pytest.mark.parametrize("atol", [0.0, 1.0])
def test_non_finite_values_are_equal_or_far_apart(atol: float) -> None:
    special = np.array([np.nan, np.inf, -np.inf, 0.0])
    for i, c in enumerate(special):
        for j, r in enumerate(special):
            judged = within(Tolerance(0.5, atol), np.array([c]), np.array([r]))
            assert judged.verdict == ("agree" if i == j else "diverge"), (c, r)
            assert judged.ratio == (0.0 if i == j else math.inf)


def test_nothing_allowed_means_equal() -> None:
    r = np.array([0.0, 1.0, 5e-324])
    assert within(Tolerance(0.0, 0.0), r.copy(), r).ratio == 0.0
    assert within(Tolerance(0.0, 0.0), -r * 0 + r, r).verdict == "agree"
    for i in range(3):
        c = r.copy()
        c[i] = np.nextafter(c[i], 9)
        assert within(Tolerance(0.0, 0.0), c, r).ratio == math.inf


def test_a_small_reference_under_rtol_alone() -> None:
    assert within(Tolerance(0.1, 0.0), np.array([1e-30]), np.array([0.0])).ratio == math.inf
    assert within(Tolerance(0.1, 1e-30), np.array([1e-30]), np.array([0.0])).verdict == "agree"


def test_the_worst_element_decides_and_nothing_is_nothing() -> None:
    r = np.ones(1000, np.float32)
    c = r.copy()
    c[77] = 1.5
    assert within(Tolerance(0.25, 0.0), c, r).ratio == pytest.approx(2.0)
    assert within(Tolerance(0.0, 0.0), r[:0], r[:0]).verdict == "agree"


@pytest.mark.parametrize(("rtol", "atol"), [(-1e-3, 0.0), (0.0, math.nan), (math.inf, 0.0)])
def test_a_tolerance_must_make_sense(rtol: float, atol: float) -> None:
    name, value = ("rtol", rtol) if not 0 <= rtol < math.inf else ("atol", atol)
    with pytest.raises(InvalidArgument, match=rf"^Tolerance {name} is {value}: give a finite numb"):
        Tolerance(rtol, atol)


def test_both_halves_of_a_tolerance_are_needed() -> None:
    with pytest.raises(TypeError):
        Tolerance(1e-3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Tolerance(atol=1e-3)  # type: ignore[call-arg]
