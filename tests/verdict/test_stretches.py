"""Sites of other names, or with several for one: which are paired, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import crosscheck


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def tapped(model: Tower, wrong: int) -> Any:
    """The tower as a function whose taps have short names; ``wrong``: a block without its tanh."""
    held = {name: p.detach().numpy() for name, p in model.named_parameters()}

    def linear(x: Any, name: str) -> Any:
        return x @ held[f"{name}.weight"].T + held[f"{name}.bias"]

    def forward(x: Any) -> Any:
        for i in range(3):
            centred = x - x.mean(-1, keepdims=True)
            y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
            y = crosscheck.tap(f"up{i}", linear(crosscheck.tap(f"norm{i}", y), f"blocks.{i}.up"))
            y = y if i == wrong else np.tanh(y)
            x = x + crosscheck.tap(f"down{i}", linear(y, f"blocks.{i}.down"))
        return linear(x, "head")

    return crosscheck.adapt(forward, params={}, backward=None)


def test_short_names_of_taps_pair_what_a_mistake_has_made_different() -> None:
    torch.manual_seed(0)
    model = Tower()
    report = crosscheck.check(model, tapped(model, 0), "float32[5,6]", weights="keep")
    assert [(d.reference, d.candidate) for d in report.divergences] == [("blocks.0.down", "down0")]
    assert {s.reference: s.candidate for s in report.sites}["blocks.2.up"] == "up2"


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.lstm = nn.Linear(4, 7), nn.LSTM(7, 5, num_layers=2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.lstm(self.stem(x))[0]
        return y


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 7)
        self.first = nn.LSTM(7, 5, batch_first=True)
        self.second = nn.LSTM(5, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(1.01 * self.first(self.stem(x))[0])[0]
        return y


def test_a_layer_that_is_several_on_the_other_side_is_to_blame_for_what_it_sends_back() -> None:
    """And of the gradients behind it no more is said than is known."""
    torch.manual_seed(0)
    report = crosscheck.check(Packed(), Apart(), "float32[2,6,4]")
    back = next(d for d in report.divergences if d.phase == "backward")
    assert (back.site, back.reference) == ("stem", "lstm")
    gradients = {d.candidate: d.statement for d in report.divergences if "grad" in d.phase}
    assert "its layer has no partner" in gradients["first.weight_hh_l0"]
    assert "behind it are the reference's" in gradients["second.weight_hh_l0"]
