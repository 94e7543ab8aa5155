"""A recurrent layer that runs both ways on one side, and on the other one layer for each direction,
of which one is given the sequence backwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .kit import agrees, run, wrong

INPUTS = "int64[3,6] 0..20"


class Both(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 7)
        self.rnn = nn.GRU(7, 5, layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.rnn(self.embed(x))[0])
        return out


class Turned(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(1)


class Apart(nn.Module):
    def __init__(self, layers: int, *, as_module: bool = False, mistake: str = "") -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 7)
        widths = (7, 10)[:layers]
        self.there = nn.ModuleList(nn.GRU(n, 5, batch_first=True) for n in widths)
        self.back = nn.ModuleList(nn.GRU(n, 5, batch_first=True) for n in widths)
        self.turn = Turned() if as_module else lambda x: x.flip(1)
        self.head = nn.Linear(10, 3)
        self.mistake = mistake

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for there, back in zip(self.there, self.back, strict=True):
            given = x.detach() if self.mistake == "cut" else x
            one, other = there(x)[0], back(self.turn(given))[0]
            x = torch.cat([one, other if self.mistake == "turn" else self.turn(other)], -1)
        out: torch.Tensor = self.head(x)
        return out


@pytest.mark.parametrize("as_module", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_each_sends_back_a_part(layers: int, as_module: bool) -> None:
    assert agrees(run(Both(layers), Apart(layers, as_module=as_module), INPUTS))


@pytest.mark.parametrize("layers", [1, 2])
def test_what_goes_in_and_comes_back_in_all_is_still_compared(layers: int) -> None:
    report = run(Both(layers), Apart(layers, mistake="turn"), INPUTS)
    assert report.first_divergence is not None
    assert report.first_divergence.phase == "forward"
    report = run(Both(layers), Apart(layers, mistake="cut"), INPUTS)
    assert report.first_divergence is not None
    assert report.first_divergence.phase == "backward"
    assert "embed" in wrong(report, "backward")
    assert not wrong(report, "forward")
