"""Models that look at their values to decide what to compute, as many skip a mask of ones, and
files that have layers inside the bodies of If and Loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import crosscheck  # noqa: E402


class Masked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = torch.nn.Linear(4, 3)
        self.out = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        h = self.fc(x)
        if torch.compiler.is_exporting() or not bool((mask == 1).all()):
            h = h * mask[:, None]
        return self.out(h.tanh())


def test_the_backward_pass_follows_the_values() -> None:
    model = Masked()
    port = crosscheck.adapt(model, export="onnx", gradients=True)
    for mask in (np.ones(5, np.float32), np.array([1, 1, 0, 1, 0], np.float32)):
        report = crosscheck.check(model, port, {"x": "float32[5,4]", "mask": mask}, weights="keep")
        assert report.verdict == "agree", str(report)
        assert sum(site.phase == "parameter_gradient" for site in report.sites) == 4


class Two(torch.nn.Module):
    def __init__(self, times: int = 1, *, second_inside: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
        self.times, self.second_inside = times, second_inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = torch.relu(self.a(x))
        return torch.tanh(self.b(x)) if self.second_inside else self.b(x)


CONDITION = (
    "t = ReduceSum <keepdims = 0> (x) k = Constant <value_float = -1e9> () c = Greater(t, k)"
)
FIRST = "q = MatMul(x, a_weight) r = Add(q, a_bias) e = Relu(r)"
LAST = "o = MatMul(z, b_weight) y = Add(o, b_bias)"
IF = f"""{CONDITION} z = If (c) <
    then_branch = yes () => (float[3,6] e) {{ {FIRST} }},
    else_branch = no () => (float[3,6] w) {{ w = Identity(x) }}> {LAST}"""
IF_BOTH = f"""{CONDITION} z = If (c) <
    then_branch = yes () => (float[3,6] u) {{
        {FIRST} s = MatMul(e, b_weight) u = Add(s, b_bias) }},
    else_branch = no () => (float[3,6] w) {{
        q = MatMul(x, b_weight) w = Add(q, a_bias) }}> y = Tanh(z)"""
LOOP = f"""n = Constant <value_int = 3> () on = Constant <value = bool {{1}}> ()
    z = Loop (n, on, x) <body = step (int64 i, bool was, float[3,6] v) => (bool so, float[3,6] w) {{
        so = Identity(was) q = MatMul(v, a_weight) r = Add(q, a_bias) w = Relu(r) }}> {LAST}"""


def in_a_file(body: str, model: Two, wrong: str = "") -> Any:
    signature = "(float[3,6] x) => (float[3,6] y)"
    file = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net {signature} {{ {body} }}'
    )
    for name, value in model.state_dict().items():
        array = value.numpy().T if name.endswith("weight") else value.numpy()
        if name == wrong:
            array = array[::-1]
        named = name.replace(".", "_")
        file.graph.initializer.append(onnx.numpy_helper.from_array(array.copy(), named))
    return file


BODIES = pytest.mark.parametrize(
    ("body", "make"),
    [
        pytest.param(IF, Two, id="if"),
        pytest.param(IF_BOTH, lambda: Two(second_inside=True), id="if-both"),
        pytest.param(LOOP, lambda: Two(3), id="loop"),
    ],
)


@BODIES
@pytest.mark.parametrize("weights", ["keep", "copy"])
def test_weights_inside_bodies_are_found(body: str, make: Callable[[], Two], weights: str) -> None:
    report = crosscheck.check(
        make(), in_a_file(body, make()), "float32[3,6]", weights=weights, gradients=False
    )
    assert report.verdict == "agree", str(report)
    assert report.coverage.parameters_matched == 4
    assert any("is no site" in note for note in report.notes)


@BODIES
@pytest.mark.parametrize("wrong", ["a.weight", "a.bias", "b.weight"])
def test_a_wrong_weight_is_named_wherever_it_is_used(
    body: str, make: Callable[[], Two], wrong: str
) -> None:
    file = in_a_file(body, make(), wrong)
    report = crosscheck.check(make(), file, "float32[3,6]", weights="keep", gradients=False)
    assert report.verdict == "diverge"
    weights = {d.reference: d.candidate for d in report.divergences if d.phase == "weights"}
    assert weights == {wrong: wrong.replace(".", "_")}
    assert report.divergences[0].reference == wrong


def test_what_goes_wrong_inside_a_body_is_named_by_its_node() -> None:
    file = in_a_file(IF.replace("Relu", "Sigmoid"), Two())
    report = crosscheck.check(Two(), file, "float32[3,6]", weights="keep", gradients=False)
    assert [(d.reference, d.candidate) for d in report.divergences] == [("a", "z")]
