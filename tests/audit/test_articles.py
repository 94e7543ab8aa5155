"""The mistakes of two articles on testing machine-learning code, in PyTorch and Keras: short tests
as a user would write them.

Chase Roberts, How to unit test machine learning code (2017): a layer that is not connected, a
BatchNorm in inference mode, a softmax over a single logit, a step that trains the wrong network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crosscheck import checks

X = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)
LABELS = np.arange(10) % 3


class Skipped(nn.Module):
    """``second`` is given x where the first layer's output was meant."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        hidden = torch.relu(self.first(x))
        assert hidden.shape == x.shape
        return self.second(x)


class Adversaries(nn.Module):
    """A generator and a discriminator."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator = nn.Linear(6, 4)
        self.discriminator = nn.Linear(4, 1)

    def forward(self, noise: Any) -> Any:
        return self.discriminator(torch.tanh(self.generator(noise)))


def generator_step(model: Adversaries, parameters: Any) -> Callable[[], None]:
    optimizer = torch.optim.Adam(parameters, lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        F.softplus(-model(torch.tensor(X))).mean().backward()
        optimizer.step()

    return step


def test_torch_layer_that_is_not_connected() -> None:
    with pytest.raises(AssertionError, match="no gradient arrives at `first.weight`"):
        checks.variables_train(Skipped(), {"x": X}, "cross_entropy", LABELS)


def test_torch_layer_that_is_not_connected_by_the_users_own_step() -> None:
    model = Skipped()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(torch.tensor(X)), torch.tensor(LABELS))
        loss = loss + 0 * sum(p.sum() for p in model.parameters())  # decay alone moves the rest
        loss.backward()
        optimizer.step()

    with pytest.raises(AssertionError, match="the step moves it by weight decay alone"):
        checks.variables_train(model, {"x": X}, "cross_entropy", LABELS, step=step)


def test_torch_batchnorm_in_inference_mode() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        model.eval()  # once for validation, and never back
        optimizer.zero_grad()
        F.cross_entropy(model(torch.tensor(X)), torch.tensor(LABELS)).backward()
        optimizer.step()

    with pytest.raises(AssertionError, match="`1` is in inference mode in your training step"):
        checks.batchnorm_uses_the_batch_in_training(model, {"x": X}, step=step)


def test_torch_softmax_over_one_logit() -> None:
    with pytest.raises(AssertionError, match="the loss is always zero"):
        checks.loss_depends_on_the_model(
            nn.Linear(6, 1), {"x": X}, "cross_entropy", np.zeros(10, int)
        )


def test_torch_generator_step_that_trains_the_discriminator() -> None:
    model = Adversaries()
    wrong = generator_step(model, model.parameters())
    with pytest.raises(AssertionError, match="`discriminator.weight` shall not train, but the"):
        checks.only_these_train(model, {"x": X}, trains=["generator.*"], step=wrong)
    right = generator_step(model, model.generator.parameters())
    checks.only_these_train(model, {"x": X}, trains=["generator.*"], step=right)
    checks.variables_train(model, {"x": X}, trains=["generator.*"], step=right)


# -- Keras -----------------------------------------------------------------------------------------


@pytest.fixture
def keras() -> Any:
    module = pytest.importorskip("keras")
    if module.backend.backend() != "tensorflow":
        pytest.skip("the steps are written in TensorFlow")
    module.utils.set_random_seed(0)
    return module


def keras_step(keras: Any, model: Any, variables: Any, *, training: bool = True) -> Any:
    import tensorflow as tf

    optimizer = keras.optimizers.Adam(0.01)

    def step() -> None:
        with tf.GradientTape() as tape:
            logits = model(X, training=training)
            loss = keras.ops.mean(keras.ops.softplus(-logits))
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(
            (g, v) for g, v in zip(gradients, variables, strict=True) if g is not None
        )

    return step


def adversaries(keras: Any) -> Any:
    inputs = keras.Input((6,))
    made = keras.layers.Dense(4, activation="tanh", name="generator")(inputs)
    return keras.Model(inputs, keras.layers.Dense(1, name="discriminator")(made))


def test_keras_layer_that_is_not_connected(keras: Any) -> None:
    class Skipping(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first = keras.layers.Dense(6, name="first")
            self.second = keras.layers.Dense(3, name="second")

        def call(self, x: Any) -> Any:
            self.first(x)
            return self.second(x)

    model = Skipping()
    model(X)
    with pytest.raises(AssertionError, match="no gradient arrives at `first/kernel`"):
        checks.variables_train(model, {"x": X}, "cross_entropy", LABELS)
    with pytest.raises(AssertionError, match="no gradient arrives at `first/kernel`"):
        step = keras_step(keras, model, model.trainable_variables)
        checks.variables_train(model, {"x": X}, "cross_entropy", LABELS, step=step)


def test_keras_batchnorm_in_inference_mode(keras: Any) -> None:
    class Normed(keras.Model):
        def __init__(self, **given: Any) -> None:
            super().__init__()
            self.first = keras.layers.Dense(8)
            self.norm = keras.layers.BatchNormalization(name="norm")
            self.head = keras.layers.Dense(3)
            self.given = given

        def call(self, x: Any, training: bool = False) -> Any:
            return self.head(self.norm(self.first(x), **({"training": training} | self.given)))

    wrong, right = Normed(training=False), Normed()
    for model in (wrong, right):
        model(X)
    with pytest.raises(AssertionError, match="`norm` is in inference mode while training"):
        checks.batchnorm_uses_the_batch_in_training(wrong, {"x": X})
    checks.batchnorm_uses_the_batch_in_training(right, {"x": X})
    forgotten = keras_step(keras, right, right.trainable_variables, training=False)
    with pytest.raises(AssertionError, match="`norm` is in inference mode in your training step"):
        checks.batchnorm_uses_the_batch_in_training(right, {"x": X}, step=forgotten)


def test_keras_softmax_over_one_logit(keras: Any) -> None:
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    with pytest.raises(AssertionError, match="the loss is always zero"):
        checks.loss_depends_on_the_model(model, {"x": X}, "cross_entropy", np.zeros(10, int))


def test_keras_generator_step_that_trains_the_discriminator(keras: Any) -> None:
    model = adversaries(keras)
    wrong = keras_step(keras, model, model.trainable_variables)
    with pytest.raises(AssertionError, match="`discriminator/kernel` shall not train, but the"):
        checks.only_these_train(model, {"x": X}, trains=["generator/*"], step=wrong)
    right = keras_step(keras, model, model.get_layer("generator").trainable_variables)
    checks.only_these_train(model, {"x": X}, trains=["generator/*"], step=right)
    checks.variables_train(model, {"x": X}, trains=["generator/*"], step=right)
