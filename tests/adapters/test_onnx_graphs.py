"""ONNX graphs written by hand: no exporter, no PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from crosscheck.adapters.onnx.adapter import OnnxAdapter  # noqa: E402
from crosscheck.adapters.onnx.scopes import CLASSES, SCOPES  # noqa: E402
from crosscheck.adapters.onnx.structure import Structure  # noqa: E402
from crosscheck.errors import InvalidArgument  # noqa: E402
from crosscheck.observers import Forcer  # noqa: E402

from .kit import record  # noqa: E402

X = np.array([[1, -2, 3], [-4, 5, -6]], np.float32)


def parse(body: str, *, signature: str = "(float[2,3] x) => (float[2,3] y)") -> Any:
    text = f'<ir_version: 8, opset_import: ["": 18]> net {signature} {body}'
    return onnx.parser.parse_model(text)


def scoped(model: Any, *stacks: str) -> Any:
    """Write the exporter's metadata: ``"a.b/aten.relu"`` for each node, classes made from names."""
    for node, stack in zip(model.graph.node, stacks, strict=True):
        path, _, target = stack.partition("/")
        parts = path.split(".") if path else []
        paths = ["", *(".".join(parts[: i + 1]) for i in range(len(parts)))]
        classes = ["Net", *(part.title() for part in parts), target]
        node.metadata_props.add(key=SCOPES, value=repr([*paths, node.output[0]]))
        node.metadata_props.add(key=CLASSES, value=repr(classes))
    return model


def run(model: Any, observer: object = None, x: np.ndarray = X) -> dict[str, np.ndarray]:
    values, _ = record(OnnxAdapter(model), {"x": x}, observer, cotangents=None)
    return {f"{kind[0]}:{site}": value for (kind, site), value in values.items()}


def test_a_body_reads_what_is_forced_outside() -> None:
    model = parse(
        """{
        h = Neg(x)
        zero = Constant <value = float {0.0}> ()
        total = ReduceSum <keepdims = 0> (x)
        c = Greater(total, zero)
        y = If (c) <
            then_branch = yes () => (float[2,3] a) { a = Abs(h) },
            else_branch = no () => (float[2,3] b) { t = Add(h, h) b = Relu(t) }
        >
        }"""
    )
    adapter = OnnxAdapter(model)
    assert any("inside If (1 in all) is no site" in note for note in adapter.notes)
    assert "i:y:1" in run(model)  # the condition, and what the bodies read
    forced = np.full_like(X, -2)
    for x, expected in ((X + 2, abs(forced)), (X, np.zeros_like(X))):
        values = run(model, Forcer({("activation", "h"): forced}), x)
        assert np.array_equal(values["a:h"], -x)
        assert np.array_equal(values["a:output"], expected)
        site = next(s for s in ("y", "y:1") if values[f"i:{s}"].shape == X.shape)
        values = run(model, Forcer({("input", site): forced}), x)
        assert np.array_equal(values["a:output"], expected)


def test_an_input_and_a_constant_as_outputs() -> None:
    model = parse(
        "<float[2] w = {1, 2}> { y = Relu(x) }",
        signature="(float[2,3] x) => (float[2,3] y, float[2,3] x, float[2] w)",
    )
    values = run(model)
    assert np.array_equal(values["a:output:1"], X)
    assert np.array_equal(values["a:output:2"], [1, 2])
    values = run(model, Forcer({("activation", "input:x"): -X}))
    assert np.array_equal(values["a:output:1"], -X)


def test_values_that_are_no_tensors_are_left_out() -> None:
    model = parse("{ s = SequenceConstruct(x, x) y = ConcatFromSequence <axis = 0> (s) }")
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, [4, 3]))
    adapter = OnnxAdapter(model)
    values, _ = record(adapter, {"x": X}, cotangents=None)
    assert ("activation", "s") not in values
    assert ("input", "y") not in values
    assert values["activation", "output"].shape == (4, 3)
    assert "values of type seq(tensor(float)) cannot be shown" in adapter.notes


def test_old_files_list_initializers_among_the_inputs() -> None:
    model = parse(
        "<float[3] w = {1, 2, 3}> { y = Mul(x, w) }",
        signature="(float[2,3] x, float[3] w) => (float[2,3] y)",
    )
    assert np.array_equal(run(model)["a:output"], X * [1, 2, 3])


def test_dynamic_shapes() -> None:
    model = parse("{ y = Relu(x) }", signature="(float[N, 3] x) => (float[N, 3] y)")
    assert run(model, x=X[:1])["a:output"].shape == (1, 3)
    with pytest.raises(InvalidArgument, match=r"takes float32 \(N, 3\)"):
        run(model, x=X[:, :2])


def test_names_that_would_be_taken_for_parts_of_a_site() -> None:
    model = parse("{ y = Relu(x) }")
    model.graph.node[0].output[0] = model.graph.output[0].name = "onnx::Relu#3"
    assert list(run(model)) == ["a:input:x", "i:onnx__Relu_3", "a:onnx__Relu_3", "a:output"]
    model = parse("{ output = Relu(x) }", signature="(float[2,3] x) => (float[2,3] output)")
    assert list(run(model))[2:] == ["a:output_Relu", "a:output"]


def test_a_child_called_output() -> None:
    model = scoped(parse("{ y = Relu(x) }"), "output/aten.relu")
    values, info = record(OnnxAdapter(model), {"x": X}, cotangents=None)
    assert info.outputs == ("model_output",)
    assert info.layers["output"] == "Output"
    assert info.parents == {"output": "model_output"}


def test_nested_sites_of_one_value() -> None:
    """A wrapper's output is its last layer's: replaced there, the wrapper shows the replacement."""
    model = scoped(
        parse("{ a = Neg(x) b = Abs(a) c = Add(b, x) y = Add(c, b) }"),
        "seq.0/aten.neg",
        "seq.1/aten.abs",
        "/aten.add",
        "/aten.add",
    )
    values, info = record(OnnxAdapter(model), {"x": X}, cotangents=None)
    assert [s for k, s in values if k == "activation"] == [
        "input:x",
        "seq.0",
        "seq.1",
        "seq",
        "output",
    ]
    assert info.sources == {"seq": "input:x", "seq.0": "input:x", "seq.1": "seq.0"}
    one, two = np.ones_like(X), 2 * np.ones_like(X)
    inner = run(model, Forcer({("activation", "seq.1"): one}))
    assert np.array_equal(inner["a:seq.1"], abs(X))
    assert np.array_equal(inner["a:seq"], one)
    assert np.array_equal(inner["a:output"], 2 + X)
    both = run(model, Forcer({("activation", "seq.1"): one, ("activation", "seq"): two}))
    assert np.array_equal(both["a:seq"], one)
    assert np.array_equal(both["a:output"], 4 + X)


def test_an_output_that_its_own_module_reads_too() -> None:
    """What is forced behind a module is not seen inside it."""
    model = scoped(
        parse(
            "{ a = Neg(x) b = Abs(a) y = Add(a, b) }",
            signature="(float[2,3] x) => (float[2,3] y, float[2,3] b)",
        ),
        "m/aten.neg",
        "m/aten.abs",
        "/aten.add",
    )
    free = run(model)
    assert np.array_equal(free["a:m"], abs(X))
    assert np.array_equal(free["a:m:1"], -X)
    forced = run(model, Forcer({("activation", "m:1"): np.zeros_like(X)}))
    assert np.array_equal(forced["a:m"], abs(X))
    assert np.array_equal(forced["a:output"], abs(X))


def test_repeats_of_a_leaf_are_calls_only_if_they_use_its_parameters() -> None:
    weights = "<float[3] w = {1, 2, 3}>"
    model = scoped(
        parse(weights + "{ a = Mul(x, w) b = Neg(a) c = Mul(b, w) y = Neg(c) }"),
        *("m/aten.mul", "m/aten.neg") * 2,
    )
    assert [c.site for c in Structure.of(model.graph).calls] == ["output", "m", "m#2"]
    model = scoped(parse("{ a = Neg(x) y = Neg(a) }"), "m/aten.neg", "m/aten.neg")
    assert [c.site for c in Structure.of(model.graph).calls] == ["output", "m"]


def test_a_node_that_a_tool_put_in_does_not_split_a_call() -> None:
    model = scoped(parse("{ a = Neg(x) b = Identity(a) y = Abs(b) }"), *["m/aten.x"] * 3)
    del model.graph.node[1].metadata_props[:]
    assert [c.site for c in Structure.of(model.graph).calls] == ["output", "m"]


def test_roles_without_names() -> None:
    model = parse(
        """<float[3,3] a, float[3,3] b, float[3] c, float[3] s, float[3] t, float[3] m, float[3] v,
            float[1] tiny>
        { h = MatMul(x, a) i = Add(h, c) j = Gemm <transB = 1> (i, b)
          k = BatchNormalization(j, s, t, m, v) y = Mul(k, tiny) }"""
    )
    for name in ("a", "b", "c", "s", "t", "m", "v", "tiny"):
        shape = {"a": (3, 3), "b": (3, 3), "tiny": (1,)}.get(name, (3,))
        array = onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
        known = [t for t in model.graph.initializer if t.name == name]
        (known[0] if known else model.graph.initializer.add()).CopyFrom(array)
    kept = [i for i in model.graph.input if i.name == "x"]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    found = {p.name: (p.role, p.kind, p.axes, p.layer) for p in OnnxAdapter(model).parameters()}
    assert found == {
        "a": ("weight", "dense", ("in", "out"), "h"),
        "c": ("bias", "dense", ("out",), "h"),
        "b": ("weight", "dense", ("out", "in"), "j"),
        "s": ("weight", "norm", ("channel",), "k"),
        "t": ("bias", "norm", ("channel",), "k"),
        "m": ("mean", "norm", ("channel",), "k"),
        "v": ("variance", "norm", ("channel",), "k"),
    }


def test_a_proto_without_its_weights() -> None:
    model = parse("<float[3] w = {1, 2, 3}> { y = Mul(x, w) }")
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(InvalidArgument, match="`w` are in another file"):
        OnnxAdapter(model)
