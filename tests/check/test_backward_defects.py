"""Defects that only a backward pass shows: the forward passes agree to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from .kit import backward, found, gradients, replace, run, scaled, wrong
from .numpy_models import FusedNet, RecurrentNet, Stack, function_net
from .torch_models import Chain, Mlp, Recurrent, Residual, Tied

OURS = ("fc1", "relu", "norm", "fc2", "tanh", "head")
X3 = "float32[3,7,4]"


class Times(torch.autograd.Function):
    """Forward the identity, backward a factor."""

    @staticmethod
    def forward(ctx: Any, x: Any, factor: float) -> Any:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient * ctx.factor, None


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("factor", [0.0, 1.001, 2.0])
def test_the_vjp_of_any_layer(index: int, factor: float) -> None:
    net = Stack()
    replace(net.layers[index], "backward", scaled(factor))
    report = run(Mlp(), net)
    assert found(report) == [("backward", OURS[index], f"layers.{index}")]
    first = report.first_divergence
    assert first is not None and first.site == OURS[index]
    assert not wrong(report, "forward") and not wrong(report, "parameter_gradient")


def test_a_missing_term() -> None:
    net = Stack()

    def detached_statistics(self: Any, original: Any, d: Any) -> Any:
        original(d)
        return d * self.gamma * self.r

    replace(net.layers[2], "backward", detached_statistics)
    assert found(run(Mlp(), net)) == [("backward", "norm", "layers.2")]


def test_a_derivative_that_is_right_at_zero_only() -> None:
    net = Stack()
    replace(net.layers[4], "backward", lambda self, original, d: d * (1 - self.y))
    assert found(run(Mlp(), net)) == [("backward", "tanh", "layers.4")]


@pytest.mark.parametrize("change", ["halved", "left at zero", "deleted"])
@pytest.mark.parametrize("parameter", ["W", "b"])
@pytest.mark.parametrize(("index", "layer"), [(0, "fc1"), (3, "fc2"), (5, "head")])
def test_a_parameter_gradient(index: int, layer: str, parameter: str, change: str) -> None:
    net, name = Stack(), f"d{parameter}"

    def spoil(self: Any, original: Any, d: Any) -> Any:
        result = original(d)
        if change == "deleted":
            delattr(self, name)
        else:
            setattr(self, name, getattr(self, name) * (0.5 if change == "halved" else 0.0))
        return result

    replace(net.layers[index], "backward", spoil)
    report = run(Mlp(), net)
    ours = f"{layer}.{'weight' if parameter == 'W' else 'bias'}"
    assert found(report) == [("parameter_gradient", ours, f"layers.{index}.{parameter}")]


def test_a_gradient_missing_from_the_dict() -> None:
    net = FusedNet(6, 8, 5, 3)

    def forget(self: Any, original: Any, d: Any) -> Any:
        result = original(d)
        del self.grads["biases"]
        return result

    replace(net.stages["stage1"], "backward", forget)
    report = run(Chain(6, 8, 5, 3), net)
    assert found(report) == [("parameter_gradient", "net.2.bias", "stages.stage1.biases")]


def test_a_gradient_under_another_name_is_not_taken_for_missing() -> None:
    net = Stack()

    def rename(self: Any, original: Any, d: Any) -> Any:
        result = original(d)
        self.dbias = self.__dict__.pop("db")
        return result

    replace(net.layers[3], "backward", rename)
    report = run(Mlp(), net)
    assert report.verdict == "agree"
    assert [line for line in report.coverage.not_compared if "layers.3.b" in line]


def test_a_mask_forgotten_in_a_function() -> None:
    report = run(Chain(6, 8, 8, 3), function_net(drop_mask=True))
    assert report.verdict == "diverge"
    assert not wrong(report, "forward")
    assert ("net.0.weight", "W0") in gradients(report)
    assert ("net.2.weight", "W1") not in gradients(report)


def test_the_second_call_of_a_shared_layer() -> None:
    net = RecurrentNet()
    calls: list[int] = []

    def wrong_once(self: Any, original: Any, d: Any) -> Any:
        calls.append(1)
        result = original(d)
        return result * np.float32(1.5) if len(calls) == 2 else result

    replace(net.cell, "backward", wrong_once)
    replace(net, "backward", lambda self, original, d: (calls.clear(), original(d))[1])
    assert found(run(Recurrent(), net)) == [("backward", "cell#2", "cell#2")]


def test_gradients_of_one_call_only() -> None:
    """Overwritten instead of accumulated."""
    net = RecurrentNet()

    def overwrite(self: Any, original: Any, d: Any) -> Any:
        self.dW, self.db = np.zeros_like(self.W), np.zeros_like(self.b)
        return original(d)

    replace(net.cell, "backward", overwrite)
    report = run(Recurrent(), net)
    assert set(found(report)) == {
        ("parameter_gradient", "cell.bias", "cell.b"),
        ("parameter_gradient", "cell.weight", "cell.W"),
    }


# -- between the layers, in PyTorch ----------------------------------------------------------------


def planted(model: nn.Module, path: str, function: Any) -> nn.Module:
    module = model.get_submodule(path)
    module.forward = function.__get__(module)  # type: ignore[method-assign]
    return model


def doubled(self: Any, x: Any) -> Any:
    return x + self.down(self.act(self.up(Times.apply(self.norm(x), 2.0))))


def detached_residual(self: Any, x: Any) -> Any:
    return x.detach() + self.down(self.act(self.up(self.norm(x))))


def detached_branch(self: Any, x: Any) -> Any:
    return x + self.down(self.act(self.up(self.norm(x)))).detach()


def detached_inside(self: Any, x: Any) -> Any:
    return x + self.down(self.act(self.up(self.norm(x).detach())))


def zero_inside(self: Any, x: Any) -> Any:
    return x + self.down(self.act(self.up(Times.apply(self.norm(x), 0.0))))


@pytest.mark.parametrize(
    ("defect", "site"),
    [
        (doubled, "norm"),
        (zero_inside, "norm"),
        (detached_residual, ""),
        (detached_branch, "down"),
        (detached_inside, "up"),
    ],
)
@pytest.mark.parametrize("index", range(3))
def test_between_the_layers_of_a_block(defect: Any, site: str, index: int) -> None:
    """One defect is one divergence, also where nothing behind it receives a cotangent."""
    path = f"blocks.{index}"
    report = run(Residual(), planted(Residual(), path, defect), X3)
    assert found(report) == [("backward", path, path)]
    first = report.first_divergence
    assert first is not None and first.site == (f"{path}.{site}" if site else path)
    behind = "detached" in defect.__name__ and site != ""
    assert bool(report.coverage.not_compared) == behind
    assert not wrong(report, "parameter_gradient")


def test_a_detached_trunk() -> None:
    model = Residual()

    def trunk(self: Any, x: Any) -> Any:
        x = self.blocks[0](self.emb(x)).detach()
        return self.out(self.blocks[2](self.blocks[1](x)))

    report = run(Residual(), planted(model, "", trunk), X3)
    assert found(report) == [("backward", "output", "output")]
    text = " ".join(report.coverage.not_compared)
    assert "`blocks.0" in text and "gradient of" in text and "no cotangent" in text
    assert wrong(report, "backward") == {"blocks.1"}


def test_a_backward_pass_that_stops_early() -> None:
    net = Stack()

    def stop(self: Any, original: Any, d: Any) -> None:
        for layer in self.layers[:2:-1]:
            d = layer.backward(d)

    replace(net, "backward", stop)
    report = run(Mlp(), net)
    assert found(report) == [("backward", "output", "output")]
    assert report.first_divergence is not None
    assert (report.first_divergence.site, report.first_divergence.after) == ("norm", "fc2")


def test_a_layer_that_sends_nothing_back() -> None:
    model = Mlp()
    replace(model.norm, "forward", lambda self, original, x: original(x.detach()))
    report = run(Mlp(), model)
    assert found(report) == [("backward", "norm", "norm")]


def test_a_detached_table_and_a_detached_head() -> None:
    model = Tied()
    replace(model, "forward", lambda self, original, i: self.head(torch.tanh(self.fc(self.emb(i) + self.pos.detach()))))  # fmt: skip  # noqa: E501
    report = run(Tied(), model, "int64[2,5] 0..11")
    assert found(report) == [("parameter_gradient", "pos", "pos")]

    def stale_head(self: Any, original: Any, ids: Any) -> Any:
        h = torch.tanh(self.fc(self.emb(ids) + self.pos))
        return F.linear(h, self.emb.weight.detach())

    model = Tied()
    replace(model, "forward", stale_head)
    report = run(Tied(), model, "int64[2,5] 0..11")
    assert found(report) == [("parameter_gradient", "emb.weight", "emb.weight")]


def test_buffers_after_a_step() -> None:
    ours, theirs = nn.BatchNorm1d(6), nn.BatchNorm1d(6, momentum=0.9)
    report = run(ours, theirs, train=True)
    assert found(report) == [
        ("buffer", "running_mean", "running_mean"),
        ("buffer", "running_var", "running_var"),
    ]
    assert run(ours, theirs).verdict == "agree"


def test_forward_only_does_not_see_it() -> None:
    net = Stack()
    replace(net.layers[3], "backward", scaled(2.0))
    report = run(Mlp(), net, gradients=False)
    assert report.verdict == "agree"
    assert report.coverage.not_compared == ("backward: gradients=False",)
    assert backward(report) == []
