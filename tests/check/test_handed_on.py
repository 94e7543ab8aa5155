"""What a layer returns and a layer behind it hands on unchanged (a dropout in eval mode) is known
by that: it stands for nothing else, whatever its name says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import crosscheck

from .kit import agrees, run
from .torch_models import randomised

WIDTH = 16


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Any) -> Any:
        return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))


class Added(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.dropout = nn.Linear(width, WIDTH), nn.Dropout(0.1)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, h: Any, x: Any) -> Any:
        return self.norm(self.dropout(self.dense(h)) + x)


class Attention(nn.Module):
    """Returns what its norm does."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.output = Heads(), Added(WIDTH)

    def forward(self, x: Any) -> Any:
        return self.output(self.own(x), x)


class Dense(nn.Linear):
    def __init__(self, activation: Any) -> None:
        super().__init__(WIDTH, 2 * WIDTH)
        self.activation = activation

    def forward(self, x: Any) -> Any:
        return self.activation(super().forward(x))


class Layer(nn.Module):
    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.attention, self.inner = Attention(), Dense(activation)
        self.output = Added(2 * WIDTH)

    def forward(self, x: Any) -> Any:
        x = self.attention(x)
        return self.output(self.inner(x), x)


class SelfAttention(Heads):
    """Returns what goes into the dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.o = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        return self.o(super().forward(x))


class Port(nn.Module):
    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.self_attention, self.attention_dropout = SelfAttention(), nn.Dropout(0.1)
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.inner, self.outer = Dense(activation), nn.Linear(2 * WIDTH, WIDTH)
        self.dropout, self.norm = nn.Dropout(0.1), nn.LayerNorm(WIDTH)

    def forward(self, x: Any) -> Any:
        x = self.attention_norm(self.attention_dropout(self.self_attention(x)) + x)
        return self.norm(self.dropout(self.outer(self.inner(x))) + x)


def check(port: Any, at: int) -> crosscheck.Report:
    reference = randomised(nn.Sequential(*(Layer(F.gelu) for _ in range(3)))).eval()
    candidate = nn.Sequential(*(Port(port if i == at else F.gelu) for i in range(3))).eval()
    return run(reference, candidate, f"float32[3,7,{WIDTH}]")


@pytest.mark.parametrize("at", [0, 1, 2])
def test_containers_cut_elsewhere_are_not_blamed_for_what_lies_behind(at: int) -> None:
    report = check(torch.relu, at)
    assert {d.reference for d in report.divergences if d.phase == "forward"} == {f"{at}.inner"}


def test_they_agree() -> None:
    assert agrees(check(F.gelu, 0))


class Bare(nn.Module):
    """A feed-forward net of layers, or of layers with their activation, each before a dropout."""

    def __init__(self, activation: Any = None) -> None:
        super().__init__()
        inner = [Dense(activation), nn.Dropout(0.1)] if activation else None
        inner = inner or [nn.Linear(WIDTH, 2 * WIDTH), nn.GELU()]
        self.layers = nn.Sequential(nn.LayerNorm(WIDTH), *inner, nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Any) -> Any:
        return self.layers(x)


@pytest.mark.parametrize("activation", [F.gelu, torch.relu])
def test_a_layer_that_hands_on_is_not_given_something_else(activation: Any) -> None:
    """It bears the activation's name, and returns what that does: so it was given it."""
    reference = randomised(nn.Sequential(Bare(), Bare())).eval()
    candidate = nn.Sequential(Bare(F.gelu), Bare(activation)).eval()
    report = run(reference, candidate, f"float32[5,{WIDTH}]")
    if activation is F.gelu:
        assert agrees(report)
    else:
        assert all(str(d.reference).startswith("1.layers.") for d in report.divergences)
        assert report.verdict == "diverge"
