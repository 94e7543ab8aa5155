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


from crosscheck.adapters.keras.adapter import find  # noqa: E402
from crosscheck.errors import InvalidArgument  # noqa: E402

from .contract import DY, X, record  # noqa: E402
from .keras_cases import KerasContract, adapt  # noqa: E402
from .keras_kit import KerasKit, Model, named  # noqa: E402

layers = keras.layers


@pytest.fixture(autouse=True)
def _clean_session() -> Any:
    """A layer name that TensorFlow refuses leaves Keras' name scope open for whatever runs next."""
    yield
    keras.utils.clear_session()


class TestKeras(KerasContract):
    pass


# -- kinds of models -----------------------------------------------------------------------------


def test_wrong_number_of_inputs() -> None:
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    model = keras.Model([a, b], layers.Add()([a, b]))
    with pytest.raises(InvalidArgument, match=r"takes 2 inputs \(`a`, `b`\), not 3"):
        record(adapt(model), {"a": X, "b": X, "c": X})


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


# -- values --------------------------------------------------------------------------------------


def test_the_gradient_of_a_gather_is_made_dense() -> None:
    model = Model(lambda fc, x: tf.gather(fc(x), [0, 0, 2]), named("fc", 3))
    model(X)
    dy = np.ones((3, 3), np.float32)
    values, _ = record(adapt(model), cotangents=lambda o: {"output": dy})
    expected = np.zeros((6, 3))
    expected[0], expected[2] = 2, 1
    assert np.array_equal(values["cotangent", "fc"], expected)


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


# -- state ---------------------------------------------------------------------------------------


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


def test_find_leaves_others_alone() -> None:
    assert find(object()) is None
    assert find(tf.Module()) is None


def test_other_backends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.config, "backend", lambda: "openvino")
    with pytest.raises(InvalidArgument, match="runs on the openvino backend; supported are"):
        find(layers.ReLU())
