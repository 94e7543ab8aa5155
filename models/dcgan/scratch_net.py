"""A small DCGAN from scratch (Radford et al., 2015, as in `models.dcgan.reference`); images are
(N, C, H, W).
"""

from __future__ import annotations

import numpy as np

from models.scratch import (
    Array,
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Layer,
    LeakyReLU,
    ReLU,
    Tanh,
    twin,
)


class Generator(Layer):
    """Noise (N, 7) -> images (N, 1, 8, 6) in (-1, 1)."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.project = ConvTranspose2d(7, 14, (4, 3), rng, bias=False)
        self.bn1 = BatchNorm2d(14)
        self.relu1 = ReLU()
        self.enlarge = ConvTranspose2d(
            14, 9, (3, 3), rng, stride=2, padding=1, output_padding=1, bias=False
        )
        self.bn2 = BatchNorm2d(9)
        self.relu2 = ReLU()
        self.paint = ConvTranspose2d(9, 1, (3, 3), rng, padding=1)
        self.tanh = Tanh()

    def forward(self, z: Array) -> Array:
        x = self.project.forward(z[:, :, None, None])  # (N, 7, 1, 1) -> (N, 14, 4, 3)
        x = self.enlarge.forward(self.relu1.forward(self.bn1.forward(x)))  # (N, 9, 8, 6)
        x = self.paint.forward(self.relu2.forward(self.bn2.forward(x)))  # (N, 1, 8, 6)
        return self.tanh.forward(x)

    def backward(self, dy: Array) -> Array:
        dy = self.paint.backward(self.tanh.backward(dy))
        dy = self.enlarge.backward(self.bn2.backward(self.relu2.backward(dy)))
        return self.project.backward(self.bn1.backward(self.relu1.backward(dy)))[:, :, 0, 0]


class Discriminator(Layer):
    """Images (N, 1, 8, 6) -> logits (N, 1), positive for what looks real."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.conv1 = Conv2d(1, 6, 4, rng, stride=2, padding=1)
        self.leaky1 = LeakyReLU(0.2)
        self.conv2 = Conv2d(6, 11, 3, rng, stride=2, padding=1, bias=False)
        self.bn = BatchNorm2d(11)
        self.leaky2 = LeakyReLU(0.2)
        self.score = Conv2d(11, 1, 2, rng)

    def forward(self, x: Array) -> Array:
        x = self.leaky1.forward(self.conv1.forward(x))  # (N, 6, 4, 3)
        x = self.leaky2.forward(self.bn.forward(self.conv2.forward(x)))  # (N, 11, 2, 2)
        return self.score.forward(x)[:, :, 0, 0]  # (N, 1)

    def backward(self, dy: Array) -> Array:
        dy = self.leaky2.backward(self.score.backward(dy[:, :, None, None]))
        return self.conv1.backward(self.leaky1.backward(self.conv2.backward(self.bn.backward(dy))))


class DCGAN(Layer):
    """Noise (N, 7), real images (M, 1, 8, 6) -> logits of the real (M, 1) and the made (N, 1).

    The discriminator runs twice before it goes backward: its twin remembers the second time.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.generator = Generator(rng)
        self.discriminator = Discriminator(rng)
        self.discriminator_of_made = twin(self.discriminator)

    def forward(self, z: Array, real: Array) -> tuple[Array, Array]:
        made = self.generator.forward(z)
        return self.discriminator.forward(real), self.discriminator_of_made.forward(made)

    def backward(self, dreal: Array, dmade: Array) -> tuple[Array, Array]:
        dimages = self.discriminator_of_made.backward(dmade)
        return self.generator.backward(dimages), self.discriminator.backward(dreal)


def build() -> DCGAN:
    """Two untrained nets, in evaluation mode."""
    net = DCGAN(np.random.default_rng(0))
    net.eval()
    return net
