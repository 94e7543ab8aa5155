"""A mistake that fades behind a large residual is still found where it was made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import crosscheck
from tests.traces.kit import Linear, Tanh, found

SHAPE = "float32[40,6]"


class Residual:
    """300 x + second(tanh(first(x))): a mistake in the second term is a thousandth of the sum."""

    def __init__(self, factor: float = 1.0) -> None:
        self.first, self.act, self.second = Linear(6, 8, 0), Tanh(), Linear(8, 6, 1)
        self.act.factor = factor

    def forward(self, x: Any) -> Any:
        y = self.second.forward(self.act.forward(self.first.forward(x)))
        return x * x.dtype.type(300) + y

    def backward(self, d: Any) -> Any:
        back = self.first.backward(self.act.backward(self.second.backward(d)))
        return d * d.dtype.type(300) + back


class Renamed(Residual):
    """The same under other names, so that values alone say which site is which."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__(factor)
        self.one, self.squash, self.two = self.first, self.act, self.second
        del self.first, self.act, self.second

    def forward(self, x: Any) -> Any:
        y = self.two.forward(self.squash.forward(self.one.forward(x)))
        return x * x.dtype.type(300) + y

    def backward(self, d: Any) -> Any:
        back = self.one.backward(self.squash.backward(self.two.backward(d)))
        return d * d.dtype.type(300) + back


@pytest.mark.parametrize("kind", ["trace", "sketch"])
def test_the_layer_is_named_and_not_the_sum(kind: str) -> None:
    trace = crosscheck.record(Residual(), SHAPE, parameters=True)
    reference = trace if kind == "trace" else trace.sketch(20_000)
    honest = crosscheck.check(reference, crosscheck.record(Renamed(), SHAPE, parameters=True))
    assert honest.verdict == "agree", str(honest)
    wrong = crosscheck.record(Renamed(1.004), SHAPE, parameters=True)
    distance = np.linalg.norm(
        wrong.activations()["output"] - trace.activations()["output"]
    ) / np.linalg.norm(trace.activations()["output"])
    assert distance < 1e-4  # the outputs pass for the same value when sites are paired
    report = crosscheck.check(reference, wrong, gradients=False)
    assert found(report) == [("forward", "act", "squash")], str(report)
