"""The character-level GPT from scratch."""

from __future__ import annotations

import numpy as np

from models.scratch import (
    GELU,
    Array,
    CausalSelfAttention,
    Embedding,
    Layer,
    LayerNorm,
    Linear,
    TiedHead,
    array_namespace,
)

VOCABULARY, LENGTH, DIM, HEADS, BLOCKS = 96, 32, 48, 3, 2


class FeedForward(Layer):
    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.fc = Linear(DIM, 4 * DIM, rng)
        self.gelu = GELU()
        self.proj = Linear(4 * DIM, DIM, rng)

    def forward(self, x: Array) -> Array:
        return self.proj.forward(self.gelu.forward(self.fc.forward(x)))

    def backward(self, dy: Array) -> Array:
        return self.fc.backward(self.gelu.backward(self.proj.backward(dy)))


class Block(Layer):
    """Pre-norm residual block (Xiong et al., On Layer Normalization in the Transformer, 2020)."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.ln1 = LayerNorm(DIM)
        self.attn = CausalSelfAttention(DIM, HEADS, rng)
        self.ln2 = LayerNorm(DIM)
        self.mlp = FeedForward(rng)

    def forward(self, x: Array) -> Array:
        x = x + self.attn.forward(self.ln1.forward(x))
        return x + self.mlp.forward(self.ln2.forward(x))

    def backward(self, dy: Array) -> Array:
        dy = dy + self.ln2.backward(self.mlp.backward(dy))
        return dy + self.ln1.backward(self.attn.backward(dy))


class GPT(Layer):
    """Tokens (B, T) -> logits (B, T, 96) (Radford et al., Language Models are Unsupervised
    Multitask Learners, 2019).
    """

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.wte = Embedding(VOCABULARY, DIM, rng)
        self.wpe = Embedding(LENGTH, DIM, rng)
        self.blocks = [Block(rng) for _ in range(BLOCKS)]
        self.ln_f = LayerNorm(DIM)
        self.lm_head = TiedHead(self.wte)

    def forward(self, tokens: Array) -> Array:
        positions = array_namespace(tokens).arange(tokens.shape[1])
        x = self.wte.forward(tokens) + self.wpe.forward(positions)  # (B, T, C)
        for block in self.blocks:
            x = block.forward(x)
        return self.lm_head.forward(self.ln_f.forward(x))  # (B, T, 96)

    def backward(self, dy: Array) -> None:
        dx = self.ln_f.backward(self.lm_head.backward(dy))
        for block in reversed(self.blocks):
            dx = block.backward(dx)
        self.wpe.backward(dx.sum(axis=0))  # the positions were broadcast over the batch: (T, C)
        self.wte.backward(dx)


def build() -> GPT:
    """An untrained net, in evaluation mode."""
    net = GPT(np.random.default_rng(0))
    net.eval()
    return net
