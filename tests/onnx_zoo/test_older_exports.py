"""Files of PyTorch's older exporter: no module paths; weights transposed, folded and renamed."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import crosscheck  # noqa: E402

IMAGE, SEQUENCE = "float32[2,3,11,13]", "float32[2,5,12]"


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class Block(nn.Module):
    """Two residual branches; the norms are written out in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.mix, self.proj = RMSNorm(12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.norm2, self.up, self.down = RMSNorm(12), nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.mix(self.norm1(x))
        scores = (h @ h.transpose(1, 2) / math.sqrt(12)).softmax(-1)
        x = x + self.proj(scores @ h)
        return x + self.down(F.silu(self.up(self.norm2(x))))


class Folding(nn.Module):
    """Residual convolutions, each with a BatchNorm that the exporter folds into it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.bn0 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn0(self.conv0(x)))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.head(x.mean((2, 3)))


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2.0).sub_(1.0 if "mean" in name else 0.0)
    return model.eval()


def exported(model: nn.Module, shape: tuple[int, ...]) -> Any:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.ones(shape),), file, dynamo=False, opset_version=17)
    return onnx.load_from_string(file.getvalue())


def check(model: nn.Module, proto: Any, inputs: str, weights: str = "keep") -> Any:
    return crosscheck.check(model, proto, inputs, weights=weights, gradients=False)


def nodes(proto: Any, op: str) -> list[Any]:
    return [node for node in proto.graph.node if node.op_type == op]


def alter(proto: Any, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    value = change(onnx.numpy_helper.to_array(tensor).copy()).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, name))


@pytest.mark.parametrize("weights", ["keep", "copy"])
def test_transposed_weights_and_norms_that_are_written_out(weights: str) -> None:
    """The weight of a Linear is another's name and layout, and a norm's last node, which has its
    name, is not given what the norm is given."""
    model = made(Block)
    proto = exported(model, (2, 5, 12))
    assert sum(t.name.startswith("onnx::MatMul") for t in proto.graph.initializer) == 4
    report = check(model, proto, SEQUENCE, weights)
    assert report.verdict == "agree", str(report)
    held = {s.reference for s in report.sites if s.phase == "weights"}
    assert held == {name for name, _ in model.named_parameters()}


def test_a_wrong_norm_that_is_written_out() -> None:
    model = made(Block)
    proto = exported(model, (2, 5, 12))
    alter(proto, "norm2.weight", lambda v: v * 1.01)
    report = check(model, proto, SEQUENCE)
    found = {(d.phase, d.reference) for d in report.divergences}
    assert found == {("weights", "norm2.weight"), ("forward", "norm2")}, str(report)


def test_a_weight_that_is_not_the_transpose() -> None:
    model = made(Block)
    proto = exported(model, (2, 5, 12))
    wrong = next(n.input[1] for n in nodes(proto, "MatMul") if "proj" in n.name)
    alter(proto, wrong, np.transpose)
    first = check(model, proto, SEQUENCE).first_divergence
    assert (first.phase, first.reference) == ("weights", "proj.weight")


def test_folded_norms_are_compared_by_what_they_return() -> None:
    model = made(Folding)
    proto = exported(model, (2, 3, 11, 13))
    assert not nodes(proto, "BatchNormalization")
    report = check(model, proto, IMAGE)
    assert report.verdict == "agree", str(report)
    seen = {s.reference for s in report.sites if s.phase == "forward" and s.kind == "activation"}
    assert {"bn0", "bn1", "bn2", "head"} <= seen
    assert {s.reference for s in report.sites if s.phase == "weights"} == {
        "head.weight",
        "head.bias",
    }


def optimised(model: nn.Module, level: str, folder: Path) -> Any:
    """As ONNX Runtime writes it."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = {"training": torch.onnx.TrainingMode.EVAL, "do_constant_folding": False}
        example = (torch.ones(2, 3, 11, 13),)
        torch.onnx.export(model, example, file, dynamo=False, opset_version=17, **kept)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED"])
def test_a_file_that_onnx_runtime_optimised(level: str, trained: bool, tmp_path: Path) -> None:
    """Norms are folded, and activations fused; one that was not trained changes next to nothing."""
    torch.manual_seed(0)
    model = made(Folding) if trained else Folding().eval()
    proto = optimised(model, level, tmp_path)
    folded = [t.name for t in proto.graph.initializer if t.name.startswith("ConvBnFusion_W")]
    assert len(folded) == 3 and not nodes(proto, "BatchNormalization")
    report = check(model, proto, IMAGE)
    assert report.verdict == "agree", str(report)
    said = " ".join(report.coverage.not_compared)
    assert all(f"`conv{i}.weight`, or its gradient" in said for i in range(3))


def test_a_mistake_in_a_file_that_onnx_runtime_optimised(tmp_path: Path) -> None:
    model = made(Folding)
    proto = optimised(model, "ORT_ENABLE_BASIC", tmp_path)
    wrong = next(n.input[1] for n in nodes(proto, "Conv") if "conv1" in n.name)
    alter(proto, wrong, lambda v: v * np.linspace(1.0, 1.3, len(v))[:, None, None, None])
    found = {(d.phase, d.reference) for d in check(model, proto, IMAGE).divergences}
    assert found == {("forward", "bn1")}
