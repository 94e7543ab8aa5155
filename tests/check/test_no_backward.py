"""An operation of the candidate has no backward pass at all."""

from __future__ import annotations

import torch
from torch import nn

import crosscheck

from .torch_models import copied


class Net(nn.Module):
    def __init__(self, stops: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.stops = nn.Linear(6, 5), nn.Linear(5, 3), stops

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.last(copied(h, lambda d: None) if self.stops else h)


def test_the_gradient_never_arrives() -> None:
    divergence = crosscheck.check(Net(), Net(stops=True), "float32[4,6]").first_divergence
    assert divergence is not None
    assert (divergence.phase, divergence.site) == ("backward", "first")
    assert [c.statement for c in divergence.causes] == ["the gradient is zero: it never arrives"]
