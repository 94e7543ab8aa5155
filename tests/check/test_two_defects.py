"""Two defects in one model are both reported, and what lies between them is clean."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import nn

from .kit import backward, forward, found, gradients, replace, run, scaled, wrong
from .numpy_models import Stack
from .torch_models import Mlp, Residual

OURS = ("fc1", "relu", "norm", "fc2", "tanh", "head")


@pytest.mark.parametrize(("i", "j"), combinations(range(6), 2))
def test_forward_and_forward(i: int, j: int) -> None:
    net = Stack()
    for index in (i, j):
        replace(net.layers[index], "forward", scaled(1.01))
    report = run(Mlp(), net)
    assert found(report) == [("forward", OURS[n], f"layers.{n}") for n in (i, j)]
    assert wrong(report, "forward") == {OURS[i], OURS[j]}
    second = report.divergences[1]
    assert second.after == (OURS[j - 1] if j - 1 != i else report.divergences[0].after)


@pytest.mark.parametrize(("i", "j"), combinations(range(6), 2))
def test_backward_and_backward(i: int, j: int) -> None:
    net = Stack()
    for index in (i, j):
        replace(net.layers[index], "backward", scaled(1.01))
    report = run(Mlp(), net)
    assert found(report) == [("backward", OURS[n], f"layers.{n}") for n in (j, i)]


@pytest.mark.parametrize("i", range(6))
@pytest.mark.parametrize("j", range(6))
def test_forward_and_backward(i: int, j: int) -> None:
    net = Stack()
    replace(net.layers[i], "forward", scaled(1.01))
    replace(net.layers[j], "backward", scaled(0.9))
    report = run(Mlp(), net)
    assert forward(report) == [(OURS[i], f"layers.{i}")]
    assert backward(report) == [(OURS[j], f"layers.{j}")]
    assert gradients(report) == []


def lose_bias(self: Any, original: Any, d: Any) -> Any:
    result = original(d)
    self.db = self.db * 0
    return result


@pytest.mark.parametrize("i", range(6))
def test_forward_and_a_parameter_gradient(i: int) -> None:
    net = Stack()
    replace(net.layers[i], "forward", scaled(1.01))
    replace(net.layers[3], "backward", lose_bias)
    report = run(Mlp(), net)
    assert forward(report) == [(OURS[i], f"layers.{i}")]
    assert gradients(report) == [("fc2.bias", "layers.3.b")]


BLOCK_DEFECTS: dict[str, Callable[[Any], None]] = {
    "tanh gelu": lambda block: setattr(block, "act", nn.GELU("tanh")),
    "eps": lambda block: setattr(block.norm, "eps", 1e-3),
    "residual": lambda block: setattr(block, "forward", lambda x: block.down(block.act(block.up(block.norm(x))))),  # noqa: E501
}  # fmt: skip
BLAMED = {"tanh gelu": ".act", "eps": ".norm", "residual": ""}


@pytest.mark.parametrize("first", BLOCK_DEFECTS)
@pytest.mark.parametrize("second", BLOCK_DEFECTS)
def test_in_two_blocks(first: str, second: str) -> None:
    model = Residual()
    BLOCK_DEFECTS[first](model.blocks[0])
    BLOCK_DEFECTS[second](model.blocks[2])
    report = run(Residual(), model, "float32[3,7,4]")
    sites = [f"blocks.0{BLAMED[first]}", f"blocks.2{BLAMED[second]}"]
    assert forward(report) == [(s, s) for s in sites]
    assert {r for _, r in backward(report)} <= set(sites)
    assert not any(s.startswith("blocks.1") for s in wrong(report, "forward"))


def test_two_cuts() -> None:
    model = Residual()

    def cut(self: Any, x: Any) -> Any:
        return x + self.down(self.act(self.up(self.norm(x).detach())))

    for index in (0, 2):
        model.blocks[index].forward = cut.__get__(model.blocks[index])
    report = run(Residual(), model, "float32[3,7,4]")
    assert backward(report) == [("blocks.2", "blocks.2"), ("blocks.0", "blocks.0")]
    assert not any(s.startswith("blocks.1") for s in wrong(report, "backward"))


def test_everything_at_once() -> None:
    net = Stack()
    replace(net.layers[0], "forward", scaled(1.01))
    replace(net.layers[4], "backward", scaled(0.5))
    replace(net.layers[5], "backward", lose_bias)
    model = Mlp()
    report = run(model, net)
    assert found(report) == [
        ("forward", "fc1", "layers.0"),
        ("backward", "tanh", "layers.4"),
        ("parameter_gradient", "head.bias", "layers.5.b"),
    ]
    first = report.first_divergence
    assert first is report.divergences[0]


def test_wrong_weights_and_a_wrong_layer() -> None:
    model = Mlp()
    with torch.no_grad():
        model.fc1.weight += 0.01
    model.norm.eps = 1e-2
    report = run(Mlp(), model, weights="keep")
    assert found(report)[0] == ("weights", "fc1.weight", "fc1.weight")
    assert forward(report) == [("fc1", "fc1"), ("norm", "norm")]
