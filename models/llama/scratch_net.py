"""The Llama-style decoder from scratch."""

from __future__ import annotations

import numpy as np

from models.scratch import Array, Embedding, GroupedQueryAttention, Layer, Linear, RMSNorm, SwiGLU

VOCABULARY, DIM, HEADS, KV_HEADS, SIZE, HIDDEN, BLOCKS = 96, 40, 6, 2, 8, 52, 2


class Block(Layer):
    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.norm1 = RMSNorm(DIM)
        self.attn = GroupedQueryAttention(DIM, HEADS, KV_HEADS, SIZE, rng)
        self.norm2 = RMSNorm(DIM)
        self.mlp = SwiGLU(DIM, HIDDEN, rng)

    def forward(self, x: Array) -> Array:
        x = x + self.attn.forward(self.norm1.forward(x))
        return x + self.mlp.forward(self.norm2.forward(x))

    def backward(self, dy: Array) -> Array:
        dy = dy + self.norm2.backward(self.mlp.backward(dy))
        return dy + self.norm1.backward(self.attn.backward(dy))


class Llama(Layer):
    """Tokens (B, T) -> logits (B, T, 96) (Touvron et al., LLaMA, 2023; grouped queries as in
    Llama 2).
    """

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.embedding = Embedding(VOCABULARY, DIM, rng)
        self.blocks = [Block(rng) for _ in range(BLOCKS)]
        self.norm = RMSNorm(DIM)
        self.head = Linear(DIM, VOCABULARY, rng, bias=False)

    def forward(self, tokens: Array) -> Array:
        x = self.embedding.forward(tokens)  # (B, T, C)
        for block in self.blocks:
            x = block.forward(x)
        return self.head.forward(self.norm.forward(x))  # (B, T, 96)

    def backward(self, dy: Array) -> None:
        dx = self.norm.backward(self.head.backward(dy))
        for block in reversed(self.blocks):
            dx = block.backward(dx)
        self.embedding.backward(dx)


def build() -> Llama:
    """An untrained net, in evaluation mode."""
    net = Llama(np.random.default_rng(0))
    net.eval()
    return net
