"""Hand-written NumPy nets: the contract, and the many ways people write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crosscheck.adapters.numpy.adapter import NumpyAdapter, find
from crosscheck.errors import InvalidArgument
from crosscheck.observers import Forcer
from crosscheck.taps import tap, tap_cotangent

from .contract import DY, IDS, Contract, X, ones, record
from .numpy_kit import Dense, Net, NumpyKit, Relu


class TestNumpy(Contract):
    kit = NumpyKit()


def adapt(model: Any, **options: Any) -> NumpyAdapter:
    adapter = find(model, **options)
    assert adapter is not None
    return adapter


def test_a_list_of_layers() -> None:
    rng = np.random.default_rng(0)
    layers = [Dense(4, 5, rng), Relu(), Dense(5, 3, rng)]
    adapter = adapt(layers)
    values, info = record(adapter)
    assert [s for k, s in values if k == "activation"] == ["input:x", "0", "1", "2", "output"]
    assert [p.name for p in adapter.parameters()] == ["0.W", "0.b", "2.W", "2.b"]
    assert np.array_equal(info.parameter_gradients["2.b"], DY.sum(0))
    assert info.sources == {"0": "input:x", "1": "0", "2": "1"}


class Slotted:
    __slots__ = ("scale", "seen")

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def forward(self, x: Any) -> Any:
        self.seen = x
        return x * np.float32(self.scale)

    def backward(self, dy: Any) -> Any:
        return dy * np.float32(self.scale)


def test_layers_with_slots() -> None:
    before = Slotted.forward, Slotted.backward
    adapter = adapt([Slotted(2.0), Slotted(3.0)])
    values, _ = record(adapter, cotangents=ones)
    assert np.array_equal(values["activation", "0"], 2 * X)
    assert np.array_equal(values["activation", "1"], 6 * X)
    assert np.array_equal(values["cotangent", "0"], np.full_like(X, 3))
    assert (Slotted.forward, Slotted.backward) == before


class SlottedDense:
    __slots__ = ("W", "dW", "x")

    def __init__(self) -> None:
        self.W = np.ones((4, 3), np.float32)
        self.dW = np.zeros_like(self.W)

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.W

    def backward(self, dy: Any) -> Any:
        self.dW = self.x.T @ dy
        return dy @ self.W.T


def test_parameters_in_slots() -> None:
    layer = SlottedDense()
    gradient = layer.dW
    adapter = adapt([layer])
    assert [p.name for p in adapter.parameters()] == ["0.W"]
    _, info = record(adapter)
    assert np.array_equal(info.parameter_gradients["0.W"], X.T @ DY)
    assert layer.dW is gradient
    assert not gradient.any()
    assert not hasattr(layer, "x")


class Callable:
    def __init__(self, n_in: int, n_out: int) -> None:
        self.W = np.ones((n_in, n_out), np.float32)
        self.dW = np.zeros_like(self.W)

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.W

    __call__ = forward

    def backward(self, dy: Any) -> Any:
        self.dW = self.x.T @ dy
        return dy @ self.W.T


def test_layers_that_are_called() -> None:
    before = Callable.__call__
    net = Net(
        lambda m, x: m.b(m.a(x)),
        lambda m, d: m.a.backward(m.b.backward(d)),
        a=Callable(4, 5),
        b=Callable(5, 3),
    )
    values, info = record(adapt(net))
    order = [s for kind, s in values if kind == "activation"]
    assert order == ["input:x", "a", "b", "output"]
    assert np.array_equal(info.parameter_gradients["b.W"], values["input", "b"].T @ DY)
    assert Callable.__call__ is before


class Dicts:
    """Parameters and gradients in dicts under the same keys."""

    def __init__(self) -> None:
        self.params = {"W": np.ones((4, 3), np.float32), "b": np.zeros(3, np.float32)}
        self.grads: dict[str, np.ndarray] = {}

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.params["W"] + self.params["b"]

    def backward(self, dy: Any) -> Any:
        self.grads = {"W": self.x.T @ dy, "b": dy.sum(0)}
        return dy @ self.params["W"].T


def test_dicts_of_parameters() -> None:
    layer = Dicts()
    params = layer.params
    values, info = record(adapt(layer))
    assert [p.name for p in adapt(layer).parameters()] == ["W", "b"]
    assert np.array_equal(info.parameter_gradients["W"], X.T @ DY)
    assert layer.params is params
    assert layer.grads == {}


def test_dict_gradients_are_read_with_either_name() -> None:
    params = {"W": np.ones((4, 3), np.float32)}
    grads: dict[str, np.ndarray] = {}

    def forward(x: Any) -> Any:
        grads["x"] = x
        h = tap("h", x @ params["W"])
        return np.maximum(h, 0)

    def backward(dy: Any) -> Any:
        x = grads["x"]
        dh = tap_cotangent("h", dy * (x @ params["W"] > 0))
        grads["dW"] = x.T @ dh
        return dh @ params["W"].T

    adapter = adapt(forward, backward=backward, params=params, grads=grads)
    values, info = record(adapter)
    mask = values["activation", "h"] > 0
    assert np.array_equal(values["cotangent", "h"], DY * mask)
    assert np.array_equal(info.parameter_gradients["W"], X.T @ (DY * mask))
    assert np.array_equal(values["cotangent", "input:x"], (DY * mask) @ params["W"].T)
    stop = Forcer({("cotangent", "h"): np.zeros_like(DY)})
    _, info = record(adapter, observer=stop)
    assert not info.parameter_gradients["W"].any()


def test_a_function_without_backward() -> None:
    adapter = adapt(lambda x: x * np.float32(2))
    assert not adapter.capabilities.cotangents
    values, info = record(adapter, cotangents=None)
    assert np.array_equal(values["activation", "output"], 2 * X)


def test_a_forward_patched_on_the_instance() -> None:
    rng = np.random.default_rng(0)
    layer = Dense(4, 3, rng)
    plain = layer.forward
    layer.forward = lambda x: plain(x) * 2  # type: ignore[method-assign]
    patched = layer.forward
    values, _ = record(adapt([layer]))
    assert np.array_equal(values["activation", "output"], (X @ layer.W + layer.b) * 2)
    assert layer.forward is patched


def test_value_and_gradient_objects() -> None:
    class Variable:
        def __init__(self) -> None:
            self.data = np.ones((4, 3), np.float32)
            self.grad = np.zeros_like(self.data)

    class Layer:
        def __init__(self) -> None:
            self.W = Variable()

        def forward(self, x: Any) -> Any:
            self.x = x
            return x @ self.W.data

        def backward(self, dy: Any) -> Any:
            self.W.grad += self.x.T @ dy
            return dy @ self.W.data.T

    layer = Layer()
    _, info = record(adapt(layer))
    assert np.array_equal(info.parameter_gradients["W"], X.T @ DY)
    assert not layer.W.grad.any()


def test_tap_cotangent_without_a_tap() -> None:
    def backward(dy: Any) -> Any:
        return tap_cotangent("nowhere", dy)

    adapter = adapt(lambda x: x * np.float32(1), backward=backward)
    with pytest.raises(InvalidArgument, match="more often than tap"):
        record(adapter, cotangents=ones)


def test_a_tap_without_its_cotangent_is_unobservable() -> None:
    adapter = adapt(lambda x: tap("h", x * np.float32(2)), backward=lambda dy: dy * 2)
    values, info = record(adapter, cotangents=ones)
    assert info.unobservable == {("cotangent", "h")}
    assert ("cotangent", "h") not in values


def test_integer_inputs_get_no_gradient_back() -> None:
    adapter = NumpyKit().adapt(NumpyKit().build("embedding"))
    values, info = record(adapter, {"ids": IDS}, cotangents=ones)
    assert ("cotangent", "input:ids") not in values
    assert not info.unobservable
