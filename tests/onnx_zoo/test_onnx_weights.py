"""An ONNX file as the source of weights for nets in other frameworks: whose is an initializer?"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import torch.nn as nn  # noqa: E402

import crosscheck  # noqa: E402
from crosscheck.adapters.onnx.adapter import OnnxAdapter  # noqa: E402
from crosscheck.adapters.onnx.export import export  # noqa: E402
from crosscheck.errors import CannotCompare  # noqa: E402
from crosscheck.pair import load_pair  # noqa: E402

MODELS = Path(__file__).resolve().parents[2] / "models"


@functools.cache
def exported(family: str) -> bytes:
    pair = load_pair(MODELS / family)
    serialized: bytes = export(pair.reference(), pair.inputs(0)).SerializeToString()
    return serialized


def as_it_is(model: Any) -> Any:
    return model


def nameless(model: Any) -> Any:
    """No module paths, no state-dict names, and the initializers in another order."""
    names = {t.name: f"onnx::W_{i * 37 % 101}" for i, t in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for node in model.graph.node:
        node.name = ""
        del node.metadata_props[:]
        node.input[:] = [names.get(value, value) for value in node.input]
    del model.graph.value_info[:]
    tensors = sorted(model.graph.initializer, key=lambda t: t.name)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    return model


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(("family", "candidate", "parameters", "rewrite"), [
    ("mlp", "numpy", 8, as_it_is),
    slow("mlp", "numpy", 8, nameless),
    slow("cnn", "numpy", 33, as_it_is),
    ("cnn", "numpy", 33, nameless),
    slow("gpt", "numpy", 28, as_it_is),
    ("gpt", "numpy", 28, nameless),
    slow("mlp", "keras", 8, as_it_is),
    ("mlp", "keras", 8, nameless),
    ("cnn", "keras", 33, as_it_is),
    slow("cnn", "keras", 33, nameless),
])  # fmt: skip
def test_weights_come_from_a_file(
    family: str, candidate: str, parameters: int, rewrite: Callable[[Any], Any], tmp_path: Path
) -> None:
    if candidate == "keras":
        pytest.importorskip("tensorflow")
    pair = load_pair(MODELS / family)
    onnx.save(rewrite(onnx.load_from_string(exported(family))), tmp_path / "net.onnx")
    report = crosscheck.check(
        str(tmp_path / "net.onnx"),
        pair.candidate[candidate](),
        pair.inputs(0),
        candidate_inputs=(pair.candidate_inputs or {}).get(candidate),
        weights="copy",
    )
    assert report.verdict == "agree", str(report)
    assert report.coverage.parameters_matched == parameters
    assert report.coverage.unmatched_reference_parameters == ()
    assert any("no backward pass" in line for line in report.coverage.not_compared)


# -- JAX -------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Any) -> Any:
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


def small(rewrite: Callable[[Any], Any]) -> Any:
    model = Small().eval()
    model.bn.running_mean.uniform_(-1, 1)
    model.bn.running_var.uniform_(0.5, 2)
    return rewrite(export(model, {"x": np.zeros((2, 3, 7, 6), np.float32)}))


@pytest.mark.parametrize("rewrite", [slow(as_it_is), nameless])
def test_weights_for_a_flax_module(rewrite: Callable[[Any], Any]) -> None:
    pytest.importorskip("flax")
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.conv = nnx.Conv(3, 5, (3, 3), padding=1, rngs=rngs)
            self.bn = nnx.BatchNorm(5, use_running_average=True, epsilon=1e-5, rngs=rngs)
            self.fc = nnx.Linear(5, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.fc(nnx.relu(self.bn(self.conv(x))).mean((1, 2)))

    report = crosscheck.check(
        small(rewrite),
        Net(),
        "float32[2,3,7,6]",
        candidate_inputs=lambda given: given["x"].transpose(0, 2, 3, 1),
    )
    assert report.verdict == "agree", str(report)
    assert report.coverage.parameters_matched == 8


def test_weights_for_a_jax_function() -> None:
    jax = pytest.importorskip("jax")
    pair = load_pair(MODELS / "mlp")
    rng = np.random.default_rng(0)
    sizes = {"fc1": (64, 48), "fc2": (48, 32), "fc3": (32, 10)}
    params: Any = {k: {"w": rng.normal(size=s), "b": np.zeros(s[1])} for k, s in sizes.items()}
    params["norm"] = {"gamma": np.ones(48), "beta": np.zeros(48)}
    params = jax.tree.map(lambda a: jax.numpy.asarray(a, dtype="float32"), params)

    def mlp(p: Any, x: Any) -> Any:
        h = x @ p["fc1"]["w"] + p["fc1"]["b"]
        centred = h - h.mean(-1, keepdims=True)
        h = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        h = jax.nn.leaky_relu(h * p["norm"]["gamma"] + p["norm"]["beta"])
        h = jax.nn.hard_swish(h @ p["fc2"]["w"] + p["fc2"]["b"])
        return h @ p["fc3"]["w"] + p["fc3"]["b"]

    report = crosscheck.check(
        onnx.load_from_string(exported("mlp")),
        crosscheck.adapt(mlp, params=params),
        pair.inputs(3),
    )
    assert report.verdict == "agree", str(report)
    assert report.coverage.parameters_matched == 8


# -- what cannot be carried ------------------------------------------------------------------------


def test_a_folded_batchnorm_has_no_parameters_left() -> None:
    model = nameless(onnx.load_from_string(exported("cnn")))
    for norm in [n for n in model.graph.node if n.op_type == "BatchNormalization"]:
        norm.op_type = "Identity"
        del norm.attribute[:], norm.input[1:]
    used = {value for node in model.graph.node for value in node.input}
    kept = [t for t in model.graph.initializer if t.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    pair = load_pair(MODELS / "cnn")
    with pytest.raises(CannotCompare, match=r"`stem\.bn\.weight` \(8,\) has no counterpart"):
        crosscheck.check(model, pair.candidate["numpy"](), pair.inputs(0))


def test_a_norm_that_the_file_writes_out() -> None:
    """As exporters do below opset 17."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]> net (float[6,4] x) => (float[6,4] y)
        <float[4] a = {1, 2, 3, 4}, float[4] b = {5, 6, 7, 8}, float eps = {0.00001},
         float two = {2}> {
            mean = ReduceMean <axes = [-1]> (x)
            c = Sub(x, mean)
            square = Pow(c, two)
            variance = ReduceMean <axes = [-1]> (square)
            shifted = Add(variance, eps)
            root = Sqrt(shifted)
            unit = Div(c, root)
            scaled = Mul(unit, a)
            y = Add(scaled, b)
        }"""
    )
    found = [(p.name, p.role, p.kind, p.layer) for p in OnnxAdapter(model).parameters()]
    assert found == [("a", "weight", "norm", "scaled"), ("b", "bias", "norm", "scaled")]


def test_a_bias_that_is_added_behind_a_cast() -> None:
    """As PyTorch's older exporter writes Keras' layers."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]> net (float[6,4] x) => (float[6,3] y)
        <float[4,3] k = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[3] b = {5, 6, 7}> {
            product = MatMul(x, k)
            cast = Cast <to = 1> (product)
            y = Add(cast, b)
        }"""
    )
    found = [(p.name, p.role, p.kind, p.layer) for p in OnnxAdapter(model).parameters()]
    assert found == [("k", "weight", "dense", "product"), ("b", "bias", "dense", "product")]


def in_torchscript(model: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.zeros(2, 3, 7, 6),), str(path), dynamo=False)


def optimised_by_the_exporter(model: Any, path: Path) -> None:
    given = (torch.zeros(2, 3, 7, 6),)
    torch.onnx.export(model, given, dynamo=True, optimize=True, verbose=False).save(str(path))


def optimised_by_onnx_runtime(model: Any, path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    file = export(model, {"x": np.zeros((2, 3, 7, 6), np.float32)})
    onnxruntime.InferenceSession(
        file.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize(
    "make", [in_torchscript, optimised_by_the_exporter, optimised_by_onnx_runtime]
)
def test_a_merged_norm_is_the_reason_that_weights_are_refused(
    make: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    make(Small().eval(), tmp_path / "net.onnx")
    with pytest.raises(CannotCompare, match="merged norms.*\n.*for `bn`, give the file as it was"):
        crosscheck.check(Small().eval(), str(tmp_path / "net.onnx"), "float32[2,3,7,6]")


@pytest.mark.parametrize(
    "make", [in_torchscript, optimised_by_the_exporter, optimised_by_onnx_runtime]
)
def test_no_merged_norm_is_told_where_the_file_lacks_one(
    make: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    class Without(Small):
        def forward(self, x: Any) -> Any:
            return self.fc(self.conv(x).relu().mean((2, 3)))

    make(Without().eval(), tmp_path / "net.onnx")
    with pytest.raises(CannotCompare) as caught:
        crosscheck.check(Small().eval(), str(tmp_path / "net.onnx"), "float32[2,3,7,6]")
    assert "does the candidate lack a layer" in str(caught.value)
    assert "merged" not in str(caught.value)
