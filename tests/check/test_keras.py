"""A port to Keras, as somebody would bring it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

import crosscheck  # noqa: E402

from . import keras_models as ours  # noqa: E402
from .kit import agrees, backward, forward, found, gradients, run  # noqa: E402
from .numpy_models import ConvNet, Stack  # noqa: E402
from .torch_models import (  # noqa: E402
    Convolutional,
    Mlp,
    Normed,
    Outputs,
    Residual,
    TwoBranches,
)

X3, IMAGE = "float32[3,7,4]", "float32[2,3,7,9]"


def to_last(given: Any) -> Any:
    return given["x"].transpose(0, 2, 3, 1)


@pytest.mark.parametrize("seed", range(3))
def test_honest_ports_agree(seed: int) -> None:
    assert agrees(run(Mlp(), ours.mlp(), seed=seed))
    assert agrees(run(Stack(), ours.mlp(), seed=seed))
    assert agrees(run(ours.mlp(), Mlp(), seed=seed))
    assert agrees(run(ours.mlp(), Stack(), seed=seed))
    assert agrees(run(Residual(), ours.Residual(), X3, seed=seed))
    assert agrees(run(ours.Residual(), Residual(), X3, seed=seed))


@pytest.mark.parametrize("seed", range(3))
def test_channels_last(seed: int) -> None:
    model = ours.convolutional()
    assert agrees(run(Convolutional(), model, IMAGE, candidate_inputs=to_last, seed=seed))
    back = {"x": np.zeros((2, 7, 9, 3), np.float32)}
    assert agrees(run(ConvNet(), model, back | {"x": "float32[2,7,9,3]"}, seed=seed))


def test_two_inputs_by_name_and_in_order() -> None:
    for names in ("ab", "xy"):
        inputs = dict.fromkeys(names, "float32[5,6]")
        assert agrees(run(TwoBranches(), ours.two_branches(), inputs))


@pytest.mark.parametrize("mode", ["dict", "tuple"])
def test_outputs_in_containers(mode: str) -> None:
    assert agrees(run(Outputs(mode), ours.outputs(mode)))


def test_batchnorm_and_its_buffers() -> None:
    """Both keep 0.9 of the old statistics; PyTorch's variance is unbiased, Keras' is not."""
    assert agrees(run(Normed(p=0.0), ours.Normed()))
    report = run(Normed(p=0.0), ours.Normed(), train=True)
    assert found(report) == [("buffer", "bn.running_var", "bn/moving_variance")]
    report = run(Normed(p=0.0), ours.Normed(momentum=0.1), train=True)
    assert found(report)[0] == ("buffer", "bn.running_mean", "bn/moving_mean")


def test_a_wrong_epsilon() -> None:
    model = ours.mlp()
    model.get_layer("normalise").epsilon = 1e-3
    report = run(Mlp(), model)
    assert forward(report) == [("norm", "normalise")]
    assert {c for _, _, c in found(report)} <= {"normalise", "normalise/gamma"}
    assert report.first_divergence is not None and report.first_divergence.after == "relu"


def test_the_other_gelu_and_a_missing_residual() -> None:
    model = ours.Residual()
    model.blocks[0].act.activation = lambda x: keras.activations.gelu(x, approximate=True)
    block = model.blocks[2]
    block.call = block.branch
    report = run(Residual(), model, X3)
    assert forward(report) == [
        ("blocks.0.act", "block0/act"),
        ("blocks.2", "block2"),
    ]


def test_flattened_in_the_wrong_order() -> None:
    report = run(
        Convolutional(), ours.convolutional(nchw_flatten=False), IMAGE, candidate_inputs=to_last
    )
    first = report.first_divergence
    assert first is not None and (first.phase, first.site) == ("forward", "fc")
    assert "in another order" in first.statement or first.candidate == "flatten"


def scale(layer: Any) -> None:
    call = layer.call
    layer.call = lambda x, **_: call(x) * 1.01


def leak(layer: Any) -> None:
    layer.activation = lambda x: keras.ops.leaky_relu(x, 0.1)


@pytest.mark.parametrize(
    ("name", "reference", "defect"),
    [
        ("conv1", "c1", scale),
        ("conv2", "c2", scale),
        ("conv1", "c1", leak),
        ("conv2", "c2", leak),
        ("dense", "fc", scale),
    ],
)
def test_an_activation_inside_the_layer_here_and_a_function_there(
    name: str, reference: str, defect: Any
) -> None:
    """What Conv2D(activation="relu") gives has no site in a model that calls F.relu."""
    model = ours.convolutional()
    defect(model.get_layer(name))
    report = run(Convolutional(), model, IMAGE, candidate_inputs=to_last)
    assert forward(report) == [(reference, name)], str(report)


def test_a_stopped_gradient() -> None:
    model = ours.Residual()
    block = model.blocks[1]
    block.call = lambda x: x + keras.ops.stop_gradient(block.branch(x))
    report = run(Residual(), model, X3)
    assert found(report) == [("backward", "blocks.1", "block1")]
    assert report.coverage.not_compared
    block.call = lambda x: keras.ops.stop_gradient(x) + block.branch(x)
    assert found(run(Residual(), model, X3)) == [("backward", "blocks.1", "block1")]


def test_a_gradient_that_is_halved() -> None:
    import tensorflow as tf

    @tf.custom_gradient
    def halved(x: Any) -> Any:
        return tf.identity(x), lambda dy: dy / 2

    model = ours.mlp()
    layer = model.get_layer("second")
    call = layer.call
    layer.call = lambda x, **_: call(halved(x))
    assert backward(run(Mlp(), model)) == [("fc2", "second")]
    layer = model.get_layer("logits")
    layer.call = lambda x, **_: keras.ops.matmul(x, halved(layer.kernel.value)) + layer.bias
    report = run(Mlp(), model)
    assert gradients(report) == [("head.weight", "logits/kernel")]


def test_weights_kept() -> None:
    model = ours.mlp()
    run(Mlp(), model)
    assert agrees(run(Mlp(), model, weights="keep"))
    kernel = model.get_layer("second").kernel
    kernel.assign(np.asarray(kernel).T)
    report = run(Mlp(), model, weights="keep")
    assert found(report)[0] == ("weights", "fc2.weight", "second/kernel")


def test_a_model_that_is_not_built() -> None:
    model = keras.Sequential([keras.layers.Dense(3)])
    with pytest.raises(crosscheck.InvalidArgument, match="not built") as error:
        run(Mlp(), model)
    assert "call it once" in str(error.value)


def test_an_image_is_turned_as_the_model_declares_it() -> None:
    assert agrees(run(Convolutional(), ours.convolutional(), IMAGE))


def test_a_wrong_input_shape() -> None:
    """Inputs that a user converted are handed on as they are."""
    with pytest.raises(crosscheck.SideFailed) as error:
        run(Convolutional(), ours.convolutional(), IMAGE, candidate_inputs=dict)
    assert error.value.side == "candidate" and error.value.framework == "keras"


def test_the_model_is_left_as_found() -> None:
    model = ours.Normed()
    run(Normed(p=0.0), model)
    before = [np.array(v) for v in model.variables]
    call = keras.layers.Layer.__call__
    run(Normed(p=0.0), model, train=True)
    assert keras.layers.Layer.__call__ is call
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, np.array(variable))
    assert keras.config.floatx() == "float32"
