"""A small U-Net in Keras 3 (Ronneberger et al., 2015, as in `models.unet.reference`); images are
(N, H, W, C).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from models.cnn.keras_port import BatchNorm


class ConvBNReLU(layers.Layer):
    def __init__(self, outputs: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(outputs, 3, padding="same", use_bias=False, name="conv")
        self.bn = BatchNorm(name="bn")
        self.relu = layers.ReLU(name="relu")

    def call(self, x: Any) -> Any:
        return self.relu(self.bn(self.conv(x)))


class Resize(layers.Layer):
    """Bilinear, with half-pixel centres."""

    def __init__(self, size: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    def call(self, x: Any) -> Any:
        return ops.image.resize(x, self.size, interpolation="bilinear")


class UNet(keras.Model):
    """Images (N, 17, 13, 1) -> logits of three classes for each pixel, (N, 17, 13, 3)."""

    def __init__(self) -> None:
        super().__init__(name="unet")
        self.down1 = ConvBNReLU(6, name="down1")
        self.pool1 = layers.MaxPooling2D(2, name="pool1")
        self.down2 = ConvBNReLU(10, name="down2")
        self.pool2 = layers.MaxPooling2D(2, name="pool2")
        self.bottom = ConvBNReLU(14, name="bottom")
        # "same" would cut off the last row and column; PyTorch's padding of 1 cuts the first.
        self.enlarge2 = layers.Conv2DTranspose(9, 3, strides=2, name="enlarge2")
        self.crop2 = layers.Cropping2D(((1, 0), (1, 0)), name="crop2")
        self.up2 = ConvBNReLU(11, name="up2")
        self.enlarge1 = Resize((17, 13), name="enlarge1")
        self.up1 = ConvBNReLU(7, name="up1")
        self.head = layers.Conv2D(3, 1, name="head")

    def call(self, x: Any) -> Any:
        skip1 = self.down1(x)  # (N, 17, 13, 6)
        skip2 = self.down2(self.pool1(skip1))  # (N, 8, 6, 10)
        x = self.bottom(self.pool2(skip2))  # (N, 4, 3, 14)
        x = self.crop2(self.enlarge2(x))  # (N, 9, 7, 9) -> (N, 8, 6, 9)
        x = self.up2(self.join(skip2, x))  # (N, 8, 6, 11)
        x = self.up1(self.join(skip1, self.enlarge1(x)))  # (N, 17, 13, 7)
        return self.head(x)

    def join(self, skip: Any, x: Any) -> Any:
        """Side by side in the channels, the skip first."""
        return ops.concatenate([skip, x], axis=-1)


def build() -> UNet:
    """An untrained model with all of its variables."""
    model = UNet()
    model(ops.zeros((1, 17, 13, 1)))
    return model
