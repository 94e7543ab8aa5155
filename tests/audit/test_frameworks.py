"""Mistakes where the framework makes a difference, beside those of `test_every_framework`: by hand
in NumPy, graphs of Keras and Flax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crosscheck import checks
from models.scratch import Linear, ReLU

from .kit import CLASSES, FEATURES, X, Y, audit, speaking
from .test_healthy import IMAGES, KINDS, Convolutional

# -- NumPy -----------------------------------------------------------------------------------------


class LosesTheBias(Linear):
    def backward(self, dy: Any) -> Any:
        dx = super().backward(dy)
        self.grads["bias"] = np.zeros_like(self.params["bias"])
        return dx


class Leaky(ReLU):
    """Lets everything through on the way back."""

    def backward(self, dy: Any) -> Any:
        return dy


class Mixing(ReLU):
    """The batch's largest value decides about every example."""

    def forward(self, x: Any) -> Any:
        self._top = np.abs(x).max()
        return super().forward(x) / self._top

    def backward(self, dy: Any) -> Any:
        return super().backward(dy / self._top)


RNG = np.random.default_rng(1)
BY_HAND: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "a bias without its gradient": (
        lambda: Convolutional(head=LosesTheBias(120, 3, RNG)),
        {"variables_train", "gradients_match_differences"},
    ),
    "a ReLU that forgets its mask": (
        lambda: Convolutional(relu=Leaky()),
        {"gradients_match_differences"},
    ),
    "a mixed batch": (
        lambda: Convolutional(relu=Mixing()),
        # The gradient of the largest value is missing, and parts of the batch have another one.
        {
            "examples_are_independent",
            "accumulation_equals_the_large_batch",
            "gradients_match_differences",
        },
    ),
}


@pytest.mark.parametrize("what", BY_HAND)
def test_numpy(what: str) -> None:
    build, expected = BY_HAND[what]
    quick = ["overfits_a_few_examples", "inputs_matter"]
    assert set(speaking(audit(build(), IMAGES, y=KINDS, skip=quick))) == expected


# -- Keras -----------------------------------------------------------------------------------------


def keras_model(change: str) -> Any:
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    layers, stop = keras.layers, keras.ops.stop_gradient

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first = layers.Dense(8, name="first")
            self.norm = layers.BatchNormalization(name="norm")
            self.drop = layers.Dropout(0.3, name="drop")
            self.head = layers.Dense(CLASSES, name="head")

        def call(self, x: Any, training: bool = False) -> Any:
            x = self.first(x)
            x = stop(x) if change == "stop" else x
            x = self.norm(x, training=training)
            x = self.drop(x, training=training)
            return self.head(keras.ops.relu(x))

    model = Model()
    model(X)
    model.norm.trainable = change != "frozen norm"
    return model


MODES = (
    "variables_train",
    "eval_is_repeatable",
    "dropout_is_on_in_training",
    "batchnorm_uses_the_batch_in_training",
)
OF_KERAS = {
    "stop": {"variables_train"},
    "frozen norm": set(),  # it shall use its running statistics
}


@pytest.mark.parametrize("change", OF_KERAS)
def test_keras(change: str) -> None:
    report = audit(keras_model(change), only=MODES)
    assert set(speaking(report)) == OF_KERAS[change], report
    assert not report.errors


# -- Flax ------------------------------------------------------------------------------------------


def test_a_stopped_gradient_in_flax() -> None:
    nnx = pytest.importorskip("flax.nnx")
    from jax.lax import stop_gradient

    class Stopped(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.first = nnx.Linear(FEATURES, 8, rngs=rngs)
            self.head = nnx.Linear(8, CLASSES, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.head(nnx.relu(stop_gradient(self.first(x))))

    with pytest.raises(AssertionError, match="no gradient arrives at `first"):
        checks.variables_train(Stopped(nnx.Rngs(0)), {"x": X}, "cross_entropy", Y)


def test_flax_step_of_the_wrong_network() -> None:
    nnx = pytest.importorskip("flax.nnx")
    import optax

    class Pair(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.generator = nnx.Linear(FEATURES, 4, rngs=rngs)
            self.discriminator = nnx.Linear(4, 1, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.discriminator(nnx.tanh(self.generator(x)))

    model = Pair(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    def step() -> None:
        gradients = nnx.grad(lambda net: nnx.softplus(-net(X)).mean())(model)
        optimizer.update(model, gradients)

    given = {"trains": ["generator.*"], "step": step}
    with pytest.raises(AssertionError, match="`discriminator.* shall not train, but the training"):
        checks.only_these_train(model, {"x": X}, **given)
    checks.variables_train(model, {"x": X}, **given)
