"""What is asked before anything is said: float64, an ulp, fresh inputs, the free run as a whole."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

import crosscheck
from crosscheck.judging.perturb import Moved
from crosscheck.judging.precision import Grains, dtype_notes

from .kit import Case, notes

T = torch.Tensor
U = 2.0**-24
X = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)


class OnlyFloat32:
    """A layer by hand that computes in float32 whatever it is given."""

    def __init__(self, factor: Any) -> None:
        self.factor = factor

    def forward(self, x: Any) -> Any:
        x = x.astype(np.float32)
        return x * np.float32(3) * np.float32(self.factor(x))


class ByHand:
    def __init__(self, factor: Any) -> None:
        self.triple = OnlyFloat32(factor)

    def forward(self, x: Any) -> Any:
        return self.triple.forward(x)


class Triple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.triple = Tripled()

    def forward(self, x: T) -> T:
        return self.triple(x)


class Tripled(nn.Module):
    def forward(self, x: T) -> T:
        return x * 3


@pytest.mark.parametrize(
    ("factor", "verdict", "note"),
    [
        (lambda x: 1 + 24 * U, "suspect", "on fresh inputs"),
        # Only on the inputs of the check: chance, as far as anybody can see.
        (lambda x: 1 + 24 * U * np.array_equal(x, X), "agree", "on fresh inputs"),
        (lambda x: 1 + 24 * U * (1 + 99 * (not np.array_equal(x, X))), "diverge", "fresh inputs"),
        (lambda x: 1 + 100 * U, "diverge", ""),
    ],
)
def test_a_suspect_without_float64_is_asked_on_fresh_inputs(
    factor: Any, verdict: str, note: str
) -> None:
    report = crosscheck.check(Triple(), ByHand(factor), X, gradients=False, explain=False)
    assert report.verdict == verdict, f"{report}\n{notes(report)}"
    layer = next(s for s in report.sites if s.reference == "triple")
    assert note in " ".join(layer.notes)


@pytest.mark.parametrize(("roundoffs", "verdict"), [(2400, "diverge"), (0, "suspect")])
def test_of_two_fresh_inputs_the_worse_one_decides(roundoffs: int, verdict: str) -> None:
    fresh: list[bytes] = []

    def factor(x: Any) -> float:
        if np.array_equal(x, X):
            return 1 + 24 * U
        if x.tobytes() not in fresh:
            fresh.append(x.tobytes())
        return 1 + (roundoffs if x.tobytes() == fresh[0] else 24) * U

    report = crosscheck.check(Triple(), ByHand(factor), X, gradients=False, explain=False)
    assert report.verdict == verdict and len(fresh) == 2, f"{report}\n{notes(report)}"


def test_a_suspect_that_refuses_float64_stays_one() -> None:
    class Refuses(Tripled):
        def forward(self, x: T) -> T:
            if x.dtype == torch.float64:
                raise TypeError("not in double")
            return super().forward(x) * (1 + 24 * U)

    candidate = Triple()
    candidate.triple = Refuses()
    report = crosscheck.check(Triple(), candidate, X, gradients=False, explain=False)
    assert report.verdict == "suspect", f"{report}\n{notes(report)}"
    assert "on fresh inputs" in " ".join(" ".join(s.notes) for s in report.sites)


def test_what_only_the_free_run_shows_is_a_suspect() -> None:
    class Once(Triple):
        """Wrong in one call of many, as what keeps a state can be."""

        calls = 0

        def forward(self, x: T) -> T:
            Once.calls += 1
            return super().forward(x * 1.001 if Once.calls == 1 else x)

    report = crosscheck.check(Triple(), Once(), X, gradients=False, explain=False)
    assert report.verdict == "suspect"
    assert "departs in the free run" in report.notes[0]


def test_the_rounding_of_ones_own_formula_says_what_it_is() -> None:
    def one_pass(x: T) -> T:
        return (x * x).mean(-1) - x.mean(-1) ** 2

    case = Case(X + 300, lambda x: x.var(-1, unbiased=False), {}, {})
    report = case.check(one_pass)
    assert report.verdict == "agree"  # what it adds up to behind the layer included
    layer = next(s for s in report.sites if s.reference == "layer" and s.kind == "activation")
    assert layer.ratio > 32 and "redrawn by an ulp" in " ".join(layer.notes)


def small_part(coarse: bool) -> Any:
    def layer(x: T) -> T:
        part = 0.01 * torch.cos(x)
        return x + (part.bfloat16().float() if coarse and x.dtype == torch.float32 else part)

    return layer


def test_a_lower_precision_in_a_small_part_is_no_rounding() -> None:
    """Its error is below what a result in a lower precision would have, and vanishes in float64."""
    report = Case(X, small_part(False), {}, {}).check(small_part(True))
    layer = next(s for s in report.sites if s.reference == "layer" and s.kind == "activation")
    assert layer.metrics is not None
    assert max(layer.metrics.rel_l2, layer.metrics.max_abs / np.abs(X).max()) < 2.0**-14
    assert layer.verdict == "diverge" and "is not redrawn by an ulp" in " ".join(layer.notes)


def test_a_clear_mistake_needs_no_word_on_precision() -> None:
    report = Case(X, lambda x: 3 * x, {}, {}).check(lambda x: 3.1 * x)
    layer = next(s for s in report.sites if s.reference == "layer" and s.kind == "activation")
    assert layer.verdict == "diverge" and layer.notes == ()


def test_one_element_that_is_not_redrawn_is_seen_among_many_that_are() -> None:
    """Its error vanishes in float64, as that of a lower precision would; an ulp doesn't move it."""

    def one_pass(x: T) -> T:
        made = (x * x).mean(-1) - x.mean(-1) ** 2
        return made + 1.0 * (torch.arange(400) == 7) if x.dtype == torch.float32 else made

    x = np.random.default_rng(1).normal(size=(400, 30)).astype(np.float32)
    report = Case(x + 300, lambda x: x.var(-1, unbiased=False), {}, {}).check(one_pass)
    layer = next(s for s in report.sites if s.reference == "layer" and s.kind == "activation")
    assert layer.verdict == "diverge" and "is not redrawn by an ulp" in " ".join(layer.notes)


def test_a_value_moves_by_its_own_grain() -> None:
    half, full = np.full(400, 1.5, ml_dtypes.bfloat16), np.full(400, 1.5, np.float32)
    half += np.arange(400).astype(half.dtype) / 128
    full += np.arange(400).astype(full.dtype) / 128
    values: Any = {("activation", k): v for k, v in (("half", half), ("full", full))}
    values |= {("input", "cast"): full, ("activation", "int8"): full}
    moved = Moved(
        values, 0, grains={("input", "cast"): 2.0**-8}, steps={("activation", "int8"): 0.25}
    )

    def spread(kind: Any, site: str) -> float:
        before = values[kind, site].astype(np.float64)
        return float(np.std((moved[kind, site] - before) / before))

    assert spread("activation", "half") == pytest.approx(2.0**-8, rel=0.2)
    assert spread("activation", "full") == pytest.approx(U, rel=0.2)
    assert spread("input", "cast") == pytest.approx(2.0**-8, rel=0.2)
    step = np.std(moved["activation", "int8"] - full)
    assert step == pytest.approx(0.25 / 12**0.5, rel=0.2)
    assert Grains().values == {}


def test_other_types_are_a_fact_said_once() -> None:
    class Half(Tripled):
        def forward(self, x: T) -> T:
            return super().forward(x.half())

    half = Triple()
    half.triple = Half()
    report = crosscheck.check(Triple(), half, X, gradients=False, explain=False)
    assert report.verdict == "agree"
    assert dtype_notes(report.sites) == [
        "the candidate holds float16 where the reference holds float32 (2 values, first `triple`): "
        "judged by the rounding of float16"
    ]
