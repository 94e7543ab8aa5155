"""PyTorch: the contract, and what only PyTorch does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn as nn  # noqa: E402

from crosscheck.adapters.torch.adapter import TorchAdapter, find  # noqa: E402
from crosscheck.observers import Forcer  # noqa: E402

from .contract import DY, Contract, X, equal, ones, record  # noqa: E402
from .torch_kit import Layers, TorchKit  # noqa: E402


class TestTorch(Contract):
    kit = TorchKit()


def adapt(forward: Any, **layers: nn.Module) -> TorchAdapter:
    return TorchKit().adapt(Layers(forward, **layers))


def test_inplace_activation_is_recorded_before_and_after() -> None:
    torch.manual_seed(0)
    adapter = adapt(lambda m, x: m.act(m.fc(x)), fc=nn.Linear(4, 3), act=nn.ReLU(inplace=True))
    values, info = record(adapter)
    before = values["activation", "fc"]
    assert before.min() < 0
    assert np.array_equal(values["activation", "act"], np.maximum(before, 0))
    # What arrives at `fc` has passed the ReLU, whether or not the framework shows it there.
    if ("cotangent", "fc") in values:
        assert np.array_equal(values["cotangent", "fc"], DY * (before > 0))
    bias = info.parameter_gradients["fc.bias"]
    np.testing.assert_allclose(bias, (DY * (before > 0)).sum(0), rtol=1e-6)


def test_forcing_through_an_inplace_activation() -> None:
    torch.manual_seed(0)
    adapter = adapt(lambda m, x: m.act(m.fc(x)), fc=nn.Linear(4, 3), act=nn.ReLU(inplace=True))
    forced = np.linspace(-1, 1, 18, dtype=np.float32).reshape(6, 3)
    for kind in ("activation", "input"):
        site = "fc" if kind == "activation" else "act"
        values, info = record(adapter, observer=Forcer({(kind, site): forced}))  # type: ignore[dict-item]
        assert np.array_equal(values["activation", "output"], np.maximum(forced, 0))
        np.testing.assert_allclose(
            info.parameter_gradients["fc.bias"], (DY * (forced > 0)).sum(0), rtol=1e-6
        )
    assert forced.min() == -1  # the caller's array is not written to


def test_augmented_assignment() -> None:
    def forward(m: Any, x: Any) -> Any:
        h = m.a(x)
        h += m.b(x)  # nobody has kept `h` for a backward pass yet
        return m.c(h)

    torch.manual_seed(0)
    layers = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 3)}
    model = Layers(forward, **layers)
    adapter = TorchKit().adapt(model)
    values, info = record(adapter)
    outputs, gradients = TorchKit().bare(model, {"x": X}, [DY])
    assert np.array_equal(values["activation", "output"], outputs[0])
    for name, gradient in gradients.items():
        assert np.array_equal(info.parameter_gradients[name], gradient), name
    forced = np.ones((6, 4), np.float32)
    values, _ = record(adapter, observer=Forcer({("activation", "b"): forced}))
    expected = values["activation", "a"] + 1
    np.testing.assert_allclose(values["input", "c"], expected, rtol=1e-6)


def test_a_model_that_overwrites_its_input() -> None:
    adapter = adapt(lambda m, x: m.fc(x.mul_(2)), fc=nn.Linear(4, 3))
    x = X.copy()
    values, _ = record(adapter, {"x": x})
    assert np.array_equal(x, X)
    assert np.array_equal(values["activation", "input:x"], X)
    assert np.array_equal(values["input", "fc"], 2 * X)


@dataclass(frozen=True)
class Output:
    logits: Any
    note: str
    hidden: Any = None


def test_dataclass_output() -> None:
    adapter = adapt(lambda m, x: Output(m.fc(x), "kept", hidden=x * 2), fc=nn.Linear(4, 3))
    values, info = record(adapter, cotangents=ones)
    assert info.outputs == ("output", "output:hidden")
    assert np.array_equal(values["cotangent", "input:x"].shape, X.shape)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale()

    def forward(self, *, x: Any, gain: Any) -> Any:
        return self.scale(x, gain=gain, factor=2.0)


class Scale(nn.Module):
    def forward(self, x: Any, *, gain: Any, factor: float) -> Any:
        return x * gain * factor


def test_keyword_arguments() -> None:
    adapter = TorchKit().adapt(Keywords())
    values, info = record(adapter, {"gain": 3 * np.ones_like(X), "x": X}, cotangents=ones)
    assert info.sources == {"scale": "input:x", "scale:1:gain": "input:gain"}
    assert np.array_equal(values["activation", "output"], X * 6)
    np.testing.assert_allclose(values["input_cotangent", "scale:1:gain"], 2 * X)


@pytest.mark.parametrize(
    "cast", [lambda x: x.float(), lambda x: x.to(torch.float32), lambda x: x.type(torch.float32)]
)
def test_float64_through_a_cast(cast: Any) -> None:
    adapter = adapt(lambda m, x: torch.softmax(cast(m.fc(x)), -1), fc=nn.Linear(4, 3))
    values, _ = record(adapter, float64=True)
    assert values["activation", "output"].dtype == np.float64
    logits = values["activation", "fc"]
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(values["activation", "output"], expected, rtol=1e-12)


def test_an_output_overwritten_later_is_listed_as_unobservable() -> None:
    torch.manual_seed(0)
    adapter = adapt(
        lambda m, x: m.act(m.body(x)),
        body=nn.Sequential(nn.Linear(4, 3)),
        act=nn.ReLU(inplace=True),
    )
    values, info = record(adapter)
    assert ("cotangent", "body") in info.unobservable
    assert ("cotangent", "body") not in values
    positive = values["activation", "body"] > 0
    assert np.array_equal(values["cotangent", "body.0"], DY * positive)


class ReturnsItsParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self) -> Any:
        return self.weight


def test_no_hook_stays_on_a_parameter_that_a_layer_returns() -> None:
    table = ReturnsItsParameter()
    adapter = adapt(lambda m, x: x * m.table(), table=table)
    values, info = record(adapter, cotangents=ones)
    assert not table.weight._backward_hooks
    np.testing.assert_allclose(values["cotangent", "table"], X.sum(0), rtol=1e-5)


class ReturnsItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.fc(x), x


def test_a_layer_that_returns_its_input() -> None:
    torch.manual_seed(0)
    adapter = adapt(lambda m, x: m.pair(x * 1), pair=ReturnsItsInput())
    values, _ = record(adapter, cotangents=ones)
    assert np.array_equal(values["cotangent", "pair:1"], np.ones_like(X))
    sent = values["input_cotangent", "pair.fc"]
    np.testing.assert_allclose(values["input_cotangent", "pair"], 1 + sent, rtol=1e-6)


def test_gradients_of_the_user_are_kept() -> None:
    kit = TorchKit()
    model = kit.build("mlp")
    model(torch.tensor(X)).sum().backward()
    model.eval()
    before = [p.grad.clone() for p in model.parameters()]
    record(kit.adapt(model), train=True)
    for p, gradient in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.grad, gradient)
    assert not model.training


def test_two_models_at_once_do_not_mix() -> None:
    kit = TorchKit()
    outer, inner = kit.build("mlp"), kit.adapt(kit.build("shared"))
    alone, _ = record(kit.adapt(outer))

    def nested(site: str, kind: str, value: np.ndarray) -> None:
        if site == "block" and kind == "activation":
            seen, _ = record(inner)
            assert ("activation", "cell#2") in seen

    values, _ = record(kit.adapt(outer), observer=nested)
    assert equal(alone, values) == set(alone)


def test_find_leaves_others_alone() -> None:
    assert find(object()) is None
    assert find(lambda x: x) is None


def test_a_passive_run_is_neutral_where_a_layer_uses_its_input_three_times() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(x)

    class Block(nn.Module):  # post-norm: the residual and the attention use the same x
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.norm = Attention(), nn.LayerNorm(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x + self.attn(x))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), Block(), Block(), nn.Linear(6, 3))
    x = np.random.default_rng(0).normal(size=(5, 7, 4)).astype(np.float32)
    dy = np.random.default_rng(1).normal(size=(5, 7, 3)).astype(np.float32)
    values, info = record(
        TorchAdapter(model), {"x": x}, cotangents=lambda o: {"output": dy}, passive=True
    )
    outputs, gradients = TorchKit().bare(model, {"x": x}, [dy])
    assert values["activation", "output"].tobytes() == outputs[0].tobytes()
    for name, gradient in gradients.items():
        assert info.parameter_gradients[name].tobytes() == gradient.tobytes(), name
