"""A variational autoencoder in PyTorch.

Kingma, Welling, Auto-Encoding Variational Bayes, 2013, appendix C: one hidden layer of tanh on each
side, and means of the pixels by a sigmoid (those of Gaussians of fixed width: the pair's loss is a
squared error). The noise of the reparameterisation (section 2.4) is an input: two programs that
draw their own would differ.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.seeded import randomise


class Encoder(nn.Module):
    """Images (N, 48) -> mean and log-variance of the posterior, (N, 5) each."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(48, 30)
        self.tanh = nn.Tanh()
        self.mean = nn.Linear(30, 5)
        self.logvar = nn.Linear(30, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.tanh(self.hidden(x))  # (N, 30)
        return self.mean(h), self.logvar(h)


class Sample(nn.Module):
    """z = mean + σ · noise with σ = exp(logvar / 2)."""

    def forward(self, mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
        return mean + torch.exp(logvar / 2) * noise


class Decoder(nn.Module):
    """Codes (N, 5) -> images (N, 48) in (0, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(5, 26)
        self.tanh = nn.Tanh()
        self.pixels = nn.Linear(26, 48)
        self.sigmoid = nn.Sigmoid()

    def forward(self, z: Tensor) -> Tensor:
        return self.sigmoid(self.pixels(self.tanh(self.hidden(z))))


class VAE(nn.Module):
    """Images (N, 48) and noise (N, 5) -> reconstruction (N, 48), mean and log-variance (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.sample = Sample()
        self.decoder = Decoder()

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encoder(x)
        return self.decoder(self.sample(mean, logvar, noise)), mean, logvar


def build() -> VAE:
    """The model with seeded weights, in evaluation mode."""
    model = VAE()
    randomise(model, seed=11)
    return model.eval()
