"""A small DCGAN in Keras 3 (Radford et al., 2015, as in `models.dcgan.reference`); images are
(N, H, W, C).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from models.cnn.keras_port import BatchNorm


class Generator(layers.Layer):
    """Noise (N, 7) -> images (N, 8, 6, 1) in (-1, 1)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.project = layers.Conv2DTranspose(14, (4, 3), use_bias=False, name="project")
        self.bn1 = BatchNorm(name="bn1")
        self.relu1 = layers.ReLU(name="relu1")
        # "same" would cut off the last row and column; PyTorch's padding of 1 cuts the first.
        self.enlarge = layers.Conv2DTranspose(9, 3, strides=2, use_bias=False, name="enlarge")
        self.crop = layers.Cropping2D(((1, 0), (1, 0)), name="crop")
        self.bn2 = BatchNorm(name="bn2")
        self.relu2 = layers.ReLU(name="relu2")
        self.paint = layers.Conv2DTranspose(1, 3, padding="same", name="paint")
        self.tanh = layers.Activation("tanh", name="tanh")

    def call(self, z: Any) -> Any:
        x = self.project(z[:, None, None, :])  # (N, 1, 1, 7) -> (N, 4, 3, 14)
        x = self.enlarge(self.relu1(self.bn1(x)))  # (N, 9, 7, 9)
        x = self.relu2(self.bn2(self.crop(x)))  # (N, 8, 6, 9)
        return self.tanh(self.paint(x))  # (N, 8, 6, 1)


class Discriminator(layers.Layer):
    """Images (N, 8, 6, 1) -> logits (N, 1), positive for what looks real."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # A strided "same" convolution may pad right and bottom only; PyTorch pads every side.
        self.pad1 = layers.ZeroPadding2D(1, name="pad1")
        self.conv1 = layers.Conv2D(6, 4, strides=2, name="conv1")
        self.leaky1 = layers.LeakyReLU(negative_slope=0.2, name="leaky1")
        self.pad2 = layers.ZeroPadding2D(1, name="pad2")
        self.conv2 = layers.Conv2D(11, 3, strides=2, use_bias=False, name="conv2")
        self.bn = BatchNorm(name="bn")
        self.leaky2 = layers.LeakyReLU(negative_slope=0.2, name="leaky2")
        self.score = layers.Conv2D(1, 2, name="score")

    def call(self, x: Any) -> Any:
        x = self.leaky1(self.conv1(self.pad1(x)))  # (N, 4, 3, 6)
        x = self.leaky2(self.bn(self.conv2(self.pad2(x))))  # (N, 2, 2, 11)
        return self.score(x)[:, 0, 0]  # (N, 1)


class DCGAN(keras.Model):
    """Noise (N, 7), real images (M, 8, 6, 1) -> logits of the real (M, 1) and the made (N, 1)."""

    def __init__(self) -> None:
        super().__init__(name="dcgan")
        self.generator = Generator(name="generator")
        self.discriminator = Discriminator(name="discriminator")

    def call(self, z: Any, real: Any) -> Any:
        made = self.generator(z)
        return self.discriminator(real), self.discriminator(made)


def build() -> DCGAN:
    """Two untrained models with all of their variables."""
    model = DCGAN()
    model(ops.zeros((1, 7)), ops.zeros((1, 8, 6, 1)))
    return model
