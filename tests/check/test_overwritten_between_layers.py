"""Code between two layers writes into what the first one returned: the second is given the same
object, and other numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import crosscheck

INPUTS = "float32[7,64]"
"""Wide enough that a NumPy array is not compared byte by byte."""


class Torch(nn.Module):
    """``between``: what is done in place before the first layer, or between the two."""

    def __init__(self, between: str = "relu") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.first, self.last = nn.Linear(64, 200), nn.Linear(200, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.between == "cleared":
            x.zero_()
        h = self.first(x)
        if self.between == "leaky":
            nn.functional.leaky_relu_(h, 0.1)
        elif self.between != "nothing":
            torch.relu_(h)
        return self.last(h)


class Residual(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.factor = factor
        self.first, self.norm, self.last = nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.first(x))
        h += self.factor * x
        return self.last(self.relu(h))


class Linear:
    def __init__(self, n: int, m: int) -> None:
        self.W, self.b = np.zeros((n, m), np.float32), np.zeros(m, np.float32)

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x @ self.W + self.b


class Numpy:
    def __init__(self, between: str = "relu") -> None:
        self.between = between
        self.first, self.last = Linear(64, 200), Linear(200, 3)

    def forward(self, x: np.ndarray) -> np.ndarray:
        if self.between == "cleared":
            x[:] = 0
        h = self.first.forward(x)
        if self.between == "turned":  # the sum of all numbers stays
            np.maximum(h, 0, out=h)
            h[:] = h[:, ::-1].copy()
        elif self.between == "leaky":
            np.multiply(h, 0.1, out=h, where=h < 0)
        elif self.between != "nothing":
            np.maximum(h, 0, out=h)
        return self.last.forward(h)


def first(report: crosscheck.Report) -> tuple[str, str]:
    divergence = report.first_divergence
    assert divergence is not None, str(report)
    return divergence.phase, divergence.site


@pytest.mark.parametrize("effort", ["quick", "thorough"])
@pytest.mark.parametrize("gradients", [True, False])
def test_honest_pairs_agree(effort: Any, gradients: bool) -> None:
    pairs: list[tuple[Any, Any]] = [(Torch(), Torch()), (Residual(), Residual())]
    for reference, candidate in [*pairs, *([] if gradients else [(Torch(), Numpy())])]:
        report = crosscheck.check(reference, candidate, INPUTS, effort=effort, gradients=gradients)
        assert report.verdict == "agree", str(report)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    ("between", "site"), [("leaky", "last"), ("nothing", "last"), ("cleared", "first")]
)
def test_what_goes_into_the_next_layer_is_wrong(between: str, site: str, gradients: bool) -> None:
    report = crosscheck.check(Torch(), Torch(between), INPUTS, gradients=gradients)
    assert first(report) == ("forward", site)


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_a_residual_that_is_added_in_place(factor: float) -> None:
    report = crosscheck.check(Residual(), Residual(factor), INPUTS)
    assert first(report) == ("forward", "relu")


@pytest.mark.parametrize(
    ("between", "site"),
    [("leaky", "last"), ("nothing", "last"), ("turned", "last"), ("cleared", "first")],
)
def test_a_hand_written_net_that_overwrites_its_arrays(between: str, site: str) -> None:
    report = crosscheck.check(Torch(), Numpy(between), INPUTS, gradients=False)
    assert first(report) == ("forward", site)
