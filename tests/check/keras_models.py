"""Keras counterparts of `torch_models`. Only imported by tests that have asked for Keras."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops


def mlp() -> Any:
    """Sequential, with an activation inside a Dense: the norm's eps as in PyTorch."""
    return keras.Sequential(
        [
            layers.Input((6,)),
            layers.Dense(8, activation="relu", name="first"),
            layers.LayerNormalization(epsilon=1e-5, name="normalise"),
            layers.Dense(8, name="second"),
            layers.Activation("tanh", name="squash"),
            layers.Dense(3, name="logits"),
        ]
    )


class Block(layers.Layer):
    def __init__(self, n: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm = layers.LayerNormalization(epsilon=1e-5, name="norm")
        self.up = layers.Dense(2 * n, name="up")
        self.act = layers.Activation(lambda x: keras.activations.gelu(x, approximate=False), name="act")  # fmt: skip  # noqa: E501
        self.down = layers.Dense(n, name="down")

    def call(self, x: Any) -> Any:
        return x + self.branch(x)

    def branch(self, x: Any) -> Any:
        return self.down(self.act(self.up(self.norm(x))))


class Residual(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.emb = layers.Dense(6, name="emb")
        self.blocks = [Block(6, name=f"block{i}") for i in range(3)]
        self.out = layers.Dense(3, name="out")
        self(ops.zeros((1, 7, 4)))

    def call(self, x: Any) -> Any:
        x = self.emb(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def convolutional(nchw_flatten: bool = True) -> Any:
    """Channels last; the permutation before Flatten is what ports forget."""
    order = [layers.Permute((3, 1, 2))] if nchw_flatten else []
    return keras.Sequential(
        [
            layers.Input((7, 9, 3)),
            layers.Conv2D(4, 3, padding="same", activation="relu", name="conv1"),
            layers.Conv2D(6, 3, strides=2, activation="relu", name="conv2"),
            *order,
            layers.Flatten(),
            layers.Dense(5, name="dense"),
        ]
    )


def two_branches() -> Any:
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    left = layers.Dense(4, activation="relu", name="left")(a)
    right = layers.Dense(4, activation="relu", name="right")(b)
    joined = layers.Concatenate()([left, right])
    return keras.Model([a, b], layers.Dense(3, name="join")(joined))


class Normed(keras.Model):
    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()
        self.fc = layers.Dense(5, name="fc")
        self.bn = layers.BatchNormalization(epsilon=1e-5, momentum=momentum, name="bn")
        self.drop = layers.Dropout(0.0, name="drop")
        self.out = layers.Dense(3, name="out")
        self(ops.zeros((1, 6)))

    def call(self, x: Any, training: bool = False) -> Any:
        x = ops.relu(self.bn(self.fc(x), training=training))
        return self.out(self.drop(x, training=training))


def outputs(mode: str) -> Any:
    x = keras.Input((6,))
    h = layers.Dense(4, activation="tanh", name="a")(x)
    y = layers.Dense(3, name="b")(h)
    return keras.Model(x, {"logits": y, "hidden": h} if mode == "dict" else [y, h])
