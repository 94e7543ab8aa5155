"""Layers with one mistake each, in a file that a script can import."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.check.numpy_models import LN, Affine


class ForgetfulLN(LN):
    """Its VJP leaves out the mean."""

    def backward(self, dout: Any) -> Any:
        self.dgamma, self.dbeta = (dout * self.h).sum(0), dout.sum(0)
        d = dout * self.gamma
        return (d - self.h * (d * self.h).mean(-1, keepdims=True)) * self.r


class DoubledAffine(Affine):
    """Its weight's gradient is twice what it should be."""

    def backward(self, dout: Any) -> Any:
        dx = super().backward(dout)
        self.dW = 2 * self.dW
        return dx


class Causal(nn.Module):
    """Attention in which a token sees itself and those before it; ``leaks``: a defect, it sees the
    next one too, which takes two tokens to show."""

    def __init__(self, n: int = 4, leaks: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(n, n) for _ in range(3))
        self.n, self.leaks = n, leaks

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(-1, -2)
        seen = torch.ones(x.shape[1], x.shape[1]).tril(1 if self.leaks else 0)
        return scores.masked_fill(seen == 0, -1e9).softmax(-1) @ self.v(x)


class Attending(nn.Module):
    def __init__(self, leaks: bool = False) -> None:
        super().__init__()
        self.attention, self.head = Causal(4, leaks), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x))


class Shifted(Affine):
    """It adds its bias twice."""

    def forward(self, x: Any) -> Any:
        return super().forward(x) + self.b
