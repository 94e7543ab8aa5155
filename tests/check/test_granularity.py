"""Layers that one side fuses and the other splits: nothing innocent is blamed for it."""

from __future__ import annotations

from typing import Any

import pytest

from .kit import backward, forward, found, gradients, replace, run, scaled
from .numpy_models import FusedNet, split
from .torch_models import Chain

SIZES = [(6, 8, 5, 3), (6, 6, 6, 6)]
FUSED = {0: ("1", "0"), 1: ("3", "2"), 2: ("4", "4")}  # stage -> its layers in the split net
REFERENCES = {"torch": (Chain, "net."), "numpy": (split, "")}


@pytest.mark.parametrize("side", REFERENCES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("stage", FUSED)
def test_a_wrong_fused_candidate(stage: int, sizes: Any, side: str) -> None:
    make, prefix = REFERENCES[side]
    net = FusedNet(*sizes)
    replace(net.stages[f"stage{stage}"], "forward", scaled(1.01))
    report = run(make(*sizes), net)
    assert len(report.divergences) == 1, str(report)
    ((reference, candidate),) = forward(report)
    assert candidate == f"stages.stage{stage}"
    assert reference in {prefix + name for name in FUSED[stage]}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("layer", range(5))
def test_a_wrong_layer_of_a_fused_reference(layer: int, sizes: Any) -> None:
    layers = split(*sizes)
    replace(layers[layer], "forward", scaled(1.01))
    report = run(FusedNet(*sizes), layers)
    assert len(report.divergences) == 1, str(report)
    ((reference, candidate),) = forward(report)
    assert reference == f"stages.stage{layer // 2}"
    first = report.first_divergence
    assert first is not None
    assert str(layer) in {candidate, *first.between}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("stage", FUSED)
def test_a_wrong_vjp_of_a_fused_candidate(stage: int, sizes: Any) -> None:
    net = FusedNet(*sizes)
    replace(net.stages[f"stage{stage}"], "backward", scaled(1.01))
    report = run(Chain(*sizes), net)
    assert len(report.divergences) == 1, str(report)
    ((reference, candidate),) = backward(report)
    assert candidate == f"stages.stage{stage}"
    assert reference in {f"net.{name}" for name in FUSED[stage]}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_relu_that_the_fused_layer_lacks(sizes: Any) -> None:
    net = FusedNet(*sizes)
    net.stages["stage1"].relu = False
    report = run(Chain(*sizes), net)
    assert forward(report) == [("net.3", None)]
    assert gradients(report) == []


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_mask_forgotten_by_the_fused_layer(sizes: Any) -> None:
    net = FusedNet(*sizes)

    def without_mask(self: Any, original: Any, d: Any) -> Any:
        self._mask = self._mask | True
        return original(d)

    replace(net.stages["stage1"], "backward", without_mask)
    report = run(Chain(*sizes), net)
    assert backward(report) == [("net.2", "stages.stage1")]
    assert {c for _, c in gradients(report)} == {
        "stages.stage1.biases",
        "stages.stage1.weights",
    }


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_two_defects(sizes: Any) -> None:
    net = FusedNet(*sizes)
    replace(net.stages["stage0"], "forward", scaled(1.01))
    replace(net.stages["stage2"], "backward", scaled(1.01))
    report = run(Chain(*sizes), net)
    assert [(phase, c) for phase, _, c in found(report)] == [
        ("forward", "stages.stage0"),
        ("backward", "stages.stage2"),
    ]
