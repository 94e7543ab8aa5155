"""A small DCGAN in PyTorch; images are (N, C, H, W).

Radford, Metz, Chintala, Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks, 2015: transposed convolutions, batch normalisation, and LeakyReLU of slope 0.2
in the discriminator. One forward pass gives both D(real) and D(G(z)), so that the two losses of
Goodfellow et al., Generative Adversarial Nets, 2014, stand on its two outputs: what comes back from
D(real) trains D, what comes back from D(G(z)) trains both.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.seeded import randomise


class Generator(nn.Module):
    """Noise (N, 7) -> images (N, 1, 8, 6) in (-1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.ConvTranspose2d(7, 14, (4, 3), bias=False)
        self.bn1 = nn.BatchNorm2d(14)
        self.relu1 = nn.ReLU()
        self.enlarge = nn.ConvTranspose2d(
            14, 9, 3, stride=2, padding=1, output_padding=1, bias=False
        )
        self.bn2 = nn.BatchNorm2d(9)
        self.relu2 = nn.ReLU()
        self.paint = nn.ConvTranspose2d(9, 1, 3, padding=1)
        self.tanh = nn.Tanh()

    def forward(self, z: Tensor) -> Tensor:
        x = self.project(z[:, :, None, None])  # (N, 7, 1, 1) -> (N, 14, 4, 3)
        x = self.enlarge(self.relu1(self.bn1(x)))  # (N, 9, 8, 6)
        return self.tanh(self.paint(self.relu2(self.bn2(x))))  # (N, 1, 8, 6)


class Discriminator(nn.Module):
    """Images (N, 1, 8, 6) -> logits (N, 1), positive for what looks real."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 4, stride=2, padding=1)
        self.leaky1 = nn.LeakyReLU(0.2)
        self.conv2 = nn.Conv2d(6, 11, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(11)
        self.leaky2 = nn.LeakyReLU(0.2)
        self.score = nn.Conv2d(11, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.leaky1(self.conv1(x))  # (N, 6, 4, 3)
        x = self.leaky2(self.bn(self.conv2(x)))  # (N, 11, 2, 2)
        return self.score(x).flatten(1)  # (N, 1)


class DCGAN(nn.Module):
    """Noise (N, 7), real images (M, 1, 8, 6) -> logits of the real (M, 1) and the made (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = Generator()
        self.discriminator = Discriminator()

    def forward(self, z: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        made = self.generator(z)
        return self.discriminator(real), self.discriminator(made)


def build() -> DCGAN:
    """The two networks with seeded weights, in evaluation mode."""
    model = DCGAN()
    randomise(model, seed=17)
    return model.eval()
