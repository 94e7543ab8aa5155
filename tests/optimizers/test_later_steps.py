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


@pytest.mark.parametrize(
    ("candidate", "cause"),
    [
        ("sgd(0.1, momentum=0.9, nesterov=True)", "nesterov"),
        ("sgd(0.19, momentum=0.9)", "learning_rate"),
    ],
)
@pytest.mark.parametrize("steps", [1, 2])
def test_what_comes_to_the_same_in_the_first_step_is_no_cause(
    candidate: str, cause: str, steps: int
) -> None:
    """With empty buffers Nesterov's term makes the first step 1.9 times as long."""
    torch.manual_seed(3)
    models = [torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)) for _ in range(2)]
    optimizers = "sgd(0.1, momentum=0.9)", candidate
    report = crosscheck.check(*models, "float32[5,6]", optimizer=optimizers, steps=steps)
    assert report.divergences[0].phase == "update"
    for divergence in report.divergences:
        verified = {c.name for c in divergence.causes if c.verified}
        assert verified <= {cause}, divergence  # three numbers do not fix a factor
        assert verified or divergence.reference == "1.bias"
