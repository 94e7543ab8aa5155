"""ONNX: what goes wrong, and what is said then."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from crosscheck.adapters.base import ModelRaised  # noqa: E402
from crosscheck.adapters.onnx.adapter import OnnxAdapter, find  # noqa: E402
from crosscheck.adapters.onnx.options import Options  # noqa: E402
from crosscheck.errors import DeviceUnavailable, InvalidArgument, MissingFramework  # noqa: E402

from .kit import X, ones  # noqa: E402
from .onnx_kit import net, nodes_of, proto  # noqa: E402
from .torch_kit import Layers  # noqa: E402


def look(site: str, kind: str, value: np.ndarray) -> None:
    return None


def test_find_leaves_others_alone(tmp_path: Path) -> None:
    assert find(object()) is None
    assert find(net("mlp")) is None
    assert find(object(), export="onnx") is None
    assert find(str(tmp_path / "net.safetensors")) is None


def test_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="there is no such file"):
        find(tmp_path / "net.onnx")
    (tmp_path / "text.onnx").write_text("this is no protobuf, and not at all a model")
    with pytest.raises(InvalidArgument, match="not a readable ONNX file"):
        find(tmp_path / "text.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(InvalidArgument, match="its graph is empty"):
        find(tmp_path / "empty.onnx")
    onnx.save_model(
        proto("mlp"),
        tmp_path / "net.onnx",
        save_as_external_data=True,
        location="gone",
        size_threshold=0,
    )
    (tmp_path / "gone").unlink()
    with pytest.raises(InvalidArgument, match="gone"):
        find(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({}, r"takes 1 inputs \(`x`\); it was given 0 \(none\)"),
        ({"x": X, "y": X}, r"takes 1 inputs \(`x`\); it was given 2 \(`x`, `y`\)"),
        (
            {"x": X.astype(np.float64)},
            r"`x` is float64 \(6, 4\); the ONNX model takes float32 \(6, 4\)",
        ),
        ({"z": X[:, :3]}, r"`z` \(the model's `x`\) is float32 \(6, 3\)"),
        ({"x": X[0]}, r"`x` is float32 \(4,\); the ONNX model takes float32 \(6, 4\)"),
    ],
)
def test_inputs(inputs: dict[str, np.ndarray], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        OnnxAdapter(proto("mlp")).run(inputs, look)


def test_what_it_cannot_do() -> None:
    adapter = OnnxAdapter(proto("mlp"))
    assert not adapter.capabilities.cotangents
    assert not adapter.capabilities.train
    options: dict[str, Any]
    for options, text in (
        ({"cotangents": ones}, "no backward pass"),
        ({"train": True}, "no train mode"),
    ):
        with pytest.raises(InvalidArgument, match=text):
            adapter.run({"x": X}, look, **options)


def test_options() -> None:
    with pytest.raises(InvalidArgument, match='"none", "basic", "extended", "all"'):
        find(proto("mlp"), optimization="full")
    with pytest.raises(InvalidArgument, match="Give one"):
        find(proto("mlp"), optimization="all", session_options=ort.SessionOptions())
    with pytest.raises(InvalidArgument, match="is a dict, not onnxruntime.SessionOptions"):
        find(proto("mlp"), session_options={})
    with pytest.raises(InvalidArgument, match='must be "onnx"'):
        find(net("mlp"), export="tflite")
    with pytest.raises(DeviceUnavailable, match="CUDAExecutionProvider"):
        find(proto("mlp"), providers=["CUDAExecutionProvider"])
    adapter = find(proto("mlp"), session_options=ort.SessionOptions())
    assert adapter is not None
    adapter.run({"x": X}, look)
    assert "session_options are the caller's" in adapter.notes[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("ir", "opset", "text"),
    [
        (10, 99, r"written for opset 99; ONNX Runtime [\d.]+ takes opsets up to (\d+)"),
        (99, 18, r"has IR version 99; ONNX Runtime [\d.]+ takes versions up to (\d+)"),
        (3, 5, r"written for opset 5, in which ONNX Runtime [\d.]+ has no Relu"),
    ],
)
def test_versions_that_the_runtime_does_not_take(ir: int, opset: int, text: str) -> None:
    model = onnx.parser.parse_model(
        f'<ir_version: {ir}, opset_import: ["": {opset}]> net (float[6,4] x) => (float[6,4] y) '
        "{ y = Relu(x) }"
    )
    with pytest.raises(InvalidArgument, match=text) as error:
        OnnxAdapter(model).run({"x": X}, look)
    assert "Fix: " in str(error.value)


def test_external_data_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save_model(
        proto("mlp"), path, save_as_external_data=True, location="data", size_threshold=0
    )
    with open(tmp_path / "data", "r+b") as file:
        file.truncate(6)
    with pytest.raises(InvalidArgument, match="net.onnx"):
        find(path)


def test_an_operator_that_does_not_exist() -> None:
    model = proto("mlp")
    (relu,) = nodes_of(model, "block.act", "Relu")
    relu.op_type = "Relux"
    with pytest.raises(ModelRaised) as error:
        OnnxAdapter(model).run({"x": X}, look)
    assert error.value.site == "block.act"
    assert "Relux" in str(error.value.__cause__)


@pytest.mark.parametrize("optimization", ["none", "all"])
def test_a_node_that_fails(optimization: str) -> None:
    model = proto("raising")
    weight = next(t for t in model.graph.initializer if t.name == "fc.weight")
    assert list(weight.dims) == [4, 4]
    (gemm,) = nodes_of(model, "fc", "Gemm")
    gemm.input[0] = "wrong"
    shape = np.array([3, 8], np.int64)
    model.graph.initializer.append(onnx.numpy_helper.from_array(shape, "shape"))
    scopes = gemm.metadata_props
    reshape = onnx.helper.make_node("Reshape", ["x", "shape"], ["wrong"], "node_wrong")
    reshape.metadata_props.extend(scopes)
    model.graph.node.insert(0, reshape)
    del model.graph.value_info[:]
    with pytest.raises(ModelRaised) as error:
        OnnxAdapter(model, Options(optimization=optimization)).run({"x": X}, look)
    assert (error.value.site, error.value.stage) == ("fc", "forward")


def test_a_module_that_cannot_be_exported() -> None:
    def forward(m: Any, x: Any) -> Any:
        return m.fc(x) if float(x.sum().item()) > 0 else x

    adapter = find(Layers(forward, fc=torch.nn.Linear(4, 4)), export="onnx")
    assert adapter is not None
    with pytest.raises(ModelRaised) as error:
        adapter.run({"x": X}, look)
    assert (error.value.site, error.value.stage) == (None, "export")


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingFramework, match=r"pip install 'crosscheck\[onnx\]'"):
        find(proto("mlp"))
