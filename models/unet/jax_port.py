"""A small U-Net in Flax NNX (Ronneberger et al., 2015, as in `models.unet.reference`); images are
(N, H, W, C).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from models.cnn.jax_port import BatchNorm, ReLU


class ConvBNReLU(nnx.Module):
    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(inputs, outputs, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.bn = BatchNorm(outputs, rngs)
        self.relu = ReLU()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.relu(self.bn(self.conv(x)))


class MaxPool(nnx.Module):
    """2 x 2; an odd last row or column is left out."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.max_pool(x, (2, 2), strides=(2, 2))


class Resize(nnx.Module):
    """Bilinear, with half-pixel centres."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.image.resize(x, (len(x), *self.size, x.shape[-1]), "bilinear")


class UNet(nnx.Module):
    """Images (N, 17, 13, 1) -> logits of three classes for each pixel, (N, 17, 13, 3)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.down1 = ConvBNReLU(1, 6, rngs)
        self.pool1 = MaxPool()
        self.down2 = ConvBNReLU(6, 10, rngs)
        self.pool2 = MaxPool()
        self.bottom = ConvBNReLU(10, 14, rngs)
        # PyTorch's padding p and output padding o of a kernel k: (k-1-p, k-1-p+o) around the image.
        self.enlarge2 = nnx.ConvTranspose(
            14,
            9,
            (3, 3),
            strides=(2, 2),
            padding=((1, 2), (1, 2)),
            transpose_kernel=True,
            rngs=rngs,
        )
        self.up2 = ConvBNReLU(10 + 9, 11, rngs)
        self.enlarge1 = Resize((17, 13))
        self.up1 = ConvBNReLU(6 + 11, 7, rngs)
        self.head = nnx.Conv(7, 3, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        skip1 = self.down1(x)  # (N, 17, 13, 6)
        skip2 = self.down2(self.pool1(skip1))  # (N, 8, 6, 10)
        x = self.bottom(self.pool2(skip2))  # (N, 4, 3, 14)
        x = self.up2(self.join(skip2, self.enlarge2(x)))  # (N, 8, 6, 11)
        x = self.up1(self.join(skip1, self.enlarge1(x)))  # (N, 17, 13, 7)
        return self.head(x)

    def join(self, skip: jax.Array, x: jax.Array) -> jax.Array:
        """Side by side in the channels, the skip first."""
        return jnp.concatenate([skip, x], axis=-1)


def build() -> UNet:
    """An untrained model."""
    return UNet(nnx.Rngs(0))
