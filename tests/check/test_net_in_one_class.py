"""A hand-written net in one class shows no cotangent between its output and its input: how far back
a mistake in its backward pass lies is told by the gradients of its parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import crosscheck


class ThreeLayers:
    """``wrong``: the ReLU whose mask the backward pass forgets, or what else is wrong."""

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong
        self.W1, self.b1 = np.zeros((12, 20), np.float32), np.zeros(20, np.float32)
        self.W2, self.b2 = np.zeros((20, 15), np.float32), np.zeros(15, np.float32)
        self.W3, self.b3 = np.zeros((15, 5), np.float32), np.zeros(5, np.float32)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        self.a1 = np.maximum(x @ self.W1 + self.b1, 0)
        self.a2 = np.maximum(self.a1 @ self.W2 + self.b2, 0)
        return self.a2 @ self.W3 + self.b3

    def backward(self, dy: np.ndarray) -> np.ndarray:
        self.dW3, self.db3 = self.a2.T @ dy, dy.sum(0)
        dy = dy @ self.W3.T
        if self.wrong != "second":
            dy = dy * (self.a2 > 0)
        self.dW2, self.db2 = self.a1.T @ dy, dy.sum(0)
        dy = dy @ self.W2.T
        if self.wrong != "first":
            dy = dy * (self.a1 > 0)
        self.dW1, self.db1 = self.x.T @ dy, dy.sum(0)
        dx: np.ndarray = dy @ self.W1.T
        return -dx if self.wrong == "sent back" else dx


def check(wrong: str) -> crosscheck.Report:
    torch.manual_seed(0)
    reference = nn.Sequential(
        nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 15), nn.ReLU(), nn.Linear(15, 5)
    )
    return crosscheck.check(reference, ThreeLayers(wrong), {"x": "float32[7,12]"})


def test_a_right_one_agrees() -> None:
    assert check("").verdict == "agree"


@pytest.mark.parametrize(
    ("wrong", "right", "first"), [("second", "b3", "b2"), ("first", "b2", "b1")]
)
def test_between_which_gradients_it_is_wrong(wrong: str, right: str, first: str) -> None:
    divergence = check(wrong).first_divergence
    assert divergence is not None
    assert (divergence.phase, divergence.site) == ("backward", "input:x")
    assert (divergence.reference, divergence.candidate) == ("output", "output")  # no innocent layer
    assert f"so is the gradient of `{first}` before it" in divergence.statement
    assert f"between the gradient of `{right}`, which is right, and that" in divergence.statement


def test_a_layer_whose_own_gradients_are_right_sends_back_the_wrong_cotangent() -> None:
    divergence = check("sent back").first_divergence
    assert divergence is not None
    assert (divergence.phase, divergence.reference) == ("backward", "0")
