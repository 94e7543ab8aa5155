"""Positions that one side looks up once, and the other for each sequence of a batch: the same
numbers, in shapes that no layout maps onto each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .kit import agrees, forward, run

INPUTS = "int64[2,7] 0..20"
WAYS = [("rows", "each"), ("each", "rows"), ("once", "each"), ("each", "once"), ("rows", "once")]


class Words(nn.Module):
    """Args:
    way: positions are looked up as (time,), as (1, time) or as (batch, time).
    wrong: what is wrong behind them.
    """

    def __init__(self, way: str, wrong: str = "") -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(9, 8)
        self.norm = nn.LayerNorm(8, eps=1e-2 if wrong == "eps" else 1e-5)
        self.head = nn.Linear(8, 4)
        self.way, self.wrong = way, wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(x.shape[1])
        if self.way != "rows":
            places = places.expand(len(x) if self.way == "each" else 1, -1)
        x = self.norm(self.words(x) + self.places(places))
        if self.wrong == "act":
            x = torch.tanh(x)
        out: torch.Tensor = self.head(x)
        return out * 1.1 if self.wrong == "scale" else out


@pytest.mark.parametrize(("ours", "theirs"), WAYS)
def test_they_agree(ours: str, theirs: str) -> None:
    assert agrees(run(Words(ours), Words(theirs), INPUTS))


@pytest.mark.parametrize("wrong", ["eps", "act", "scale"])
@pytest.mark.parametrize(("ours", "theirs"), WAYS)
def test_they_are_not_blamed_for_what_is_wrong_behind_them(
    ours: str, theirs: str, wrong: str
) -> None:
    place = {"eps": ("norm", "norm")}.get(wrong, ("output", "output"))
    assert forward(run(Words(ours), Words(theirs, wrong), INPUTS)) == [place]
