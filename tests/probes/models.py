"""Small pairs with one mistake each that a random batch of normals hides."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.check.numpy_models import LN, Affine, Stack


class Normed(nn.Module):
    """A LayerNorm on the inputs as they come, then a head."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6, eps=eps)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


def normed_by_hand(eps: float = 1e-5) -> Stack:
    return Stack(LN(6, eps), Affine(6, 3))


class Downsampled(nn.Module):
    """A strided convolution; ``tail`` pads as TensorFlow's SAME does, at the end where it can."""

    def __init__(self, tail: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, stride=2, padding=0 if tail else 1)
        self.head = nn.Linear(3, 4)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        if self.tail:
            sides = []
            for n in (x.shape[-1], x.shape[-2]):
                whole = max((-(-n // 2) - 1) * 2 + 3 - n, 0)
                sides += [whole // 2, whole - whole // 2]
            x = F.pad(x, sides)
        return self.head(F.relu(self.conv(x)).mean((-1, -2)))


class Encoder(nn.Module):
    """Embedding, one attention over the visible tokens, a head on the first."""

    def __init__(self, masked: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 3)
        self.masked = masked

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids)
        scores = self.q(x) @ self.k(x).transpose(-1, -2) / 8**0.5
        if self.masked:
            scores = scores.masked_fill(~mask.bool()[:, None, :], -1e9)
        return self.head((scores.softmax(-1) @ self.v(x))[:, 0])


class Batched(nn.Module):
    """A BatchNorm between two Linears; ``swapped`` reads mean and variance from each other."""

    def __init__(self, forgets_statistics: bool = False) -> None:
        super().__init__()
        self.fc, self.bn, self.out = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.forgets = forgets_statistics

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if self.forgets:
            x = self.bn.weight * x / (1 + self.bn.eps) ** 0.5 + self.bn.bias
        else:
            x = self.bn(x)
        return self.out(torch.relu(x))


class Rowwise(nn.Module):
    """A Linear; ``fixed`` takes no other batch than it was written for."""

    def __init__(self, fixed: int = 0) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.fixed = fixed

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.reshape(self.fixed, 6) if self.fixed else x)


class Idle(nn.Module):
    """Rows that nobody looks up, a layer that is never called, a symmetric square, ones, zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4, padding_idx=0)
        self.square = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.spare = nn.Linear(4, 2)
        self.out = nn.Linear(4, 3)
        with torch.no_grad():
            self.square.weight.copy_(self.square.weight + self.square.weight.T.clone())
            self.square.bias.zero_()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(torch.tanh(self.square(self.embed(ids))))
        return self.out(x)


class IdleByHand:
    """The same in NumPy, forward only."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.table = rng.normal(size=(9, 4)).astype(np.float32)
        self.square, self.norm, self.spare = Affine(4, 4), LN(4), Affine(4, 2)
        self.out = Affine(4, 3)

    def forward(self, ids: Any) -> Any:
        x = np.tanh(self.square.forward(self.table[ids]))
        return self.out.forward(self.norm.forward(x))
