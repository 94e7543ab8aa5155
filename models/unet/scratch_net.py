"""A small U-Net from scratch (Ronneberger et al., 2015, as in `models.unet.reference`); images are
(N, C, H, W).
"""

from __future__ import annotations

import numpy as np

from models.scratch import (
    Array,
    BatchNorm2d,
    BilinearResize,
    Conv2d,
    ConvTranspose2d,
    Layer,
    MaxPool2d,
    ReLU,
    array_namespace,
)


class ConvBNReLU(Layer):
    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.conv = Conv2d(inputs, outputs, 3, rng, padding=1, bias=False)
        self.bn = BatchNorm2d(outputs)
        self.relu = ReLU()

    def forward(self, x: Array) -> Array:
        return self.relu.forward(self.bn.forward(self.conv.forward(x)))

    def backward(self, dy: Array) -> Array:
        return self.conv.backward(self.bn.backward(self.relu.backward(dy)))


class UNet(Layer):
    """Images (N, 1, 17, 13) -> logits of three classes for each pixel, (N, 3, 17, 13)."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.down1 = ConvBNReLU(1, 6, rng)
        self.pool1 = MaxPool2d(2, stride=2)
        self.down2 = ConvBNReLU(6, 10, rng)
        self.pool2 = MaxPool2d(2, stride=2)
        self.bottom = ConvBNReLU(10, 14, rng)
        self.enlarge2 = ConvTranspose2d(14, 9, (3, 3), rng, stride=2, padding=1, output_padding=1)
        self.up2 = ConvBNReLU(10 + 9, 11, rng)
        self.enlarge1 = BilinearResize((17, 13))
        self.up1 = ConvBNReLU(6 + 11, 7, rng)
        self.head = Conv2d(7, 3, 1, rng)

    def forward(self, x: Array) -> Array:
        skip1 = self.down1.forward(x)  # (N, 6, 17, 13)
        skip2 = self.down2.forward(self.pool1.forward(skip1))  # (N, 10, 8, 6)
        x = self.bottom.forward(self.pool2.forward(skip2))  # (N, 14, 4, 3)
        x = self.up2.forward(self.join(skip2, self.enlarge2.forward(x)))  # (N, 11, 8, 6)
        x = self.up1.forward(self.join(skip1, self.enlarge1.forward(x)))  # (N, 7, 17, 13)
        return self.head.forward(x)

    def backward(self, dy: Array) -> Array:
        dskip1, dy = self.split(self.up1.backward(self.head.backward(dy)), 6)
        dskip2, dy = self.split(self.up2.backward(self.enlarge1.backward(dy)), 10)
        dy = self.pool2.backward(self.bottom.backward(self.enlarge2.backward(dy)))
        dy = self.pool1.backward(self.down2.backward(dskip2 + dy))
        return self.down1.backward(dskip1 + dy)

    def join(self, skip: Array, x: Array) -> Array:
        """Side by side in the channels, the skip first."""
        return array_namespace(x).concatenate([skip, x], axis=1)

    def split(self, d: Array, skipped: int) -> tuple[Array, Array]:
        """The adjoint of `join`."""
        return d[:, :skipped], d[:, skipped:]


def build() -> UNet:
    """An untrained net, in evaluation mode."""
    net = UNet(np.random.default_rng(0))
    net.eval()
    return net
