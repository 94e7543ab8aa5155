"""What a layer returns and a layer behind it hands on unchanged (a dropout in eval mode) is known
by that: it stands for nothing else, whatever its name says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import crosscheck

from .kit import agrees, forward, run
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


class FeedForward(nn.Module):
    """As in ``nn.TransformerEncoderLayer``: the activation is a call, and a dropout follows it."""

    def __init__(self, between: Any, hidden: int, dropout: nn.Module | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.linear1, self.linear2 = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)
        self.between, self.dropout = between, dropout or nn.Identity()

    def forward(self, x: Any) -> Any:
        x = self.norm1(x)
        return self.norm2(x + self.linear2(self.dropout(self.between(self.linear1(x)))))


class Fused(FeedForward):
    """The activation is part of the layer."""

    def __init__(self, activation: Any) -> None:
        super().__init__(None, 2 * WIDTH, None)
        self.linear1 = Dense(activation)

    def forward(self, x: Any) -> Any:
        x = self.norm1(x)
        return self.norm2(x + self.linear2(self.linear1(x)))


class Apart(Fused):
    """The activation is a layer."""

    def __init__(self, activation: Any, hidden: int) -> None:
        FeedForward.__init__(self, activation, hidden, None)

    def forward(self, x: Any) -> Any:
        x = self.norm1(x)
        return self.norm2(x + self.linear2(self.between(self.linear1(x))))


class Blocks(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


def called(hidden: int) -> nn.Module:
    def block() -> nn.Module:
        return FeedForward(F.relu, hidden, nn.Dropout(0.1))

    return randomised(Blocks(block(), block())).eval()


def cause(report: crosscheck.Report) -> list[str]:
    first = report.first_divergence
    return [c.statement for c in first.causes if c.verified] if first else []


GELU = "the candidate computes GELU (erf) instead of ReLU"
SHAPES = f"float32[3,7,{WIDTH}]"


@pytest.mark.parametrize("hidden", [WIDTH, 2 * WIDTH])
def test_an_activation_layer_in_the_place_of_a_call_and_a_dropout(hidden: int) -> None:
    """The dropout is given what the activation makes, and the activation what it is made of."""
    honest = Blocks(Apart(nn.ReLU(), hidden), Apart(nn.ReLU(), hidden))
    assert agrees(run(called(hidden), honest, SHAPES))
    report = run(called(hidden), Blocks(Apart(nn.ReLU(), hidden), Apart(nn.GELU(), hidden)), SHAPES)
    assert forward(report) == [("blocks.1", "blocks.1.between")]
    assert cause(report) == [GELU]


def test_a_layer_with_its_activation_in_the_place_of_a_call_and_a_dropout() -> None:
    assert agrees(run(called(2 * WIDTH), Blocks(Fused(F.relu), Fused(F.relu)), SHAPES))
    report = run(called(2 * WIDTH), Blocks(Fused(F.relu), Fused(F.gelu)), SHAPES)
    assert forward(report) == [("blocks.1.linear1", "blocks.1.linear1")]
    assert cause(report) == [GELU]


@pytest.mark.parametrize("inner", [F.relu, nn.ReLU()])
def test_a_call_and_a_dropout_in_the_place_of_an_activation_layer(inner: Any) -> None:
    reference = randomised(Blocks(*(Apart(nn.GELU(), 2 * WIDTH) for _ in range(2)))).eval()
    port = Blocks(*(FeedForward(a, 2 * WIDTH, nn.Dropout(0.1)) for a in (F.gelu, inner)))
    report = run(reference, port, SHAPES)
    at = "blocks.1" if inner is F.relu else "blocks.1.between"
    assert forward(report) == [("blocks.1.between", at)]
    assert cause(report) == ["the candidate computes ReLU instead of GELU (erf)"]


class Halved(nn.Module):
    def forward(self, x: Any) -> Any:
        return x / 2


@pytest.mark.parametrize("inner", [F.relu, nn.ReLU()])
def test_a_layer_that_should_hand_on_and_does_not_is_blamed_itself(inner: Any) -> None:
    """What it is given is compared, and right; an activation is what the dropout stands for."""
    port = Blocks(*(FeedForward(inner, 2 * WIDTH, d) for d in (nn.Dropout(0.1), Halved())))
    report = run(called(2 * WIDTH), port, SHAPES)
    partner = "blocks.1.dropout" if inner is F.relu else None
    assert forward(report) == [(partner, "blocks.1.dropout")]
    assert cause(report) == [f"the {'value' if partner is None else 'output'} is scaled by 0.5"]


def test_a_keras_layer_with_its_activation() -> None:
    keras = pytest.importorskip("keras")
    x = given = keras.Input((7, WIDTH))
    for activation in ("relu", "gelu"):
        x = keras.layers.LayerNormalization(epsilon=1e-5)(x)
        h = keras.layers.Dense(2 * WIDTH, activation=activation, name=f"inner_{activation}")(x)
        x = keras.layers.LayerNormalization(epsilon=1e-5)(x + keras.layers.Dense(WIDTH)(h))
    report = run(called(2 * WIDTH), keras.Model(given, x), SHAPES)
    assert forward(report) == [("blocks.1.linear1", "inner_gelu")]
    assert cause(report) == [GELU]
