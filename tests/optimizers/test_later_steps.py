"""Every step is compared, not only the first: mistakes that only other weights show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import crosscheck

LARGEST = 0.35  # what no weight of a new model reaches: 1/3


class Bounded:
    """A linear layer that bounds its weights, which the reference does not.

    Args:
        forward: bound them on the way forward, too.
    """

    def __init__(self, n: int, m: int, *, forward: bool) -> None:
        self.W, self.b = np.zeros((m, n), np.float32), np.zeros(m, np.float32)
        self._forward = forward

    def forward(self, x: np.ndarray) -> np.ndarray:
        self._x = x
        return x @ (self._bounded() if self._forward else self.W).T + self.b

    def backward(self, dy: np.ndarray) -> np.ndarray:
        self.dW, self.db = dy.T @ self._x, dy.sum(0)
        return dy @ self._bounded()

    def _bounded(self) -> np.ndarray:
        return np.clip(self.W, -LARGEST, LARGEST)


@pytest.mark.parametrize("forward", [False, True])
def test_a_mistake_that_the_first_weights_do_not_show(forward: bool) -> None:
    torch.manual_seed(3)
    reference = torch.nn.Sequential(torch.nn.Linear(12, 9), torch.nn.Linear(9, 5))
    candidate = [Bounded(*sizes, forward=forward) for sizes in ((12, 9), (9, 5))]
    given = {"loss": "mse", "targets": "float32[7,5]", "optimizer": "sgd(2.0)"}
    first = crosscheck.check(reference, candidate, "float32[7,12]", **given)
    assert first.verdict == "agree"
    report = crosscheck.check(reference, candidate, "float32[7,12]", steps=2, **given)
    assert report.verdict == "diverge"
    assert report.divergences[0].step == 2
    assert report.divergences[0].phase == ("forward" if forward else "backward")
