"""The backward pass of a module that was exported here, run by ONNX Runtime."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

import crosscheck  # noqa: E402
from crosscheck.adapters.base import ModelRaised  # noqa: E402
from crosscheck.adapters.onnx.adapter import find  # noqa: E402
from crosscheck.adapters.onnx.decompositions import table  # noqa: E402
from crosscheck.adapters.onnx.vjp import pair_keys  # noqa: E402
from crosscheck.adapters.torch.adapter import TorchAdapter  # noqa: E402
from crosscheck.errors import InvalidArgument  # noqa: E402
from crosscheck.observers import Forcer, Recorder  # noqa: E402

from .contract import Contract  # noqa: E402
from .kit import Kit, Suite, X, ones, record  # noqa: E402
from .onnx_kit import example, net, proto  # noqa: E402
from .torch_kit import Layers, TorchKit  # noqa: E402


class ExportKit(TorchKit):
    """Exporting takes about a second each, and no run leaves a trace: one adapter per model."""

    def build(self, name: str) -> nn.Module:
        return net(name)

    def adapt(self, model: Any) -> Any:
        return adapter_of(model)


@functools.cache
def adapter_of(model: Any) -> Any:
    return find(model, export="onnx", gradients=True)


class TestContract(Suite):
    """The backward half."""

    kit: Kit = ExportKit()
    expected_mlp = Contract.expected_mlp

    test_backward_order = Contract.test_backward_order
    test_float32_values = Contract.test_float32_values
    test_forward_order = Contract.test_forward_order_sources_parents
    test_gradients_of_a_forced_run = Contract.test_gradients_of_a_forced_run_use_the_forced_values
    test_force_a_cotangent = Contract.test_force_a_cotangent
    test_force_an_input_cotangent = Contract.test_force_an_input_cotangent
    test_an_input_cotangent_is_the_layers_own = Contract.test_an_input_cotangent_is_the_layers_own

    @pytest.mark.slow
    def test_shared_layer_has_a_site_per_call(self) -> None:
        Contract.test_shared_layer_has_a_site_per_call(self)  # type: ignore[arg-type]

    @pytest.mark.slow
    def test_a_cotangent_that_never_arrives(self) -> None:
        Contract.test_a_cotangent_that_never_arrives_is_zero(self)  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_embedding_and_overrides() -> None:
    ours, theirs = adapter_of(net("embedding")), TorchAdapter(net("embedding"))
    inputs, value = example("embedding"), {"head.weight": np.ones((3, 4), np.float32)}
    for overrides in ({}, value):
        a, found = record(ours, inputs, cotangents=ones, overrides=overrides)
        b, expected = record(theirs, inputs, cotangents=ones, overrides=overrides)
        for key, cotangent in b.items():
            np.testing.assert_allclose(a[key], cotangent, atol=1e-6, err_msg=str(key))
        for name, gradient in expected.parameter_gradients.items():
            np.testing.assert_allclose(found.parameter_gradients[name], gradient, atol=1e-6)
    assert [p.trainable for p in ours.parameters()] == [True] * 3


@pytest.mark.slow
def test_several_outputs() -> None:
    """A dictionary's keys are not in the file, and either output may receive a cotangent."""
    ours, theirs = adapter_of(net("structured")), TorchAdapter(net("structured"))
    for wanted in (0, 1):

        def only(outputs: dict[str, np.ndarray], wanted: int = wanted) -> dict[str, np.ndarray]:
            site = list(outputs)[wanted]
            return {site: np.ones_like(outputs[site])}

        _, found = record(ours, cotangents=only)
        _, expected = record(theirs, cotangents=only)
        for name, gradient in expected.parameter_gradients.items():
            np.testing.assert_allclose(found.parameter_gradients[name], gradient, atol=1e-6)


def test_an_observer_that_cannot_plan() -> None:
    def double(site: str, kind: str, value: np.ndarray) -> np.ndarray | None:
        return 2 * value if (kind, site) == ("cotangent", "block") else None

    ours, _ = record(adapter_of(net("mlp")), observer=double)
    theirs, _ = record(TorchAdapter(net("mlp")), observer=double)
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, atol=1e-5, err_msg=str(key))


def test_a_passive_run_shows_no_input_cotangents() -> None:
    free, info = record(adapter_of(net("mlp")), passive=True)
    assert ("cotangent", "fc1") in free
    assert not [key for key in free if key[0] == "input_cotangent"]
    assert info.parameter_gradients["fc1.weight"].any()


def test_convolution_normalization_and_pooling() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, padding=1),
        nn.Conv2d(4, 4, 2, groups=2, bias=False),
        nn.GELU(),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.LazyLinear(3),
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 12, 11)).astype(np.float32)
    model.eval()(torch.tensor(x))
    report = crosscheck.check(model, adapter_of(model), {"x": x}, weights="keep")
    assert report.verdict == "agree", str(report)
    gradients = [s.reference for s in report.sites if s.phase == "parameter_gradient"]
    assert len(gradients) == 7


@pytest.mark.slow
def test_a_value_that_a_layer_overwrites_for_others() -> None:
    def forward(m: Any, x: Any) -> Any:
        h = m.fc(x)
        m.act(h)  # in place: what it returns is not used
        return m.head(h) + h

    model = Layers(forward, fc=nn.Linear(4, 3), act=nn.ReLU(inplace=True), head=nn.Linear(3, 3))
    ours, found = record(adapter_of(model))
    theirs, expected = record(TorchAdapter(model))
    for name, gradient in expected.parameter_gradients.items():
        np.testing.assert_allclose(found.parameter_gradients[name], gradient, atol=1e-6)
    np.testing.assert_allclose(
        ours["input_cotangent", "fc"], theirs["input_cotangent", "fc"], atol=1e-6
    )


@pytest.mark.slow
def test_a_tensor_that_a_layer_is_given_several_times() -> None:
    """Query, key and value: one input in the file, whose cotangent is the sum."""
    model = Layers(lambda m, x: m.attention(x, x, x)[0], attention=nn.MultiheadAttention(4, 2))
    report = crosscheck.check(model, adapter_of(model), "float32[5,2,4]", weights="keep")
    assert report.verdict == "agree", str(report)
    own = [s for s in report.sites if s.kind == "input_cotangent"]
    assert [s.candidate for s in own] == ["attention"]


def test_a_wrong_kernel_is_found_in_the_backward_pass() -> None:
    """One operation of the graph altered stands in for a kernel that computes something else."""
    model = net("mlp")
    adapter: Any = find(model, export="onnx", gradients=True)
    right = crosscheck.check(model, adapter, "float32[6,4]", weights="keep")
    assert (right.verdict, right.coverage.not_compared) == ("agree", ())
    assert {"backward", "parameter_gradient"} <= {site.phase for site in right.sites}
    assert any("it checks the kernels, not the formulas" in note for note in right.notes)
    graph = adapter._backward.graph
    source = graph.cotangents["input_cotangent", "fc2"]
    (product,) = [n for n in graph.proto.graph.node if source in n.output]
    while product.op_type not in ("MatMul", "Gemm"):
        (product,) = [n for n in graph.proto.graph.node if product.input[0] in n.output]
    scaled = onnx.helper.make_node("Mul", [product.output[0] + "_right", "scale"], product.output)
    product.output[0] += "_right"
    place = list(graph.proto.graph.node).index(product)
    graph.proto.graph.node.insert(place + 1, scaled)
    scale = onnx.numpy_helper.from_array(np.array(1.001, np.float32), "scale")
    graph.proto.graph.initializer.append(scale)
    adapter._backward = type(adapter._backward)(graph, adapter._options)
    report = crosscheck.check(model, adapter, "float32[6,4]", weights="keep")
    assert [(d.phase, d.candidate) for d in report.divergences] == [("backward", "fc2")]


def test_a_file_has_none() -> None:
    with pytest.raises(InvalidArgument, match="an ONNX file has no backward pass"):
        find(proto("mlp"), gradients=True)
    adapter: Any = find(net("mlp"), export="onnx")
    assert not adapter.capabilities.cotangents
    with pytest.raises(InvalidArgument, match="no backward pass"):
        adapter.run({"x": X}, Recorder(), cotangents=ones)


def test_a_derivative_without_an_operator() -> None:
    model = Layers(lambda m, x: torch.special.bessel_j0(m.fc(x)).exp(), fc=nn.Linear(4, 3))
    model.function = lambda m, x: torch.linalg.eigvalsh(m.fc(x).T @ m.fc(x))
    adapter: Any = find(model, export="onnx", gradients=True)
    with pytest.raises(ModelRaised) as error:
        adapter.run({"x": X}, Recorder(), cotangents=ones)
    assert error.value.stage in ("export", "exported backward")


def test_values_pair_keys_where_the_order_differs() -> None:
    a, b = np.ones(3, np.float32), np.zeros(3, np.float32)
    ours = {("input", "add"): a, ("input", "add:1"): b, ("activation", "add"): a + b}
    theirs = {("input", "add"): b, ("input", "add:1"): a, ("activation", "add"): a + b}
    assert pair_keys(ours, theirs) == {  # type: ignore[arg-type]
        ("input", "add"): ("input", "add:1"),
        ("input", "add:1"): ("input", "add"),
        ("activation", "add"): ("activation", "add"),
    }
    assert pair_keys({("input", "f"): a}, {("input", "f"): 2 * a}) == {}


# -- derivatives written by hand -------------------------------------------------------------------


def tensors(*shapes: tuple[int, ...]) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def gradients(function: Any, arguments: Any, dy: Any) -> Any:
    leaves = [a.detach().requires_grad_() for a in arguments]
    return torch.autograd.grad(function(*leaves), leaves, dy)


def check(function: Any, *shapes: tuple[int, ...]) -> None:
    arguments = tensors(*shapes)
    dy = torch.randn_like(function(*arguments))
    graph = make_fx(lambda dy, *a: gradients(function, a, dy), decomposition_table=table())(
        dy, *arguments
    )
    called = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
    assert not [name for name in called if "backward" in name]
    for ours, theirs in zip(graph(dy, *arguments), gradients(function, arguments, dy), strict=True):
        np.testing.assert_allclose(ours.detach(), theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stride, padding, dilation, groups", [
    (1, 0, 1, 1), (2, 1, 1, 1), (2, 1, 2, 2), (3, 2, 1, 4), ((2, 1), (0, 1), (1, 2), 2),
])  # fmt: skip
def test_convolutions(stride: Any, padding: Any, dilation: Any, groups: int) -> None:
    check(
        lambda x, w, b: F.conv2d(x, w, b, stride, padding, dilation, groups),
        (3, 4, 9, 8),
        (8, 4 // groups, 3, 2),
        (8,),
    )
    extra = max(np.max(stride) - 1, 0) if isinstance(stride, int) else 0
    check(
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride, padding, extra, groups, dilation),
        (3, 4, 5, 6),
        (4, 8 // groups, 3, 2),
        (8,),
    )


def test_convolutions_of_other_dimensions() -> None:
    check(lambda x, w: F.conv1d(x, w, None, 2, 1), (3, 4, 9), (6, 4, 3))
    check(lambda x, w: F.conv3d(x, w, None, 2, 1, 1, 2), (2, 4, 5, 4, 6), (6, 2, 3, 2, 3))


@pytest.mark.parametrize("options", [
    {"scale_factor": 2}, {"size": (5, 9)}, {"scale_factor": 1.6, "mode": "bilinear"},
    {"size": (7, 3), "mode": "bilinear", "align_corners": True},
])  # fmt: skip
def test_interpolation(options: dict[str, Any]) -> None:
    check(lambda x: F.interpolate(x, **options), (2, 3, 4, 6))


@pytest.mark.parametrize("kernel, stride, padding, ceil", [
    (3, 2, 1, False), (2, 3, 0, False), (3, 2, 1, True), ((3, 2), (2, 1), (1, 0), True),
])  # fmt: skip
def test_pooling(kernel: Any, stride: Any, padding: Any, ceil: bool) -> None:
    shape = (2, 3, 9, 8)
    check(lambda x: F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil), shape)
    for padded in (True, False):
        check(lambda x, p=padded: F.avg_pool2d(x, kernel, stride, padding, ceil, p), shape)


def test_pooling_otherwise() -> None:
    check(lambda x: F.avg_pool2d(x, 2, divisor_override=3), (2, 3, 9, 8))
    check(lambda x: F.max_pool3d(x, 2), (2, 3, 4, 6, 4))
    check(lambda x: F.avg_pool1d(x, 3, 2), (2, 3, 9))
    check(lambda x: F.max_pool1d(x, 3, 2), (3, 9))
    check(lambda x: F.adaptive_avg_pool2d(x, (4, 3)), (2, 3, 9, 8))


def test_forcing_traces_nothing_anew() -> None:
    adapter = adapter_of(net("mlp"))
    free, _ = record(adapter)
    kept = adapter._backward
    forced = {key: 2 * value for key, value in free.items() if key == ("cotangent", "fc2")}
    record(adapter, observer=Forcer(forced))
    assert adapter._backward is kept
