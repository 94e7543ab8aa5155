"""Keras 3 on TensorFlow: the contract, and what only Keras does."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
if keras.config.backend() != "tensorflow":
    pytest.skip("Keras runs on another backend", allow_module_level=True)


from crosscheck.adapters.keras import KerasAdapter, find  # noqa: E402
from crosscheck.adapters.keras_parameters import discover  # noqa: E402
from crosscheck.errors import InvalidArgument  # noqa: E402
from crosscheck.observers import Forcer, Recorder  # noqa: E402

from .contract import DY, IDS, Contract, X, ones, record  # noqa: E402
from .keras_kit import Boom, KerasKit, Model, named  # noqa: E402

layers = keras.layers


@pytest.fixture(autouse=True)
def _clean_session() -> Any:
    """A layer name that TensorFlow refuses leaves Keras' name scope open for whatever runs next."""
    yield
    keras.utils.clear_session()


class TestKeras(Contract):
    kit = KerasKit()


def adapt(model: Any) -> KerasAdapter:
    return KerasKit().adapt(model)


# -- kinds of models -----------------------------------------------------------------------------


def test_functional_model_with_two_inputs_and_a_shared_submodel() -> None:
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    tower = keras.Sequential([named("fc", 5), layers.ReLU(name="act")], name="tower")
    left, right = tower(a), tower(b)
    model = keras.Model([a, b], [layers.Add(name="sum")([left, right]), left])
    other = X[::-1].copy()
    values, info = record(adapt(model), {"b": other, "a": X}, cotangents=ones)
    assert "a" not in {s for _, s in values}  # an InputLayer is no site
    assert info.sources == {
        "tower": "input:a",
        "tower/fc": "input:a",
        "tower/act": "tower/fc",
        "tower#2": "input:b",
        "tower/fc#2": "input:b",
        "tower/act#2": "tower/fc#2",
        "sum": "tower",
        "sum:0:0:1": "tower#2",
    }
    assert np.array_equal(values["input", "tower"], X)
    assert np.array_equal(values["cotangent", "tower#2"], np.ones((6, 5)))
    assert np.array_equal(values["cotangent", "tower"], np.full((6, 5), 2))
    assert np.array_equal(values["input_cotangent", "sum:0:0:1"], np.ones((6, 5)))
    assert [p.name for p in adapt(model).parameters()] == ["tower/fc/kernel", "tower/fc/bias"]


def test_functional_model_in_float64() -> None:
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    h = layers.Dense(5, activation="gelu", name="fc")(a) * 2.0 + layers.Dense(5, name="g")(b)
    model = keras.Model({"a": a, "b": b}, layers.LayerNormalization(name="ln")(h))
    values, info = record(adapt(model), {"b": X, "a": 2 * X}, cotangents=ones, float64=True)
    assert {v.dtype for v in values.values()} == {np.dtype(np.float64)}
    assert {g.dtype for g in info.parameter_gradients.values()} == {np.dtype(np.float64)}
    kernel = model.get_layer("g").kernel.numpy().astype(np.float64)
    expected = X.astype(np.float64) @ kernel
    np.testing.assert_allclose(values["activation", "g"], expected, rtol=1e-12, atol=1e-14)
    assert model.inputs[0].dtype == "float32"
    assert model({"a": X, "b": X}).dtype == "float32"


def test_wrong_number_of_inputs() -> None:
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    model = keras.Model([a, b], layers.Add()([a, b]))
    with pytest.raises(InvalidArgument, match=r"takes 2 inputs \(`a`, `b`\), not 3"):
        record(adapt(model), {"a": X, "b": X, "c": X})


@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_several_inputs_in_one_argument(kind: type) -> None:
    class Sum(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.fc = named("fc", 3)

        def call(self, inputs: Any, training: bool = False) -> Any:
            left, right = inputs.values() if kind is dict else inputs
            return self.fc(left) - right

    model = Sum()
    given = {"left": X, "right": X[:, :3]}
    model(given if kind is dict else kind(given.values()))
    values, info = record(adapt(model), given, cotangents=ones)
    assert info.sources == {"fc": "input:left"}
    assert np.array_equal(values["cotangent", "input:right"], -np.ones((6, 3)))


def test_layers_in_lists_and_dicts_and_equal_names() -> None:
    class Many(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.stack = [named("fc", 4), named("fc", 4)]
            self.heads = {"x": named("fc", 3), "y": named("out:1", 3)}

        def call(self, x: Any) -> Any:
            for layer in self.stack:
                x = layer(x)
            return {name: head(x) for name, head in self.heads.items()}

    model = Many()
    model(X)
    values, info = record(adapt(model), cotangents=ones)
    assert list(discover(model)) == ["", "fc", "fc_2", "fc_3", "out_1"]
    assert info.outputs == ("output", "output:y")
    assert info.sources["fc_3"] == "fc_2"
    assert [p.name for p in adapt(model).parameters()][4:6] == ["fc_3/kernel", "fc_3/bias"]


def test_a_top_level_layer_called_output() -> None:
    model = keras.Sequential([keras.Input((4,)), named("output", 3)])
    values, info = record(adapt(model), cotangents=ones)
    assert info.outputs == ("model_output",)
    assert info.parents["output"] == "model_output"


def test_layers_of_other_models_are_let_through() -> None:
    stranger = named("stranger", 4)
    stranger(X)
    model = Model(lambda fc, x: fc(hidden[0](x)), named("fc", 3))
    hidden = (stranger,)
    model(X)
    values, _ = record(adapt(model))
    assert {s for _, s in values} == {"input:x", "fc", "output"}


def test_values_inside_a_tf_function_are_seen() -> None:
    class Traced(layers.Layer):
        def __init__(self) -> None:
            super().__init__(name="traced")
            self.fc = named("fc", 3)

        @tf.function  # type: ignore[untyped-decorator]
        def call(self, x: Any) -> Any:
            return self.fc(x)

    model = keras.Sequential([Traced()])
    model(X)
    values, _ = record(adapt(model))
    assert np.array_equal(values["cotangent", "traced/fc"], DY)
    assert not tf.config.functions_run_eagerly()


def test_a_model_that_is_not_built() -> None:
    for model in (Model(lambda fc, x: fc(x), named("fc", 3)), keras.Sequential([named("fc", 3)])):
        adapter = adapt(model)
        for action in (adapter.parameters, lambda a=adapter: a.run({"x": X}, Recorder())):
            with pytest.raises(InvalidArgument, match=r"(?s)not built.*call it once on data"):
                action()
        model(X)
        assert len(adapter.parameters()) == 2


# -- values --------------------------------------------------------------------------------------


def test_keyword_tensors_masks_and_several_outputs() -> None:
    class Gate(layers.Layer):
        def call(self, x: Any, *, gate: Any, factor: float) -> Any:
            return x * gate * factor, {"gate": gate + 0.0}

    class Gated(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.gate = Gate(name="gate")

        def call(self, x: Any, gate: Any) -> Any:
            return self.gate(x, gate=gate, factor=2.0)[0]

    model = Gated()
    model(X, X)
    values, info = record(adapt(model), {"x": X, "gate": 3 * X}, cotangents=ones)
    assert info.sources == {"gate": "input:x", "gate:1:gate": "input:gate"}
    assert ("activation", "gate:1:gate") in values
    assert not values["cotangent", "gate:1:gate"].any()
    np.testing.assert_allclose(values["input_cotangent", "gate:1:gate"], 2 * X)


def test_keras_masks_reach_the_next_layer() -> None:
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            layers.Embedding(7, 4, mask_zero=True, name="table"),
            layers.GlobalAveragePooling1D(name="mean"),
        ]
    )
    expected = model(IDS).numpy()
    values, _ = record(adapt(model), {"ids": IDS}, cotangents=ones)
    assert np.array_equal(values["activation", "output"], expected)
    assert not np.allclose(values["activation", "table"].mean(1), expected)


def test_the_gradient_of_a_gather_is_made_dense() -> None:
    model = Model(lambda fc, x: tf.gather(fc(x), [0, 0, 2]), named("fc", 3))
    model(X)
    dy = np.ones((3, 3), np.float32)
    values, _ = record(adapt(model), cotangents=lambda o: {"output": dy})
    expected = np.zeros((6, 3))
    expected[0], expected[2] = 2, 1
    assert np.array_equal(values["cotangent", "fc"], expected)


def test_a_passive_run_is_neutral_where_a_layer_uses_its_input_three_times() -> None:
    class Attention(layers.Layer):
        def __init__(self) -> None:
            super().__init__(name="block")
            self.attn = layers.MultiHeadAttention(2, 4, name="attn")

        def call(self, x: Any) -> Any:
            return x + self.attn(x, x)

    model = keras.Sequential([named("fc", 8), Attention(), named("head", 3)])
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    model(x)
    dy = np.random.default_rng(1).normal(size=(2, 5, 3)).astype(np.float32)
    options = {"cotangents": lambda o: {"output": dy}}
    values, info = record(adapt(model), {"x": x}, passive=True, **options)
    outputs, gradients = KerasKit().bare(model, {"x": x}, [dy])
    assert values["activation", "output"].tobytes() == outputs[0].tobytes()
    for name, gradient in gradients.items():
        assert info.parameter_gradients[name].tobytes() == gradient.tobytes(), name
    for name in ("query", "key", "value", "attention_output"):
        assert ("cotangent", f"block/attn/{name}") in values
    # With nodes at the inputs the layer's own sum is taken before the residual's is added.
    _, info = record(adapt(model), {"x": x}, **options)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(info.parameter_gradients[name], gradient, rtol=1e-5, atol=1e-6)


def test_a_layer_that_catches_what_its_layer_raised() -> None:
    class Careful(layers.Layer):
        def __init__(self) -> None:
            super().__init__(name="careful")
            self.boom = Boom(backward=False)

        def call(self, x: Any) -> Any:
            try:
                return self.boom(x)
            except ValueError:
                return x * 2.0

    model = keras.Sequential([Careful(), named("fc", 3)])
    model(X)
    model.layers[0].boom.armed = True
    values, info = record(adapt(model))
    assert info.parents["fc"] == "output"
    assert np.array_equal(values["input", "fc"], 2 * X)


# -- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "name", "axes"),
    [
        (layers.Conv1D(2, 3), (1, 8, 3), "kernel", ("w", "in", "out")),
        (layers.Conv2D(2, 3), (1, 8, 8, 3), "kernel", ("h", "w", "in", "out")),
        (layers.Conv2D(2, 3), (1, 8, 8, 3), "bias", ("out",)),
        (layers.Conv3D(2, 3), (1, 8, 8, 8, 3), "kernel", ("d", "h", "w", "in", "out")),
        (layers.Conv2DTranspose(2, 3), (1, 8, 8, 3), "kernel", ("h", "w", "out", "in")),
        (layers.DepthwiseConv2D(3), (1, 8, 8, 3), "kernel", ("h", "w", "in", "mult")),
        (layers.SeparableConv2D(4, 3), (1, 8, 8, 3), "depthwise_kernel", ("h", "w", "in", "mult")),
        (layers.SeparableConv2D(4, 3), (1, 8, 8, 3), "pointwise_kernel", ("h", "w", "in", "out")),
    ],
)
def test_axes_of_convolutions(layer: Any, shape: Any, name: str, axes: Any) -> None:
    layer(np.zeros(shape, np.float32))
    found = {p.name: p for p in adapt(layer).parameters()}
    assert found[name].axes == axes
    assert len(axes) == found[name].value.ndim
    assert found[name].kind == "conv"
    assert found[name].role == ("bias" if name == "bias" else "weight")
    assert found[name].layer == ""


def test_axes_and_roles_of_other_layers() -> None:
    class Custom(layers.Layer):
        axes = {"table": ("row", "dim"), "kernel": ("in", "out")}  # noqa: RUF012

        def build(self, shape: Any) -> None:
            self.table = self.add_weight(name="table", shape=(7, 4))
            self.kernel = self.add_weight(name="kernel", shape=(4, 3))
            self.free = self.add_weight(name="free", shape=(2, 2))

        def call(self, x: Any) -> Any:
            return x @ self.kernel

    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.BatchNormalization(name="bn"),
            layers.LayerNormalization(name="ln"),
            Custom(name="mine"),
            layers.Dropout(0.1),
        ]
    )
    found = {
        p.name: (p.role, p.kind, p.axes, p.trainable, p.buffer) for p in adapt(model).parameters()
    }
    channel = ("channel",)
    assert found == {
        "bn/gamma": ("weight", "norm", channel, True, False),
        "bn/beta": ("bias", "norm", channel, True, False),
        "bn/moving_mean": ("mean", "norm", channel, False, True),
        "bn/moving_variance": ("variance", "norm", channel, False, True),
        "ln/gamma": ("weight", "norm", channel, True, False),
        "ln/beta": ("bias", "norm", channel, True, False),
        "mine/table": ("other", "other", ("row", "dim"), True, False),
        "mine/kernel": ("weight", "other", ("in", "out"), True, False),
        "mine/free": ("other", "other", None, True, False),
    }


def test_frozen_layers_get_no_gradient() -> None:
    model = keras.Sequential([keras.Input((4,)), named("fc", 4), named("head", 3)])
    model.get_layer("fc").trainable = False
    values, info = record(adapt(model))
    assert set(info.parameter_gradients) == {"head/kernel", "head/bias"}
    assert [p.trainable for p in adapt(model).parameters()] == [False, False, True, True]
    assert not any(p.buffer for p in adapt(model).parameters())
    assert values["cotangent", "input:x"].any()


# -- state ---------------------------------------------------------------------------------------


def test_losses_of_a_layer_are_put_back() -> None:
    model = keras.Sequential(
        [keras.Input((4,)), layers.ActivityRegularization(l2=0.1, name="reg"), named("fc", 3)]
    )
    model(X)
    before = [float(v) for v in model.losses]
    record(adapt(model), {"x": 5 * X})
    assert [float(v) for v in model.losses] == before


def test_stateful_layers_are_put_back() -> None:
    model = keras.Sequential(
        [keras.Input(batch_shape=(2, 5, 4)), layers.LSTM(3, stateful=True, name="lstm")]
    )
    x = np.ones((2, 5, 4), np.float32)
    model(x)
    kit = KerasKit()
    before = kit.state(model)
    first, _ = record(kit.adapt(model), {"x": x}, cotangents=ones)
    second, _ = record(kit.adapt(model), {"x": x}, cotangents=ones)
    np.testing.assert_equal(kit.state(model), before)
    assert np.array_equal(first["activation", "output"], second["activation", "output"])
    oracle, _ = record(kit.adapt(model), {"x": x}, cotangents=ones, float64=True)
    assert {v.dtype for v in oracle.values()} == {np.dtype(np.float64)}
    np.testing.assert_allclose(
        oracle["activation", "output"], first["activation", "output"], rtol=1e-5
    )


def test_generators_of_the_user_go_on_where_they_were() -> None:
    adapter = adapt(KerasKit().build("dropout"))
    drawn = []
    for runs in (0, 1):
        keras.utils.set_random_seed(3)
        keras.random.normal(())
        tf.random.normal(())
        for _ in range(runs):
            record(adapter, train=True)
        drawn.append((float(tf.random.normal(())), float(keras.random.normal(()))))
    assert drawn[0] == drawn[1]


def test_mixed_precision_is_shown_in_its_own_dtype() -> None:
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, name="fc", dtype="mixed_bfloat16")]
    )
    values, info = record(adapt(model), cotangents=ones)
    assert values["activation", "fc"].dtype.name == "bfloat16"
    assert values["cotangent", "fc"].dtype.name == "bfloat16"
    assert info.parameter_gradients["fc/kernel"].dtype == np.float32
    values, _ = record(adapt(model), cotangents=ones, float64=True)
    assert values["activation", "fc"].dtype == np.float64
    forced = np.ones((6, 3), values["activation", "fc"].dtype)
    record(adapt(model), observer=Forcer({("activation", "fc"): forced}), cotangents=ones)


def test_find_leaves_others_alone() -> None:
    assert find(object()) is None
    assert find(tf.Module()) is None


def test_other_backends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(InvalidArgument, match="runs on the jax backend; only TensorFlow"):
        find(layers.ReLU())
