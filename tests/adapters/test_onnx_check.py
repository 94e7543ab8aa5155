"""A PyTorch model against its export: what is right agrees, defects are found in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import crosscheck  # noqa: E402
from crosscheck.adapters.onnx.adapter import OnnxAdapter, find  # noqa: E402
from crosscheck.adapters.onnx.options import Options  # noqa: E402

from .onnx_kit import INPUTS, export, net, nodes_of, proto, without_metadata  # noqa: E402


@pytest.mark.parametrize("optimization", ["none", "all"])
@pytest.mark.parametrize("name", ["cnn", "gpt"])
def test_an_export_agrees(name: str, optimization: str) -> None:
    adapter = OnnxAdapter(proto(name), Options(optimization=optimization))
    adapter.load({p.name: 0.5 * np.ones_like(p.value) for p in adapter.parameters()})
    report = crosscheck.check(net(name), adapter, INPUTS[name])
    assert report.verdict == "agree"
    coverage = report.coverage
    assert coverage.aligned == {"cnn": 15, "gpt": 26}[name]
    assert coverage.unmatched_reference == coverage.unmatched_candidate == ()
    assert coverage.unmatched_candidate_parameters == ()
    assert any("no backward pass" in line for line in coverage.not_compared)


def test_as_reference() -> None:
    """Without float64 the floor is estimated from perturbed runs."""
    report = crosscheck.check(OnnxAdapter(proto("cnn")), net("cnn"), INPUTS["cnn"], weights="keep")
    assert report.verdict == "agree"
    assert report.coverage.unmatched_candidate == ()


def test_a_file_without_module_paths() -> None:
    adapter = OnnxAdapter(without_metadata(proto("cnn")))
    report = crosscheck.check(net("cnn"), adapter, INPUTS["cnn"])
    assert report.verdict == "agree"
    assert report.coverage.unmatched_reference == ()
    assert report.coverage.parameters_matched == 17


def test_a_module_exported_on_the_fly() -> None:
    adapter = find(net("cnn"), export="onnx")
    report = crosscheck.check(net("cnn"), adapter, INPUTS["cnn"])
    assert report.verdict == "agree"
    assert report.coverage.aligned == 15


def test_a_folded_batchnorm_is_said_and_no_divergence() -> None:
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 3, 1), torch.nn.BatchNorm1d(3), torch.nn.ReLU())
    model[1].running_mean.uniform_(-1, 1)
    inputs = {"x": np.zeros((2, 4, 5), np.float32)}
    file = export(model.train(), inputs, optimize=True)
    report = crosscheck.check(model.eval(), file, "float32[2,4,5]", weights="keep")
    assert report.verdict == "agree", str(report)
    assert report.coverage.unmatched_reference == ("0",)
    assert set(report.coverage.unmatched_reference_parameters) >= {"1.weight", "1.running_var"}
    assert any("BatchNorm `1`: folded into the layer before it" in n for n in report.notes)
    assert any("exported from a model in train mode" in note for note in report.notes)


# -- planted defects -------------------------------------------------------------------------------


def epsilon(model: Any) -> None:
    (norm,) = nodes_of(model, "blocks.1.ln2", "LayerNormalization")
    (attribute,) = [a for a in norm.attribute if a.name == "epsilon"]
    attribute.f = 1e-3


def transposed(model: Any) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "blocks.0.attn.proj.weight")
    value = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(value.T.copy(), tensor.name))


def swapped(model: Any) -> None:
    """Queries and keys."""
    q, k, _ = [n for n in nodes_of(model, "blocks.1.attn", "Transpose") if "view" in n.input[0]]
    q.input[0], k.input[0] = k.input[0], q.input[0]


@pytest.mark.parametrize(
    ("defect", "phase", "place", "optimization"),
    [
        (epsilon, "forward", "blocks.1.ln2", "none"),
        (epsilon, "forward", "blocks.1.ln2", "all"),
        (transposed, "weights", "blocks.0.attn.proj.weight", "all"),
        (swapped, "forward", "blocks.1.attn", "all"),
    ],
)
def test_a_defect_is_found(
    defect: Callable[[Any], None], phase: str, place: str, optimization: str, tmp_path: Path
) -> None:
    model = proto("gpt")
    defect(model)
    onnx.save(model, tmp_path / "gpt.onnx")
    adapter = find(tmp_path / "gpt.onnx", optimization=optimization)
    report = crosscheck.check(net("gpt"), adapter, INPUTS["gpt"], weights="keep")
    assert report.verdict == "diverge"
    first = report.first_divergence
    assert first is not None
    assert (first.phase, first.reference, first.candidate) == (phase, place, place)
    forward = [d for d in report.divergences if d.phase == "forward"]
    layer = place.removesuffix(".weight")
    assert [d.candidate for d in forward][:1] == [layer]
    innocent = [d.candidate for d in forward if not layer.startswith(d.candidate or "-")]
    assert innocent == []
