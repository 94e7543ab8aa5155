"""An operation of the candidate has no backward pass at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import crosscheck


class WithoutBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return None


class Net(nn.Module):
    def __init__(self, stops: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.stops = nn.Linear(6, 5), nn.Linear(5, 3), stops

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.last(WithoutBackward.apply(h) if self.stops else h)  # type: ignore[no-untyped-call]


def test_the_gradient_never_arrives() -> None:
    divergence = crosscheck.check(Net(), Net(stops=True), "float32[4,6]").first_divergence
    assert divergence is not None
    assert (divergence.phase, divergence.site) == ("backward", "first")
    assert [c.statement for c in divergence.causes] == ["the gradient is zero: it never arrives"]
