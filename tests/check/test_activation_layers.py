"""An activation that is a layer on both sides, of another type and name: another function there is
that layer's, not what lies around it."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from .kit import agrees, run
from .numpy_models import Affine, Rectifier
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
