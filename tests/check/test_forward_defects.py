"""Planted forward defects: found, blamed on the right layer of both sides, and on no other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from .kit import forward, found, replace, run, scaled, wrong
from .numpy_models import ConvNet, RecurrentNet, Stack, function_net
from .torch_models import (
    Attention,
    Chain,
    Convolutional,
    Mlp,
    Recurrent,
    Residual,
    TwoBranches,
)

OURS = ("fc1", "relu", "norm", "fc2", "tanh", "head")  # of the torch Mlp; layers.0 to 5 in NumPy


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("factor", [1.0001, 1.5])
def test_any_layer_of_a_stack(index: int, factor: float) -> None:
    net = Stack()
    replace(net.layers[index], "forward", scaled(factor))
    report = run(Mlp(), net)
    assert found(report) == [("forward", OURS[index], f"layers.{index}")]
    first = report.first_divergence
    assert first is not None and first.site == OURS[index]
    assert first.after == (OURS[index - 1] if index else "input:x")
    assert first.verdict == "diverge" and first.ratio > 100
    assert wrong(report, "forward") == {OURS[index]}
    assert not wrong(report, "backward") and not wrong(report, "parameter_gradient")


@pytest.mark.parametrize("index", range(6))
def test_any_layer_of_a_numpy_reference_in_a_torch_candidate(index: int) -> None:
    model = Mlp()
    replace(getattr(model, OURS[index]), "forward", scaled(1.001))
    report = run(Stack(), model)
    assert forward(report) == [(f"layers.{index}", OURS[index])]


@pytest.mark.parametrize("seed", range(3))
def test_a_tiny_epsilon(seed: int) -> None:
    net = Stack()
    net.layers[2].eps = 1e-6
    report = run(Mlp(), net, seed=seed)
    assert report.verdict == "diverge"
    assert forward(report) == [("norm", "layers.2")]
    assert report.first_divergence is not None
    assert report.first_divergence.metrics is not None
    assert report.first_divergence.metrics.rel_l2 < 1e-3
    assert {r for _, r, _ in found(report)} <= {"norm", "norm.weight"}


def own(method: Callable[..., Any]) -> Callable[[Any, str], None]:
    """Put a method on the module at a path (the original is not used)."""

    def plant(model: Any, path: str) -> None:
        module = model.get_submodule(path)
        module.forward = method.__get__(module)

    return plant


def no_residual(self: Any, x: Any) -> Any:
    return self.down(self.act(self.up(self.norm(x))))


def scaled_branch(self: Any, x: Any) -> Any:
    return x + 0.999 * self.down(self.act(self.up(self.norm(x))))


def tanh_gelu(self: Any, x: Any) -> Any:
    return x + self.down(F.gelu(self.up(self.norm(x)), approximate="tanh"))


def erf_gelu(self: Any, x: Any) -> Any:
    return x + self.down(F.gelu(self.up(self.norm(x))))


def scaled_between(self: Any, x: Any) -> Any:
    return x + self.down(self.act(1.01 * self.up(self.norm(x))))


def post_norm(self: Any, x: Any) -> Any:
    return self.norm(x + self.down(self.act(self.up(x))))


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("defect", [no_residual, scaled_branch])
def test_a_residual(defect: Any, index: int) -> None:
    model, path = Residual(), f"blocks.{index}"
    own(defect)(model, path)
    report = run(Residual(), model, "float32[3,7,4]")
    assert forward(report) == [(path, path)]
    assert report.first_divergence is not None
    assert report.first_divergence.after == f"{path}.down"
    assert {r for _, r, _ in found(report)} == {path}


def test_inside_a_nested_block() -> None:
    model = Residual()
    model.blocks[1].act = nn.GELU("tanh")
    report = run(Residual(), model, "float32[3,7,4]")
    assert forward(report) == [("blocks.1.act", "blocks.1.act")]
    assert {r for _, r, _ in found(report)} == {"blocks.1.act"}
    assert report.first_divergence is not None
    assert report.first_divergence.after == "blocks.1.up"


def test_a_functional_activation_without_a_site() -> None:
    """The candidate has no site for it: the reference's is named, the candidate's is None."""
    model = Residual()
    own(erf_gelu)(model, "blocks.1")
    assert run(Residual(), model, "float32[3,7,4]").verdict == "agree"
    own(tanh_gelu)(model, "blocks.1")
    report = run(Residual(), model, "float32[3,7,4]")
    assert forward(report) == [("blocks.1.act", None)]
    assert report.first_divergence is not None
    assert report.first_divergence.site == "blocks.1.down"
    assert report.first_divergence.after == "blocks.1.up"
    assert not wrong(report, "parameter_gradient")


def test_a_functional_activation_on_both_sides() -> None:
    reference, model = Residual(), Residual()
    own(erf_gelu)(reference, "blocks.1")
    own(tanh_gelu)(model, "blocks.1")
    report = run(reference, model, "float32[3,7,4]")
    assert forward(report) == [("blocks.1", "blocks.1")]
    assert report.first_divergence is not None
    assert report.first_divergence.after == "blocks.1.up"


def test_a_scale_between_two_layers_is_the_code_between_them() -> None:
    model = Residual()
    own(scaled_between)(model, "blocks.2")
    report = run(Residual(), model, "float32[3,7,4]")
    assert forward(report) == [("blocks.2", "blocks.2")]
    assert report.first_divergence is not None
    assert report.first_divergence.site == "blocks.2.act"
    assert "the code between the layers" in report.first_divergence.statement


def test_norm_behind_instead_of_before() -> None:
    model = Residual()
    own(post_norm)(model, "blocks.0")
    report = run(Residual(), model, "float32[3,7,4]")
    assert set(forward(report)) == {("blocks.0", "blocks.0")}
    assert not wrong(report, "forward") & {"blocks.1", "blocks.2", "blocks.1.norm", "out"}


def test_a_block_that_is_never_called() -> None:
    model = Residual()
    model.forward = lambda x: model.out(model.blocks[2](model.blocks[0](model.emb(x))))
    report = run(Residual(), model, "float32[3,7,4]")
    first = report.first_divergence
    assert first is not None
    assert (first.phase, first.reference, first.candidate) == ("forward", "blocks.1", None)
    assert first.after == "blocks.0"
    assert "blocks.1.act" in report.coverage.unmatched_reference
    assert {r for r, _ in forward(report)} == {"blocks.1"}


@pytest.mark.parametrize("call", [1, 2, 3])
def test_one_call_of_a_shared_layer(call: int) -> None:
    net = RecurrentNet()
    calls = []

    def wrong_once(self: Any, original: Any, x: Any) -> Any:
        calls.append(1)
        result = original(x)
        return result * np.float32(1.01) if len(calls) == call else result

    # Counting needs to start again with every run.
    replace(net.cell, "forward", wrong_once)
    replace(net, "forward", lambda self, original, x: (calls.clear(), original(x))[1])
    report = run(Recurrent(), net)
    site = "cell" if call == 1 else f"cell#{call}"
    assert forward(report) == [(site, site)]
    assert found(report) == [("forward", site, site)]


ATTENTION: dict[str, Callable[[Any], None]] = {
    "scale missing": lambda m: setattr(m, "scores", lambda q, k: q @ k.transpose(-1, -2)),
    "mask leaks": lambda m: setattr(
        m, "mask", lambda t: torch.ones(t, t, dtype=torch.bool).tril(1)
    ),
}


@pytest.mark.parametrize("defect", ATTENTION)
def test_functional_attention(defect: str) -> None:
    model = Attention()
    ATTENTION[defect](model)
    report = run(Attention(), model, "int64[2,5] 0..11")
    assert forward(report) == [("output", "output")]
    first = report.first_divergence
    assert first is not None and first.site == "proj"
    assert wrong(report, "forward") == {"proj"}
    assert not wrong(report, "parameter_gradient")


def test_concatenated_in_the_wrong_order() -> None:
    model = TwoBranches()
    model.concat = lambda a, b: torch.cat([b, a], -1)
    inputs = {"a": "float32[5,6]", "b": "float32[5,6]"}
    report = run(TwoBranches(), model, inputs)
    assert forward(report) == [("output", "output")]
    first = report.first_divergence
    assert first is not None and first.site == "join"
    assert "in another order" in first.statement


class TwoHeads(nn.Module):
    """The head that is called first gives the last output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.value, self.policy = nn.Linear(6, 5), nn.Linear(5, 1), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.tanh(self.body(x))
        value = self.value(x)[:, 0]
        return self.policy(x), value


@pytest.mark.parametrize("layer", ["body", "value", "policy"])
def test_a_head_that_another_head_follows(layer: str) -> None:
    model = TwoHeads()
    replace(getattr(model, layer), "forward", scaled(1.01))
    report = run(TwoHeads(), model, inputs="float32[4,6]")
    assert forward(report) == [(layer, layer)]
    assert wrong(report, "forward") == {layer}


def test_swapped_inputs() -> None:
    model = TwoBranches()
    replace(model, "forward", lambda self, original, a, b: original(b, a))
    report = run(TwoBranches(), model, {"a": "float32[5,6]", "b": "float32[5,6]"})
    assert forward(report) == [("output", "output")] * 2
    assert wrong(report, "forward") == {"left", "right"}


def test_flattened_in_the_wrong_order() -> None:
    report = run(
        Convolutional(),
        ConvNet(channels_first_flatten=False),
        "float32[2,3,7,9]",
        candidate_inputs=lambda given: given["x"].transpose(0, 2, 3, 1),
    )
    assert forward(report) == [("output", "output")]
    first = report.first_divergence
    assert first is not None and (first.site, first.after) == ("fc", "c2")
    assert "in another order" in first.statement


def test_one_wrong_border_pixel() -> None:
    net = ConvNet()

    def border(self: Any, original: Any, x: Any) -> Any:
        y = original(x)
        y[0, 0, 0] *= np.float32(1.01)
        return y

    replace(net.second, "forward", border)
    report = run(
        Convolutional(),
        net,
        "float32[2,3,7,9]",
        candidate_inputs=lambda given: given["x"].transpose(0, 2, 3, 1),
    )
    assert forward(report) == [("c2", "second")]
    assert report.first_divergence is not None and report.first_divergence.metrics is not None
    n, _, h, w = report.first_divergence.metrics.worst_index or ()
    assert (n, h, w) == (0, 0, 0)  # in the reference's layout


def test_a_function_with_taps() -> None:
    report = run(Chain(6, 8, 8, 3), function_net(leak=0.01))
    assert report.verdict == "diverge"
    first = report.first_divergence
    assert first is not None and first.phase == "forward" and first.after == "net.1"
    assert first.candidate == "h2" or "h2" in first.between


def test_weights_that_were_to_be_kept_come_first() -> None:
    model = Residual()
    with torch.no_grad():
        model.blocks[1].up.weight *= 1.0001
    report = run(Residual(), model, "float32[3,7,4]", weights="keep")
    name = "blocks.1.up.weight"
    assert found(report)[0] == ("weights", name, name)
    assert forward(report) == [("blocks.1.up", "blocks.1.up")]
    assert run(Residual(), model, "float32[3,7,4]").verdict == "agree"  # "copy" mends it


def test_a_statistic_that_was_not_loaded() -> None:
    reference, model = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
    reference.running_mean += 1.0
    report = run(reference, model, weights="keep")
    assert found(report)[0] == ("weights", "running_mean", "running_mean")
    assert math.isfinite(report.divergences[0].ratio)
