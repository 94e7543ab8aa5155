"""What Keras does on every backend, beside the contract."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from crosscheck.adapters.base import Adapter
from crosscheck.adapters.keras.parameters import discover
from crosscheck.errors import InvalidArgument
from crosscheck.observers import Forcer, Recorder

from .contract import IDS, Contract, X, ones, record
from .keras_kit import Boom, KerasKit, Model, named

layers = keras.layers


def adapt(model: Any) -> Adapter:
    return KerasKit().adapt(model)


class KerasContract(Contract):
    kit = KerasKit()

    def test_functional_model_with_two_inputs_and_a_shared_submodel(self) -> None:
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

    def test_functional_model_in_float64(self) -> None:
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
        assert keras.backend.standardize_dtype(model({"a": X, "b": X}).dtype) == "float32"

    @pytest.mark.parametrize("kind", [dict, list, tuple])
    def test_several_inputs_in_one_argument(self, kind: type) -> None:
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

    def test_layers_in_lists_and_dicts_and_equal_names(self) -> None:
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

    def test_a_top_level_layer_called_output(self) -> None:
        model = keras.Sequential([keras.Input((4,)), named("output", 3)])
        values, info = record(adapt(model), cotangents=ones)
        assert info.outputs == ("model_output",)
        assert info.parents["output"] == "model_output"

    def test_layers_of_other_models_are_let_through(self) -> None:
        stranger = named("stranger", 4)
        stranger(X)
        model = Model(lambda fc, x: fc(hidden[0](x)), named("fc", 3))
        hidden = (stranger,)
        model(X)
        values, _ = record(adapt(model))
        assert {s for _, s in values} == {"input:x", "fc", "output"}

    def test_a_model_that_is_not_built(self) -> None:
        for model in (
            Model(lambda fc, x: fc(x), named("fc", 3)),
            keras.Sequential([named("fc", 3)]),
        ):
            adapter = adapt(model)
            for action in (adapter.parameters, lambda a=adapter: a.run({"x": X}, Recorder())):
                with pytest.raises(InvalidArgument, match=r"(?s)not built.*call it once on data"):
                    action()
            model(X)
            assert len(adapter.parameters()) == 2

    def test_keyword_tensors_masks_and_several_outputs(self) -> None:
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

    def test_keras_masks_reach_the_next_layer(self) -> None:
        model = keras.Sequential(
            [
                keras.Input((3,), dtype="int32"),
                layers.Embedding(7, 4, mask_zero=True, name="table"),
                layers.GlobalAveragePooling1D(name="mean"),
            ]
        )
        expected = keras.ops.convert_to_numpy(model(IDS))
        values, _ = record(adapt(model), {"ids": IDS}, cotangents=ones)
        assert np.array_equal(values["activation", "output"], expected)
        assert not np.allclose(values["activation", "table"].mean(1), expected)

    def test_a_passive_run_is_neutral_where_a_layer_uses_its_input_three_times(self) -> None:
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
            np.testing.assert_allclose(
                info.parameter_gradients[name], gradient, rtol=1e-5, atol=1e-6
            )

    def test_a_layer_that_catches_what_its_layer_raised(self) -> None:
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

    def test_frozen_layers_get_no_gradient(self) -> None:
        model = keras.Sequential([keras.Input((4,)), named("fc", 4), named("head", 3)])
        model.get_layer("fc").trainable = False
        values, info = record(adapt(model))
        assert set(info.parameter_gradients) == {"head/kernel", "head/bias"}
        assert [p.trainable for p in adapt(model).parameters()] == [False, False, True, True]
        assert not any(p.buffer for p in adapt(model).parameters())
        assert values["cotangent", "input:x"].any()

    def test_losses_of_a_layer_are_put_back(self) -> None:
        model = keras.Sequential(
            [keras.Input((4,)), layers.ActivityRegularization(l2=0.1, name="reg"), named("fc", 3)]
        )
        model(X)
        before = [float(v) for v in model.losses]
        record(adapt(model), {"x": 5 * X})
        assert [float(v) for v in model.losses] == before

    def test_stateful_layers_are_put_back(self) -> None:
        model = keras.Sequential(
            [keras.Input(batch_shape=(2, 5, 4)), layers.LSTM(3, stateful=True, name="lstm")]
        )
        x = np.ones((2, 5, 4), np.float32)
        model(x)
        kit = KerasKit()
        before = kit.state(model)
        # On PyTorch, Keras itself cannot differentiate it: the states are overwritten.
        cotangents = None if keras.backend.backend() == "torch" else ones
        first, _ = record(kit.adapt(model), {"x": x}, cotangents=cotangents)
        second, _ = record(kit.adapt(model), {"x": x}, cotangents=cotangents)
        np.testing.assert_equal(kit.state(model), before)
        assert np.array_equal(first["activation", "output"], second["activation", "output"])
        oracle, _ = record(kit.adapt(model), {"x": x}, cotangents=cotangents, float64=True)
        assert {v.dtype for v in oracle.values()} == {np.dtype(np.float64)}
        np.testing.assert_allclose(
            oracle["activation", "output"], first["activation", "output"], rtol=1e-5
        )

    def test_mixed_precision_is_shown_in_its_own_dtype(self) -> None:
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

    def test_a_recurrent_layer(self) -> None:
        """Its cell is a layer that is called once a step; on JAX inside a scan."""
        model = keras.Sequential(
            [keras.Input((5, 4)), layers.LSTM(3, name="lstm", return_sequences=True)]
        )
        x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
        values, info = record(adapt(model), {"x": x}, cotangents=ones)
        outputs, gradients = KerasKit().bare(model, {"x": x}, [np.ones((2, 5, 3), np.float32)])
        np.testing.assert_allclose(values["activation", "output"], outputs[0], atol=1e-6)
        for name, gradient in gradients.items():
            ours = info.parameter_gradients[name]
            np.testing.assert_allclose(ours, gradient, rtol=1e-5, atol=1e-6)
        kinds = {p.kind for p in adapt(model).parameters()}
        assert kinds == {"lstm"}

    def test_models_in_models(self) -> None:
        inner = keras.Sequential([keras.Input((4,)), named("fc", 4), layers.ReLU(name="act")])
        inner.name = "inner"
        a = keras.Input((4,), name="a")
        middle = keras.Model(a, inner(a) + a, name="middle")
        b = keras.Input((4,), name="b")
        model = keras.Model(b, named("head", 3)(middle(b)))
        values, info = record(adapt(model), {"b": X})
        assert info.parents["middle/inner/fc"] == "middle/inner"
        assert info.parents["middle/inner"] == "middle"
        assert info.sources["middle/inner/fc"] == "input:b"
        assert info.sources["head"] == "middle"
        stretch = {("activation", "middle/inner"): np.zeros((6, 4), np.float32)}
        forced, _ = record(adapt(model), {"b": X}, observer=Forcer(stretch))
        assert np.array_equal(forced["activation", "middle"], X)
        assert np.array_equal(values["cotangent", "middle"], values["input_cotangent", "head"])

    def test_the_same_tensor_in_several_slots(self) -> None:
        class Thrice(layers.Layer):
            def call(self, a: Any, b: Any, *, c: Any) -> Any:
                return a * 1.0 + b * 2.0 + c * 4.0

        model = Model(
            lambda fc, thrice, x: (lambda h: thrice(h, h, c=h))(fc(x)),
            named("fc", 3),
            Thrice(name="thrice"),
        )
        model(X)
        values, info = record(adapt(model), cotangents=ones)
        sites = [s for s, source in info.sources.items() if source == "fc"]
        assert len(sites) == 3
        sent = [float(values["input_cotangent", s].mean()) for s in sites]
        assert sent == [1.0, 2.0, 4.0]
        assert np.array_equal(values["cotangent", "fc"], np.full((6, 3), 7))
