"""An activation that is a layer on both sides, of another type and name: another function there is
that layer's, not what lies around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from .kit import agrees, found, run
from .numpy_models import Affine, Rectifier, Stack
from .torch_models import randomised


class Activation(Rectifier):
    pass


class Port:
    def __init__(self) -> None:
        self.one, self.nonlinearity, self.two = Affine(4, 6), Activation(), Affine(6, 4)

    def forward(self, x: Any) -> Any:
        return x + self.two.forward(self.nonlinearity.forward(self.one.forward(x)))

    def backward(self, d: Any) -> Any:
        return d + self.one.backward(self.nonlinearity.backward(self.two.backward(d)))


class Net(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 4))
        randomised(self)

    def forward(self, x: Any) -> Any:
        return x + self.mlp(x)


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.Tanh])
def test_another_activation_is_the_layer_s(activation: Any) -> None:
    report = run(Net(activation()), Port(), "float32[5,4]")
    first = report.first_divergence
    assert first is not None and (first.reference, first.candidate) == ("mlp.1", "nonlinearity")
    assert any(cause.verified and "ReLU" in cause.statement for cause in first.causes)


def test_the_same_activation_agrees() -> None:
    assert agrees(run(Net(nn.ReLU()), Port(), "float32[5,4]"))


class Between(nn.Module):
    """Calls its first activation as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        randomised(self)

    def forward(self, x: Any) -> Any:
        return self.three(torch.relu(self.two(torch.tanh(self.one(x)))))


class Inside(Affine):
    """Has the activation inside, and makes something else of what it is given."""

    def __init__(self, factor: float) -> None:
        super().__init__(6, 6)
        self.factor = factor

    def forward(self, x: Any) -> Any:
        self._y = np.tanh(super().forward(x) * x.dtype.type(self.factor))
        return self._y

    def backward(self, d: Any) -> Any:
        return super().backward(d * (1 - self._y**2) * d.dtype.type(self.factor))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("factor", [1.01, 1.5, -1.0])
def test_a_wrong_layer_with_its_activation_is_blamed_and_no_code_behind_it(
    factor: float, turned: bool
) -> None:
    """What the two layers return was never the same: the one value is no stand-in for the other."""
    port = Stack(Inside(factor), Affine(6, 6), Rectifier(), Affine(6, 3))
    layers = "one", "layers.0"
    report = run(*((port, Between()) if turned else (Between(), port)))
    blamed = [one for one in found(report) if one[0] in ("forward", "backward")]
    expected = layers[::-1] if turned else layers
    assert blamed == [("forward", *expected), ("backward", *expected)], str(report)


class Turned(Stack):
    """Hands on in the wrong order what its first layer returns."""

    def forward(self, x: Any) -> Any:
        x = self.layers[0].forward(x)[:, ::-1]
        for layer in self.layers[1:]:
            x = layer.forward(x)
        return x

    def backward(self, dout: Any) -> Any:
        for layer in reversed(self.layers[1:]):
            dout = layer.backward(dout)
        return self.layers[0].backward(dout[:, ::-1])


@pytest.mark.parametrize("turned", [False, True])
def test_a_wrong_order_behind_such_a_layer_is_not_its_fault(turned: bool) -> None:
    port = Turned(Inside(1.0), Affine(6, 6), Rectifier(), Affine(6, 3))
    report = run(*((port, Between()) if turned else (Between(), port)))
    forward = [d for d in report.divergences if d.phase == "forward"]
    assert [(d.reference, d.candidate) for d in forward] == [("output", "output")], str(report)
    assert "the right numbers in another order" in forward[0].statement
