"""Arrays that are held in several places: a dict of the net's, and the layers that use them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

import crosscheck
from tests.check.numpy_models import Affine, Tanh

from .contract import record


class Sharing(Affine):
    """An affine layer that is given its arrays."""

    def __init__(self, weight: Any, bias: Any) -> None:
        self.W, self.b = weight, bias
        self.dW: Any = None
        self.db: Any = None


class Net:
    """`params` names the arrays; the layers hold the same ones, and the gradients."""

    def __init__(self, affine: type[Sharing] = Sharing) -> None:
        shapes = {"W1": (7, 6), "b1": (6,), "W2": (6, 3), "b2": (3,)}
        self.params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        p = self.params
        self.layers = {
            "first": Sharing(p["W1"], p["b1"]),
            "tanh": Tanh(),
            "second": affine(p["W2"], p["b2"]),
        }

    def forward(self, x: Any) -> Any:
        for layer in self.layers.values():
            x = layer.forward(x)
        return x

    def backward(self, dy: Any) -> Any:
        for layer in reversed(self.layers.values()):
            dy = layer.backward(dy)
        return dy


def reference() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(7, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))


def test_gradients_that_the_layers_keep_are_compared() -> None:
    report = crosscheck.check(reference(), Net(), {"x": "float32[4,7]"})
    assert report.verdict == "agree"
    assert sum(site.phase == "parameter_gradient" for site in report.sites) == 4


def test_a_gradient_that_a_layer_got_wrong_is_found() -> None:
    class Mean(Sharing):
        def backward(self, dy: Any) -> Any:
            dx = super().backward(dy)
            self.db = dy.mean(0)
            return dx

    first = crosscheck.check(reference(), Net(Mean), {"x": "float32[4,7]"}).first_divergence
    assert first is not None
    assert (first.phase, first.reference) == ("parameter_gradient", "2.bias")


def test_later_steps_run_on_the_parameters_of_those_steps() -> None:
    class Sgd:
        def step(self, params: Any, grads: Any) -> None:
            for name in params:
                params[name] -= 0.1 * grads[name]

    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    report = crosscheck.check(
        reference(),
        Net(),
        {"x": "float32[4,7]"},
        loss="cross_entropy",
        targets="int64[4] 0..3",
        optimizer=(sgd, Sgd()),
        steps=2,
    )
    assert report.verdict == "agree"


def test_each_place_is_written_and_put_back() -> None:
    net = Net()
    held = net.params["W1"]
    values, _ = record(
        crosscheck.adapt(net),
        {"x": np.ones((2, 7), np.float32)},
        overrides={"W1": np.ones((7, 6), np.float32), "W2": np.ones((6, 3), np.float32)},
        cotangents=None,
    )
    assert np.allclose(values["activation", "output"], 6 * np.tanh(7))
    assert net.params["W1"] is held
    assert net.layers["first"].W is held  # type: ignore[union-attr]
    assert not held.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_run_in_float64_is_one_throughout(dtype: type) -> None:
    values, _ = record(
        crosscheck.adapt(Net()),
        {"x": np.ones((2, 7), np.float32)},
        float64=dtype is np.float64,
        cotangents=None,
    )
    assert values["activation", "layers.first"].dtype == dtype
