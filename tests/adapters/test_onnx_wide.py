"""ONNX in float64: the same graph with smaller roundings, as far as there are such kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import crosscheck  # noqa: E402
from crosscheck.adapters.base import ModelRaised  # noqa: E402
from crosscheck.adapters.onnx.adapter import OnnxAdapter, find  # noqa: E402
from crosscheck.adapters.onnx.options import Options  # noqa: E402
from crosscheck.adapters.torch.adapter import TorchAdapter  # noqa: E402
from crosscheck.errors import InvalidArgument  # noqa: E402
from crosscheck.judging.judge import NO_ORACLE  # noqa: E402
from crosscheck.observers import Comparer, Forcer, Recorder, chain  # noqa: E402
from crosscheck.oracle import oracle  # noqa: E402
from crosscheck.run import Runner  # noqa: E402

from .kit import X, ones  # noqa: E402
from .onnx_kit import example, export, net, proto  # noqa: E402

NETS = ["mlp", "two_inputs", "embedding", "norm", "returning", "gpt"]


def values_of(adapter: Any, inputs: Any, *observers: Any, **options: Any) -> dict[Any, np.ndarray]:
    recorder = Recorder()
    adapter.run(inputs, chain(recorder, *observers), **options)
    return dict(recorder.values)


def from_text(text: str, opset: int = 20) -> Any:
    head = f'<ir_version: 9, opset_import: ["" : {opset}]>'
    return onnx.parser.parse_model(f"{head}\n{text}")


# -- the same computation --------------------------------------------------------------------------


@pytest.mark.parametrize("optimization", ["none", "all"])
@pytest.mark.parametrize("name", NETS)
def test_it_is_pytorch_in_float64(name: str, optimization: str) -> None:
    adapter = OnnxAdapter(proto(name), Options(optimization=optimization))
    ours = values_of(adapter, example(name), float64=True, passive=True)
    theirs = values_of(TorchAdapter(net(name)), example(name), float64=True)
    assert ours.keys() == theirs.keys() - {("input", "pos")}  # a constant in the file
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype, key
        # An epsilon in an attribute is a float32.
        np.testing.assert_allclose(value, theirs[key], rtol=1e-11, atol=1e-11, err_msg=str(key))


@pytest.mark.parametrize("operator", ["Erf", "Gelu"])
def test_the_error_function(operator: str) -> None:
    text = f"net (float[n] x) => (float[n] y) {{ y = {operator} (x) }}"
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30, -1e-30, 5.9, -5.9, 7.0, -40.0]
    x = np.concatenate([special, np.linspace(-7, 7, 2001), np.geomspace(1e-9, 1, 50)])
    x = x.astype(np.float32)
    found = values_of(OnnxAdapter(from_text(text)), {"x": x}, float64=True)["activation", "output"]
    wide = torch.tensor(x, dtype=torch.float64)
    expected = torch.erf(wide) if operator == "Erf" else torch.nn.functional.gelu(wide)
    np.testing.assert_allclose(found[4:], expected[4:], rtol=1e-13, atol=3e-15)
    assert np.array_equal(found[:4], expected[:4].numpy(), equal_nan=True)


def test_the_session_that_runs_next_is_narrow_again() -> None:
    adapter = OnnxAdapter(proto("mlp"))
    before = values_of(adapter, {"x": X}, passive=True)
    values_of(adapter, {"x": X}, float64=True)
    after = values_of(adapter, {"x": X}, passive=True)
    assert all(after[key].tobytes() == value.tobytes() for key, value in before.items())


def test_weights_and_values_may_be_given_in_either_precision() -> None:
    adapter, theirs = OnnxAdapter(proto("mlp")), TorchAdapter(net("mlp"))
    rng = np.random.default_rng(0)
    overrides = {p.name: p.value + 1e-9 * rng.normal(size=p.value.shape)
                 for p in adapter.parameters()}  # fmt: skip
    for dtype in (np.float32, np.float64):
        forced = {("activation", "fc1"): rng.normal(size=(6, 5)).astype(dtype)}
        found = [
            values_of(side, {"x": X}, Forcer(forced), float64=True, overrides=overrides)
            for side in (adapter, theirs)
        ]
        for key, value in found[0].items():
            np.testing.assert_allclose(value, found[1][key], rtol=1e-13, err_msg=str(key))


def test_types_in_attributes_bodies_and_half_precision() -> None:
    """What names float or float16 names double then; numbers stay those of the file."""
    model = from_text("""
        net (float16[3] x, bool flag) => (float[3] y, int64[3] whole) {
            tenth = Constant <value_float = 0.1> ()
            list = Constant <value_floats = [0.1, 0.2, 0.3]> ()
            one = Constant <value = int64[1] {3}> ()
            fill = ConstantOfShape <value = float[1] {0.7}> (one)
            scaled = Mul (x, w)
            wide = Cast <to = 1> (scaled)
            chosen = If (flag) <
                then_branch = then () => (float[3] a) { a = Mul (wide, tenth) },
                else_branch = other () => (float[3] b) {
                    half = Cast <to = 10> (wide)
                    b = Cast <to = 1> (half)
                }
            >
            sum = Add (chosen, list)
            y = Sub (sum, fill)
            whole = Cast <to = 7> (x)
        }
    """)
    w = np.array([0.1, 0.2, 0.3], np.float16)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    x = np.array([1.1, -2.3, 3.7], np.float16)
    adapter = OnnxAdapter(model, Options(optimization="none"))
    constants = np.array([0.1, 0.2, 0.3], np.float32).astype(np.float64)
    product = x.astype(np.float64) * w.astype(np.float64)
    for flag in (True, False):
        inputs = {"x": x, "flag": np.array(flag)}
        found = values_of(adapter, inputs, float64=True)
        chosen = product * constants[0] if flag else product
        expected = chosen + constants - np.float64(np.float32(0.7))
        assert found["activation", "output"].dtype == np.float64
        np.testing.assert_allclose(found["activation", "output"], expected, rtol=1e-15)
        whole = found["activation", "output:1"]
        assert whole.dtype == np.int64 and whole.tolist() == [1, -2, 3]


# -- where there is none ---------------------------------------------------------------------------


def quantised() -> Any:
    return from_text("""
        net (float[3] x) => (float[3] y) <float scale = {0.1}, uint8 zero = {128}> {
            q = QuantizeLinear (x, scale, zero)
            y = DequantizeLinear (q, scale, zero)
        }
    """)


@pytest.mark.parametrize(("model", "shape"), [
    (lambda: proto("cnn"), (2, 3, 9, 8)),  # ConvTranspose
    (quantised, (3,)),
])  # fmt: skip
def test_without_a_kernel_there_is_no_oracle(model: Any, shape: tuple[int, ...]) -> None:
    adapter, inputs = OnnxAdapter(model()), {"x": np.ones(shape, np.float32)}
    with pytest.raises(ModelRaised):
        adapter.run(inputs, lambda *seen: None, float64=True)
    assert oracle(Runner("reference", adapter, inputs)) is None
    adapter.run(inputs, lambda *seen: None)


def test_what_lies_behind_a_forced_value_needs_no_kernel_in_front_of_it() -> None:
    adapter = OnnxAdapter(proto("cnn"))
    narrow = values_of(adapter, example("cnn"), passive=True)
    wanted = frozenset({("activation", "head")})
    forced = {("input", "head"): narrow["input", "head"]}
    runner = Runner("reference", adapter, example("cnn"))
    found = oracle(runner, forced, wanted=wanted)
    assert found is not None and set(found.values) == wanted
    value = found.values["activation", "head"]
    head = net("cnn").double().head
    with torch.no_grad():
        expected = head(torch.tensor(forced["input", "head"], dtype=torch.float64)).numpy()
    net("cnn").float()
    np.testing.assert_allclose(value, expected, rtol=1e-13)


def test_a_module_exported_here_has_it_forward_only() -> None:
    adapter: Any = find(net("mlp"), export="onnx")
    values = values_of(adapter, {"x": X}, float64=True)
    assert values["activation", "output"].dtype == np.float64
    both: Any = find(net("mlp"), export="onnx", gradients=True)
    assert not both.capabilities.float64
    with pytest.raises(InvalidArgument, match="no backward pass in float64"):
        both.run({"x": X}, lambda *seen: None, float64=True, cotangents=ones)


# -- what it is for --------------------------------------------------------------------------------


class Attention(torch.nn.Module):
    """What goes into `out` comes out of code between the layers, which nobody knows the sums of."""

    def __init__(self, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(32, eps=epsilon)
        self.q, self.k, self.v, self.out = (torch.nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Any) -> Any:
        h = self.norm(x)
        q, k, v = (one(h) for one in (self.q, self.k, self.v))
        return self.out(((q @ k.transpose(-1, -2)) / 6.0).softmax(-1) @ v)


def attention(epsilon: float = 1e-5) -> Any:
    torch.manual_seed(0)
    return Attention(epsilon).eval()


def attention_file(epsilon: float = 1e-5) -> OnnxAdapter:
    inputs = {"x": np.zeros((2, 256, 32), np.float32)}
    return OnnxAdapter(export(attention(epsilon), inputs), Options(optimization="none"))


def test_a_reference_in_onnx_is_judged_by_its_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No perturbed run is needed, and the ratios are those of a PyTorch reference."""
    moved = []
    monkeypatch.setattr("crosscheck.judging.perturb.Scope.run", lambda *a, **k: moved.append(a))
    reports = [
        crosscheck.check(reference, attention(), "float32[2,256,32]", gradients=False)
        for reference in (attention_file(), attention())
    ]
    assert [report.verdict for report in reports] == ["agree", "agree"] and not moved
    ours, theirs = reports[0].sites, {(s.kind, s.reference): s for s in reports[1].sites}
    assert not any(NO_ORACLE in site.notes for site in ours)
    for site in ours:
        assert site.ratio <= max(4.0, 2 * theirs[site.kind, site.reference].ratio), site


def test_a_defect_stays_where_it_is() -> None:
    report = crosscheck.check(attention_file(1e-3), attention(), "float32[2,256,32]")
    assert report.first_divergence is not None
    assert report.first_divergence.reference == "norm"
    sites = {(s.kind, s.reference): s for s in report.sites}
    assert sites["activation", "norm"].verdict == "diverge"
    assert NO_ORACLE not in sites["activation", "norm"].notes


def test_only_what_is_looked_at_is_computed() -> None:
    adapter = attention_file()
    inputs = {"x": np.random.default_rng(0).normal(size=(2, 256, 32)).astype(np.float32)}
    free = values_of(adapter, inputs, passive=True)
    asked: list[list[str]] = []
    run = type(adapter._sessions)._run
    adapter._sessions._run = lambda variant, names, feeds: (  # type: ignore[method-assign]
        asked.append([n.op_type for n in adapter.structure.graph.node if n.output[0] in names])
        or run(adapter._sessions, variant, names, feeds)
    )
    forced = {("activation", name): free["activation", name] for name in ("q", "k", "v")}
    comparer = Comparer(lambda key, value: value, {("input", "out")}, alone=True)
    adapter.run(inputs, chain(comparer, Forcer(forced)), float64=True)
    assert asked == [["MatMul"]]
    q, k, v = (forced["activation", name].astype(np.float64) for name in ("q", "k", "v"))
    scores = np.exp(q @ k.transpose(0, 2, 1) / np.float64(np.float32(6.0)))
    expected = scores / scores.sum(-1, keepdims=True) @ v
    found: Any = comparer.results["input", "out"]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_steps_that_are_not_in_the_file_are_told() -> None:
    """What is quantised as it runs differs from floating point by more than rounding."""
    as_it_runs = from_text("""
        net (float[3] x) => (float[3] y) {
            q, scale, zero = DynamicQuantizeLinear (x)
            y = DequantizeLinear (q, scale, zero)
        }
    """)
    (note,) = (n for n in OnnxAdapter(as_it_runs).notes if "DynamicQuantizeLinear" in n)
    assert "diverges even where that is all" in note
    assert not any("by steps" in n for n in OnnxAdapter(quantised()).notes)
