"""An int8 ONNX candidate (QDQ, static) is judged by its quantisation steps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import crosscheck
from crosscheck import Report

onnx = pytest.importorskip("onnx")
quantization = pytest.importorskip("onnxruntime.quantization")

X = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)


def reference() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 30), nn.Sigmoid(), nn.Linear(30, 5))
    return nn.Sequential(*layers).eval()


class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        self.batches = iter([{name: X}])

    def get_next(self) -> Any:
        return next(self.batches, None)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The exported module with int8 weights and activations."""
    folder: Path = tmp_path_factory.mktemp("quantised")
    whole, small = str(folder / "float.onnx"), str(folder / "int8.onnx")
    torch.onnx.export(reference(), (torch.from_numpy(X),), whole, dynamo=True, verbose=False)
    logging.disable(logging.WARNING)
    try:
        quantization.quantize_static(
            whole,
            small,
            Calibration(onnx.load(whole).graph.input[0].name),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(small)


def check(model: Any, **options: Any) -> Report:
    fixed = {"weights": "keep", "explain": False}
    return crosscheck.check(reference(), model, {"x": X}, **{**fixed, **options})


def changed(model: Any, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(t for t in copy.graph.initializer if t.name == name)
    value = change(onnx.numpy_helper.to_array(tensor))
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(value), name))
    return copy


def dequantised_with(model: Any, value: str, factor: float) -> Any:
    """One activation is dequantised with another scale than it was quantised with."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    node = next(n for n in copy.graph.node if n.name == f"{value}_DequantizeLinear")
    scale = next(t for t in copy.graph.initializer if t.name == node.input[1])
    other = onnx.numpy_helper.to_array(scale) * np.float32(factor)
    node.input[1] = "another_scale"
    copy.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(other), "another_scale"))
    return copy


def wrong(report: Report, phase: str) -> list[str]:
    return [s.reference for s in report.sites if s.phase == phase and s.verdict != "agree"]


def test_an_honest_one_agrees_within_its_steps(quantised: Any) -> None:
    report = check(quantised)
    assert report.verdict == "agree", str(report)
    assert report.coverage.parameters_matched == 6 and report.coverage.aligned >= 5
    errors = [s.metrics.rel_l2 for s in report.sites if s.phase == "forward" and s.metrics]
    assert max(errors) > 1e-3, "nothing was rounded: the test shows nothing"
    assert any("quantised: judged by its step" in n for s in report.sites for n in s.notes)


@pytest.mark.parametrize("factor", [1.02, 2.0])
def test_a_wrong_scale_of_a_weight_is_located(quantised: Any, factor: float) -> None:
    report = check(changed(quantised, "2.weight_scale", lambda s: s * np.float32(factor)))
    assert wrong(report, "weights") == ["2.weight"]


def test_a_wrong_zero_point_of_a_weight_is_located(quantised: Any) -> None:
    report = check(changed(quantised, "4.weight_zero_point", lambda z: (z + 3).astype(z.dtype)))
    assert wrong(report, "weights") == ["4.weight"]
    assert set(wrong(report, "forward")) <= {"4", "output"} and wrong(report, "forward")


@pytest.mark.parametrize("factor", [1.05, 2.0])
def test_a_wrong_scale_of_an_activation_is_located(quantised: Any, factor: float) -> None:
    report = check(dequantised_with(quantised, "linear_1", factor))
    assert wrong(report, "weights") == []
    first = report.first_divergence
    assert first is not None and wrong(report, "forward")[0] in ("2", "3"), str(report)


def test_weights_are_not_copied_into_integers(quantised: Any) -> None:
    with pytest.raises(crosscheck.InvalidArgument, match='is quantised.*\n.*weights="keep"'):
        check(quantised, weights="copy")
