"""Rounding that a sound formula makes is told from a mistake of the same size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from crosscheck.explain.benign import ONE_PASS, is_one_pass_variance
from tests.check.kit import run
from tests.check.numpy_models import LN, Stack

from .kit import evidence, normal
from .layers import BETA, GAMMA, NORM, Array, layer_norm

HALF = np.float32


def far(mean: float, rows: int = 40) -> Array:
    """Rows whose mean is far from zero, exact in float32."""
    return (normal((rows, 12)) + mean).astype(HALF).astype(float)


def one_pass(x: Array) -> Array:
    narrow = x.astype(HALF)
    mean = narrow.mean(-1, keepdims=True)
    variance = (narrow * narrow).mean(-1, keepdims=True) - mean * mean
    return ((narrow - mean) / np.sqrt(variance + HALF(1e-5)) * GAMMA.astype(HALF)).astype(
        float
    ) + BETA


def judged(candidate: Callable[[Array], Array], mean: float) -> bool:
    x = far(mean)
    e = evidence("forward", layer_norm(x), candidate(x), inputs=(x,), parameters=NORM)
    assert e.ratio(e.reference) > 8  # there is something to clear
    return is_one_pass_variance(e)


@pytest.mark.parametrize("mean", [30.0, 100.0, 300.0])
def test_a_variance_in_one_pass(mean: float) -> None:
    assert judged(one_pass, mean)


def test_another_eps_of_the_same_size_is_no_rounding() -> None:
    assert not judged(lambda x: layer_norm(x, 3e-4), 30.0)
    assert not judged(lambda x: layer_norm(x, outside=True), 100.0)


def test_an_error_beyond_what_one_pass_loses_is_not_cleared() -> None:
    rng = np.random.default_rng(0)
    factors = 1 + 0.01 * rng.normal(size=(40, 1))
    assert not judged(lambda x: (layer_norm(x) - BETA) * factors + BETA, 30.0)


def test_an_error_of_another_shape_is_not_cleared() -> None:
    assert not judged(lambda x: layer_norm(x) + 1e-4 * np.cos(x), 100.0)


def test_a_few_groups_tell_nothing() -> None:
    x = far(100.0, rows=4)
    e = evidence("forward", layer_norm(x), one_pass(x), inputs=(x,), parameters=NORM)
    assert not is_one_pass_variance(e)
    assert not is_one_pass_variance(dataclasses.replace(e, parameters=()))


class Kept32(LN):
    """A LayerNorm of a library: one pass, float32 whatever it is given."""

    def forward(self, x: Array) -> Array:
        super().forward(x)
        return one_pass_of(x, self).astype(x.dtype)


def one_pass_of(x: Array, layer: LN) -> Array:
    narrow = x.astype(HALF)
    mean = narrow.mean(-1, keepdims=True)
    variance = (narrow * narrow).mean(-1, keepdims=True) - mean * mean
    return (narrow - mean) / np.sqrt(variance + HALF(layer.eps)) * layer.gamma + layer.beta


def test_a_check_clears_it_and_says_why() -> None:
    """What computes in float32 always cannot be asked in float64."""
    reference, candidate = Stack(LN(12)), Stack(Kept32(12))
    report = run(reference, candidate, far(100.0).astype(HALF), gradients=False)
    assert report.verdict == "agree"
    assert any(ONE_PASS in note for site in report.sites for note in site.notes)
    candidate.layers[0].eps = 1e-2
    assert run(reference, candidate, far(100.0).astype(HALF), gradients=False).verdict != "agree"
