"""The residual network from scratch; images are (N, C, H, W)."""

from __future__ import annotations

import numpy as np

from models.scratch import (
    Array,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    GlobalAvgPool,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
)


class Stem(Layer):
    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.conv = Conv2d(1, 8, 3, rng, padding=1)
        self.bn = BatchNorm2d(8)
        self.pool = MaxPool2d(3, stride=2, padding=1)
        self.relu = ReLU()

    def forward(self, x: Array) -> Array:
        return self.relu.forward(self.pool.forward(self.bn.forward(self.conv.forward(x))))

    def backward(self, dy: Array) -> Array:
        return self.conv.backward(self.bn.backward(self.pool.backward(self.relu.backward(dy))))


class Shortcut(Layer):
    """Halves the image and changes the channels; the mean keeps pixels that a stride would skip."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.pool = AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.conv = Conv2d(inputs, outputs, 1, rng, bias=False)
        self.bn = BatchNorm2d(outputs)

    def forward(self, x: Array) -> Array:
        return self.bn.forward(self.conv.forward(self.pool.forward(x)))

    def backward(self, dy: Array) -> Array:
        return self.pool.backward(self.conv.backward(self.bn.backward(dy)))


class ResidualBlock(Layer):
    """relu(main(x) + shortcut(x)) (He et al., Deep Residual Learning, 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.conv1 = Conv2d(inputs, outputs, 3, rng, stride=stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(outputs)
        self.relu1 = ReLU()
        self.conv2 = Conv2d(outputs, outputs, 3, rng, padding=1, bias=False)
        self.bn2 = BatchNorm2d(outputs)
        self.shortcut = Shortcut(inputs, outputs, rng) if stride > 1 else None
        self.relu2 = ReLU()

    def forward(self, x: Array) -> Array:
        main = self.relu1.forward(self.bn1.forward(self.conv1.forward(x)))
        main = self.bn2.forward(self.conv2.forward(main))
        side = x if self.shortcut is None else self.shortcut.forward(x)
        return self.relu2.forward(main + side)

    def backward(self, dy: Array) -> Array:
        dy = self.relu2.backward(dy)  # reaches both summands
        dmain = self.relu1.backward(self.conv2.backward(self.bn2.backward(dy)))
        dmain = self.conv1.backward(self.bn1.backward(dmain))
        return dmain + (dy if self.shortcut is None else self.shortcut.backward(dy))


class CNN(Layer):
    """Images (N, 1, 8, 6) -> 10 logits."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.stem = Stem(rng)
        self.block1 = ResidualBlock(8, 12, 2, rng)
        self.block2 = ResidualBlock(12, 12, 1, rng)
        self.pool = GlobalAvgPool()
        self.fc = Linear(12, 10, rng)

    def forward(self, x: Array) -> Array:
        x = self.stem.forward(x)  # (N, 8, 4, 3)
        x = self.block2.forward(self.block1.forward(x))  # (N, 12, 2, 2)
        return self.fc.forward(self.pool.forward(x))  # (N, 10)

    def backward(self, dy: Array) -> Array:
        dy = self.pool.backward(self.fc.backward(dy))
        return self.stem.backward(self.block1.backward(self.block2.backward(dy)))


def build() -> CNN:
    """An untrained net, in evaluation mode."""
    net = CNN(np.random.default_rng(0))
    net.eval()
    return net
