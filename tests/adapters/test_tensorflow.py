"""Plain TensorFlow: the contract, and what only TensorFlow does."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from crosscheck import adapt, check  # noqa: E402
from crosscheck.adapters.tensorflow import parameters as tensorflow_parameters  # noqa: E402
from crosscheck.adapters.tensorflow.adapter import TensorFlowAdapter, find  # noqa: E402
from crosscheck.errors import CannotCompare, InvalidArgument  # noqa: E402
from crosscheck.taps import tap  # noqa: E402
from tests.check.numpy_models import Affine  # noqa: E402

from .contract import DY, Contract, X, ones, record  # noqa: E402
from .tensorflow_kit import BatchNorm, Linear, Net, TensorFlowKit  # noqa: E402


class TestTensorFlow(Contract):
    kit = TensorFlowKit()


def mlp() -> Any:
    return TensorFlowKit().build("mlp")


# -- modules -------------------------------------------------------------------------------------


def test_modules_in_lists_dicts_and_shared() -> None:
    class Many(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = [Linear(4, 4), Linear(4, 4)]
            self.heads = {"x": Linear(4, 3), "y": Linear(4, 2)}
            self.again = self.stack[0]
            self.steps = tf.Variable(0, trainable=False)

        def __call__(self, x: Any) -> Any:
            for layer in self.stack:
                x = layer(x)
            return {name: head(x) for name, head in self.heads.items()}

    adapter = adapt(Many())
    values, info = record(adapter, cotangents=ones)
    assert [p.name for p in adapter.parameters()] == [
        f"{layer}/{leaf}"
        for layer in ("stack/0", "stack/1", "heads/x", "heads/y")
        for leaf in ("w", "b")
    ]
    assert info.outputs == ("output", "output:y")
    assert info.sources["heads/y"] == "stack/1"
    assert info.layers["stack/0"] == "Linear"


def test_axes_come_from_the_bias_or_stay_open() -> None:
    class Dense(tf.Module):
        def __init__(self, rows: int, columns: int, width: int) -> None:
            super().__init__()
            self.kernel = tf.Variable(tf.zeros((rows, columns)))
            self.bias = tf.Variable(tf.zeros(width))

    class Conv2D(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filters_w = tf.Variable(tf.zeros((3, 3, 2, 4)))

    def axes(module: Any) -> list[Any]:
        found = tensorflow_parameters.discover(module).parameters()
        return [(p.role, p.kind, p.axes) for p in found]

    assert axes(Dense(4, 3, 3))[0] == ("weight", "dense", ("in", "out"))
    assert axes(Dense(3, 4, 3))[0] == ("weight", "dense", ("out", "in"))
    assert axes(Dense(3, 3, 3))[0] == ("weight", "dense", None)
    assert axes(Dense(3, 3, 3))[1] == ("bias", "dense", ("out",))
    assert axes(Conv2D()) == [("weight", "conv", ("h", "w", "in", "out"))]
    assert axes(BatchNorm())[2] == ("mean", "norm", ("channel",))


def test_a_subclass_that_calls_its_parent_is_one_site() -> None:
    class Scaled(Linear):
        def __call__(self, x: Any) -> Any:
            return 2.0 * super().__call__(x)

    model = Net(lambda m, x: m.head(m.fc(x)), fc=Scaled(4, 4), head=Linear(4, 3))
    values, info = record(adapt(model))
    assert set(info.layers) == {"input:x", "fc", "head", "output"}
    assert info.layers["fc"] == "Scaled"


def test_a_constant_of_a_module_is_cast_and_put_back() -> None:
    model = Net(lambda m, x: tf.cast(m.fc(x) * m.scale, tf.float32), fc=Linear(4, 3))
    model.scale = scale = tf.constant(0.1)
    values, _ = record(adapt(model), float64=True)
    assert values["activation", "output"].dtype == np.float64
    assert model.scale is scale


def test_a_module_that_is_not_built_yet() -> None:
    class Lazy(tf.Module):
        w: Any = None

        def __call__(self, x: Any) -> Any:
            if self.w is None:
                self.w = tf.Variable(tf.ones((4, 3)), name="late")
            return tf.matmul(x, self.w)

    model = Lazy()
    with pytest.raises(InvalidArgument, match=r"`late:0`[\s\S]*call the model once before"):
        record(adapt(model))
    record(adapt(model))


def test_a_module_without_a_call() -> None:
    with pytest.raises(InvalidArgument, match=r"no __call__[\s\S]*adapt\(module.method\)"):
        adapt(tf.Module())


def test_recomputation_is_refused() -> None:
    fc = Linear(4, 3)
    model = Net(lambda m, x: m.again(x), fc=fc)
    model.again = tf.recompute_grad(lambda x: fc(x) * 1.0)
    with pytest.raises(CannotCompare, match="tf.recompute_grad"):
        record(adapt(model))


def test_keras_layers_inside_a_module() -> None:
    keras = pytest.importorskip("keras")
    fc = keras.layers.Dense(3, name="fc")
    fc.build((None, 4))
    adapter = adapt(Net(lambda m, x: m.fc(x), fc=fc))
    assert [p.name for p in adapter.parameters()] == ["fc/kernel", "fc/bias"]
    assert not adapter.capabilities.float64
    values, info = record(adapter)
    assert np.array_equal(values["cotangent", "fc"], DY)
    assert info.parameter_gradients["fc/kernel"].any()


# -- functions -----------------------------------------------------------------------------------


def test_plain_functions() -> None:
    w, b = tf.Variable(tf.ones((4, 3)), name="head/w"), tf.Variable(tf.zeros(3), name="head/b")

    def model(x: Any) -> Any:
        return tf.matmul(tap("doubled", 2.0 * x), w) + b

    for adapter in (adapt(model, variables=[w, b]), adapt(tf.function(model), variables=[w, b])):
        assert isinstance(adapter, TensorFlowAdapter)
        assert [(p.name, p.layer, p.role) for p in adapter.parameters()] == [
            ("head/w", "head", "weight"),
            ("head/b", "head", "bias"),
        ]
        values, info = record(adapter)
        assert np.array_equal(values["activation", "doubled"], 2 * X)
        np.testing.assert_allclose(info.parameter_gradients["head/b"], DY.sum(0), rtol=1e-6)
        wide, _ = record(adapter, float64=True)
        assert wide["activation", "output"].dtype == np.float64
        assert w.dtype == tf.float32
    assert [p.name for p in adapt(model, variables={"kernel": w, "bias": b}).parameters()] == [
        "kernel",
        "bias",
    ]
    assert [p.name for p in adapt(model).parameters()] == ["b", "w"]  # by the names in the code


def test_a_function_with_variables_that_nobody_told_of() -> None:
    hidden = [[tf.Variable(tf.ones((4, 3)), name="hidden")]]
    with pytest.raises(InvalidArgument, match=r"`hidden:0`[\s\S]*variables=\["):
        record(adapt(lambda x: tf.matmul(x, hidden[0][0]), variables=[]))
    with pytest.raises(InvalidArgument, match="holds a list"):
        adapt(tf.function(lambda x: x), variables=hidden)


def test_methods() -> None:
    class Coder(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = Linear(4, 3)

        def encode(self, x: Any) -> Any:
            return self.fc(x)

        @tf.function  # type: ignore[untyped-decorator]
        def traced(self, x: Any) -> Any:
            return self.fc(x)

    coder = Coder()
    for method in (coder.encode, coder.traced):
        values, info = record(adapt(method))
        assert np.array_equal(values["cotangent", "fc"], DY)
        assert set(info.parameter_gradients) == {"fc/w", "fc/b"}


def test_others_are_left_alone() -> None:
    for other in (object(), np.sin, lambda x: x, Linear, "nowhere", 3):
        assert find(other) is None
    assert find(lambda x: x, variables={"params": np.ones(3)}) is None


# -- compiled functions --------------------------------------------------------------------------


def compiled(function: Any, **children: Any) -> Any:
    class Compiled(Net):
        __call__ = tf.function(Net.__call__)

    return Compiled(function, **children)


def test_a_function_that_is_another_one_when_compiled_is_refused() -> None:
    model = compiled(
        lambda m, x: m.fc(x) * (1.5 if tf.executing_eagerly() else 1.0), fc=Linear(4, 3)
    )
    with pytest.raises(CannotCompare, match=r"`__call__`[\s\S]*0.33 apart[\s\S]*eager=False"):
        record(adapt(model), passive=True)
    assert not tf.config.functions_run_eagerly()
    adapter = adapt(model, eager=False)
    values, info = record(adapter, passive=True)
    assert np.array_equal(values["activation", "output"], model(X).numpy())
    assert set(info.layers) == {"input:x", "output"}
    np.testing.assert_allclose(info.parameter_gradients["fc/b"], DY.sum(0), rtol=1e-6)
    assert "ran compiled" in adapter.notes[0] and not adapter.capabilities.float64


def test_gradients_of_the_compiled_function_are_compared_too() -> None:
    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def odd(x: Any) -> Any:
        factor = 1.0 if tf.executing_eagerly() else 2.0
        return tf.identity(x), lambda dy: dy * factor

    model = compiled(lambda m, x: odd(m.fc(x)), fc=Linear(4, 3))
    record(adapt(model), passive=True, cotangents=None)
    with pytest.raises(CannotCompare, match="1 apart"):
        record(adapt(model), passive=True)


def test_compiled_and_eager_agree_to_rounding() -> None:
    model = compiled(lambda m, x: m.head(tf.nn.gelu(m.fc(x))), fc=Linear(4, 4), head=Linear(4, 3))
    plain = Net(lambda m, x: m.head(tf.nn.gelu(m.fc(x))), fc=Linear(4, 4), head=Linear(4, 3))
    report = check(plain, model, "float32[6,4]")
    assert report.verdict == "agree", str(report)
    assert report.coverage.aligned >= 4 and not report.coverage.not_compared
    assert any("ran eagerly" in note for note in report.notes)


def test_compiled_state_is_put_back() -> None:
    model = compiled(lambda m, x: m.bn(m.fc(x), training=True), fc=Linear(4, 3), bn=BatchNorm())
    before = TensorFlowKit().state(model)
    adapter = adapt(model)
    _, info = record(adapter, passive=True)
    np.testing.assert_equal(TensorFlowKit().state(model), before)
    assert "gives the same within" in adapter.notes[0]
    _, info = record(adapter, train=True, passive=True)
    np.testing.assert_equal(TensorFlowKit().state(model), before)
    assert "not compared" in adapter.notes[0]
    assert info.buffers["bn/moving_mean"].any()


# -- checks --------------------------------------------------------------------------------------


def test_a_check() -> None:
    model = Net(lambda m, x: m.head(m.fc(x)), fc=Linear(4, 4), head=Linear(4, 3))
    report = check(model, [Affine(4, 4), Affine(4, 3)], "float32[6,4]")
    assert report.verdict == "agree", str(report)
    assert report.coverage.parameters_matched == 4
    wrong = Net(lambda m, x: m.head(m.fc(x)), fc=Linear(4, 4), head=Linear(4, 3))
    wrong.fc.__class__ = type("Linear", (Linear,), {"__call__": scaled})
    report = check(model, wrong, "float32[6,4]")
    assert report.first_divergence is not None
    assert report.first_divergence.candidate == "fc"


def scaled(self: Any, x: Any) -> Any:
    return 1.01 * Linear.__call__(self, x)


# -- SavedModels ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = Net(lambda m, x: {"y": m.head(m.fc(x))}, fc=Linear(4, 4), head=Linear(4, 3))
    path = tmp_path_factory.mktemp("saved") / "model"
    call = tf.function(model.__call__)
    shape = tf.TensorSpec([None, 4], tf.float32, name="x")
    tf.saved_model.save(model, path, signatures={"predict": call.get_concrete_function(shape)})
    return model, path


def test_a_saved_model(saved: Any) -> None:
    model, path = saved
    for given in (path, str(path), tf.saved_model.load(path)):
        adapter = adapt(given)
        assert isinstance(adapter, TensorFlowAdapter) and not adapter.capabilities.float64
        values, info = record(adapter, passive=True)
        np.testing.assert_allclose(values["activation", "output"], model(X)["y"], rtol=1e-6)
        assert [p.name for p in adapter.parameters()] == ["fc/w", "fc/b", "head/w", "head/b"]
        np.testing.assert_allclose(info.parameter_gradients["head/b"], DY.sum(0), rtol=1e-6)
        assert values["cotangent", "input:x"].any()
    assert "is a graph" in adapter.notes[0]


def test_a_check_of_a_saved_model(saved: Any) -> None:
    model, path = saved
    report = check(model, path, "float32[6,4]", weights="keep")
    assert report.verdict == "agree", str(report)
    assert report.coverage.parameters_matched == 4
    assert any("SavedModel is a graph" in note for note in report.notes)


def test_an_export_of_keras(tmp_path: Any) -> None:
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="fc")], name="net")
    model.export(tmp_path, verbose=False)
    adapter = adapt(tmp_path)
    assert [(p.name, p.role) for p in adapter.parameters()] == [
        ("net/fc/kernel", "weight"),
        ("net/fc/bias", "bias"),
    ]
    values, info = record(adapter)
    np.testing.assert_allclose(values["activation", "output"], model(X), rtol=1e-6)
    np.testing.assert_allclose(info.parameter_gradients["net/fc/bias"], DY.sum(0), rtol=1e-6)


def test_signatures_of_a_saved_model(saved: Any, tmp_path: Any) -> None:
    _, path = saved
    with pytest.raises(InvalidArgument, match=r"no signature `serve` to run: it has `predict`"):
        adapt(path, signature="serve")
    with pytest.raises(InvalidArgument, match=r"takes 1 inputs \(`x`\), not 2"):
        record(adapt(path), {"a": X, "b": X})
    tf.saved_model.save(tf.Module(), tmp_path)
    with pytest.raises(InvalidArgument, match=r"it has none[\s\S]*get_concrete_function"):
        adapt(tmp_path)
