"""A small DCGAN in Flax NNX (Radford et al., 2015, as in `models.dcgan.reference`); images are
(N, H, W, C).
"""

from __future__ import annotations

import jax
from flax import nnx

from models.cnn.jax_port import BatchNorm, ReLU


class Tanh(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.tanh(x)


class LeakyReLU(nnx.Module):
    def __init__(self) -> None:
        self.slope = 0.2

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.leaky_relu(x, self.slope)


class Generator(nnx.Module):
    """Noise (N, 7) -> images (N, 8, 6, 1) in (-1, 1).

    Flax' transposed convolution does not turn its kernel unless it is told to; here it is not, and
    the kernels that PyTorch trained have to be turned on their way.
    """

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.project = nnx.ConvTranspose(7, 14, (4, 3), padding="VALID", use_bias=False, rngs=rngs)
        self.bn1 = BatchNorm(14, rngs)
        self.relu1 = ReLU()
        # PyTorch's padding p and output padding o of a kernel k: (k-1-p, k-1-p+o) around the image.
        self.enlarge = nnx.ConvTranspose(
            14, 9, (3, 3), strides=(2, 2), padding=((1, 2), (1, 2)), use_bias=False, rngs=rngs
        )
        self.bn2 = BatchNorm(9, rngs)
        self.relu2 = ReLU()
        self.paint = nnx.ConvTranspose(9, 1, (3, 3), padding="SAME", rngs=rngs)
        self.tanh = Tanh()

    def __call__(self, z: jax.Array) -> jax.Array:
        x = self.project(z[:, None, None, :])  # (N, 1, 1, 7) -> (N, 4, 3, 14)
        x = self.enlarge(self.relu1(self.bn1(x)))  # (N, 8, 6, 9)
        return self.tanh(self.paint(self.relu2(self.bn2(x))))  # (N, 8, 6, 1)


class Discriminator(nnx.Module):
    """Images (N, 8, 6, 1) -> logits (N, 1), positive for what looks real."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 6, (4, 4), strides=2, padding=1, rngs=rngs)
        self.leaky1 = LeakyReLU()
        self.conv2 = nnx.Conv(6, 11, (3, 3), strides=2, padding=1, use_bias=False, rngs=rngs)
        self.bn = BatchNorm(11, rngs)
        self.leaky2 = LeakyReLU()
        self.score = nnx.Conv(11, 1, (2, 2), padding="VALID", rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.leaky1(self.conv1(x))  # (N, 4, 3, 6)
        x = self.leaky2(self.bn(self.conv2(x)))  # (N, 2, 2, 11)
        return self.score(x)[:, 0, 0]  # (N, 1)


class DCGAN(nnx.Module):
    """Noise (N, 7), real images (M, 8, 6, 1) -> logits of the real (M, 1) and the made (N, 1)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.generator = Generator(rngs)
        self.discriminator = Discriminator(rngs)

    def __call__(self, z: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
        made = self.generator(z)
        return self.discriminator(real), self.discriminator(made)


def build() -> DCGAN:
    """Two untrained models."""
    return DCGAN(nnx.Rngs(0))
