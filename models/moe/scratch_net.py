"""The mixture of experts from scratch."""

from __future__ import annotations

import numpy as np

from models.scratch import Array, Embedding, Layer, Linear, MixtureOfExperts, RMSNorm

VOCABULARY, DIM, HIDDEN, EXPERTS, TOP = 96, 22, 26, 5, 2


class Model(Layer):
    """Tokens (B, T) -> logits (B, T, 96): one residual block, x + moe(norm(x))."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.embedding = Embedding(VOCABULARY, DIM, rng)
        self.norm1 = RMSNorm(DIM)
        self.moe = MixtureOfExperts(DIM, HIDDEN, EXPERTS, TOP, rng)
        self.norm2 = RMSNorm(DIM)
        self.head = Linear(DIM, VOCABULARY, rng)

    def forward(self, tokens: Array) -> Array:
        x = self.embedding.forward(tokens)  # (B, T, C)
        x = x + self.moe.forward(self.norm1.forward(x))
        return self.head.forward(self.norm2.forward(x))  # (B, T, 96)

    def backward(self, dy: Array) -> None:
        dx = self.norm2.backward(self.head.backward(dy))
        self.embedding.backward(dx + self.norm1.backward(self.moe.backward(dx)))


def build() -> Model:
    """An untrained net, in evaluation mode."""
    net = Model(np.random.default_rng(0))
    net.eval()
    return net
