"""LeNet-5 in Keras 3 (LeCun et al., 1998, as in `models.lenet.reference`); (N, H, W, C)."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops


class Squash(layers.Layer):
    """1.7159 tanh(2x/3), which maps ±1 onto ±1."""

    def call(self, x: Any) -> Any:
        return 1.7159 * ops.tanh(x * (2 / 3))


class Subsample(layers.Layer):
    """coefficient · mean over 2 x 2 + bias for each map; an odd last row or column is left out."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pool = layers.AveragePooling2D(2, name="pool")

    def build(self, shape: Any) -> None:
        self.weight = self.add_weight(shape=(shape[-1],), initializer="ones", name="weight")
        self.bias = self.add_weight(shape=(shape[-1],), initializer="zeros", name="bias")

    def call(self, x: Any) -> Any:
        return self.pool(x) * self.weight + self.bias


class FlattenMaps(layers.Layer):
    """(N, H, W, C) -> (N, C·H·W): map after map, the order in which C5 was trained."""

    def call(self, x: Any) -> Any:
        return ops.reshape(ops.transpose(x, (0, 3, 1, 2)), (x.shape[0], -1))


class LeNet(keras.Model):
    """Images (N, 17, 13, 1) -> 10 logits."""

    def __init__(self) -> None:
        super().__init__(name="lenet")
        self.c1 = layers.Conv2D(6, 5, padding="same", name="c1")
        self.squash1 = Squash(name="squash1")
        self.s2 = Subsample(name="s2")
        self.squash2 = Squash(name="squash2")
        self.c3 = layers.Conv2D(11, 3, name="c3")
        self.squash3 = Squash(name="squash3")
        self.s4 = Subsample(name="s4")
        self.squash4 = Squash(name="squash4")
        self.flatten = FlattenMaps(name="flatten")
        self.c5 = layers.Dense(20, name="c5")
        self.squash5 = Squash(name="squash5")
        self.f6 = layers.Dense(15, name="f6")
        self.squash6 = Squash(name="squash6")
        self.head = layers.Dense(10, name="head")  # `output` is a property of a Keras model

    def call(self, x: Any) -> Any:
        x = self.squash1(self.c1(x))  # (N, 17, 13, 6)
        x = self.squash2(self.s2(x))  # (N, 8, 6, 6)
        x = self.squash3(self.c3(x))  # (N, 6, 4, 11)
        x = self.squash4(self.s4(x))  # (N, 3, 2, 11)
        x = self.squash5(self.c5(self.flatten(x)))  # (N, 66) -> (N, 20)
        x = self.squash6(self.f6(x))  # (N, 15)
        return self.head(x)  # (N, 10)


def build() -> LeNet:
    """An untrained model with all of its variables."""
    model = LeNet()
    model(ops.zeros((1, 17, 13, 1)))
    return model
