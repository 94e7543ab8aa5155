"""The residual network in Flax NNX; images are (N, H, W, C)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

BORDER = ((1, 1), (1, 1))


class BatchNorm(nnx.BatchNorm):
    """Flax puts the biased variance of a batch into its running variance, PyTorch the unbiased.

    Flax' momentum is the share of the old value: one minus PyTorch's.
    """

    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        super().__init__(channels, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.unbiased = True

    def __call__(self, x: jax.Array) -> jax.Array:
        kept = self.momentum * self.var[...]
        y = super().__call__(x)
        if not self.use_running_average and self.unbiased:
            n = math.prod(x.shape[:-1])
            batch = self.var[...] - kept  # (1 - momentum) · biased variance
            self.var[...] = kept + batch * (n / (n - 1))
        return y


class ReLU(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(x)


class MaxPool(nnx.Module):
    """3 x 3, stride 2, with a border that never wins."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=BORDER)


class AvgPool(nnx.Module):
    """3 x 3, stride 2, one pixel of padding that does not count (Flax counts it by default)."""

    def __init__(self) -> None:
        self.count_include_pad = False

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.avg_pool(
            x, (3, 3), (2, 2), padding=BORDER, count_include_pad=self.count_include_pad
        )


class GlobalAvgPool(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.mean(x, axis=(1, 2))


class Stem(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 8, (3, 3), padding=BORDER, rngs=rngs)
        self.bn = BatchNorm(8, rngs)
        self.pool = MaxPool()
        self.relu = ReLU()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.relu(self.pool(self.bn(self.conv(x))))


class Shortcut(nnx.Module):
    """Halves the image and changes the channels."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.pool = AvgPool()
        self.conv = nnx.Conv(inputs, outputs, (1, 1), use_bias=False, rngs=rngs)
        self.bn = BatchNorm(outputs, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.bn(self.conv(self.pool(x)))


class ResidualBlock(nnx.Module):
    """relu(main(x) + shortcut(x)) (He et al., Deep Residual Learning, 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> None:
        # "SAME" with a stride pads right and bottom only; PyTorch pads every side.
        self.conv1 = nnx.Conv(
            inputs, outputs, (3, 3), strides=stride, padding=BORDER, use_bias=False, rngs=rngs
        )
        self.bn1 = BatchNorm(outputs, rngs)
        self.relu1 = ReLU()
        self.conv2 = nnx.Conv(outputs, outputs, (3, 3), padding=BORDER, use_bias=False, rngs=rngs)
        self.bn2 = BatchNorm(outputs, rngs)
        self.shortcut = Shortcut(inputs, outputs, rngs) if stride > 1 else None
        self.relu2 = ReLU()

    def __call__(self, x: jax.Array) -> jax.Array:
        main = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        side = x if self.shortcut is None else self.shortcut(x)
        return self.relu2(main + side)


class CNN(nnx.Module):
    """Images (N, 8, 6, 1) -> 10 logits."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = Stem(rngs)
        self.block1 = ResidualBlock(8, 12, 2, rngs)
        self.block2 = ResidualBlock(12, 12, 1, rngs)
        self.pool = GlobalAvgPool()
        self.fc = nnx.Linear(12, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)  # (N, 4, 3, 8)
        x = self.block2(self.block1(x))  # (N, 2, 2, 12)
        return self.fc(self.pool(x))  # (N, 10)


def build() -> CNN:
    """An untrained model."""
    return CNN(nnx.Rngs(0))
