"""LeNet-5 in PyTorch; images are (N, C, H, W).

LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document Recognition, 1998,
section II.B: scaled tanh, and subsampling by a mean with a trainable coefficient and bias. As in
later readings of the paper, C3 sees all maps of S2, and a linear layer takes the place of the
radial basis functions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.seeded import randomise


class Squash(nn.Module):
    """1.7159 tanh(2x/3), which maps ±1 onto ±1 (appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))


class Subsample(nn.Module):
    """coefficient · mean over 2 x 2 + bias for each map; an odd last row or column is left out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) * self.weight[:, None, None] + self.bias[:, None, None]


class LeNet(nn.Module):
    """Images (N, 1, 17, 13) -> 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 5, padding=2)
        self.squash1 = Squash()
        self.s2 = Subsample(6)
        self.squash2 = Squash()
        self.c3 = nn.Conv2d(6, 11, 3)
        self.squash3 = Squash()
        self.s4 = Subsample(11)
        self.squash4 = Squash()
        self.c5 = nn.Linear(66, 20)
        self.squash5 = Squash()
        self.f6 = nn.Linear(20, 15)
        self.squash6 = Squash()
        self.output = nn.Linear(15, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squash1(self.c1(x))  # (N, 6, 17, 13)
        x = self.squash2(self.s2(x))  # (N, 6, 8, 6)
        x = self.squash3(self.c3(x))  # (N, 11, 6, 4)
        x = self.squash4(self.s4(x))  # (N, 11, 3, 2)
        x = self.squash5(self.c5(x.flatten(1)))  # (N, 66) -> (N, 20)
        x = self.squash6(self.f6(x))  # (N, 15)
        return self.output(x)  # (N, 10)


def build() -> LeNet:
    """The model with seeded weights, in evaluation mode."""
    model = LeNet()
    randomise(model, seed=5)
    return model.eval()
