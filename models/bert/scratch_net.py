"""The BERT-style encoder from scratch."""

from __future__ import annotations

import numpy as np

from models.scratch import (
    GELU,
    Array,
    Embedding,
    Layer,
    LayerNorm,
    Linear,
    PaddedSelfAttention,
    Tanh,
    array_namespace,
)

VOCABULARY, LENGTH, TYPES, DIM, HEADS, HIDDEN, BLOCKS, CLASSES = 99, 23, 2, 30, 3, 52, 2, 2
EPS = 1e-12


class Embeddings(Layer):
    """The sum of a token's, its position's and its segment's vector, normalised."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.tokens = Embedding(VOCABULARY, DIM, rng)
        self.positions = Embedding(LENGTH, DIM, rng)
        self.types = Embedding(TYPES, DIM, rng)
        self.norm = LayerNorm(DIM, eps=EPS)

    def forward(self, tokens: Array, types: Array) -> Array:
        positions = array_namespace(tokens).arange(tokens.shape[1])
        x = self.tokens.forward(tokens) + self.positions.forward(positions)
        return self.norm.forward(x + self.types.forward(types))  # (B, T) -> (B, T, C)

    def backward(self, dy: Array) -> None:
        dx = self.norm.backward(dy)
        self.types.backward(dx)
        self.positions.backward(dx.sum(axis=0))  # they were broadcast over the batch: (T, C)
        self.tokens.backward(dx)


class FeedForward(Layer):
    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.fc = Linear(DIM, HIDDEN, rng)
        self.gelu = GELU()
        self.proj = Linear(HIDDEN, DIM, rng)

    def forward(self, x: Array) -> Array:
        return self.proj.forward(self.gelu.forward(self.fc.forward(x)))

    def backward(self, dy: Array) -> Array:
        return self.fc.backward(self.gelu.backward(self.proj.backward(dy)))


class Block(Layer):
    """Normalised behind each residual sum, as in the original Transformer."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.attn = PaddedSelfAttention(DIM, HEADS, rng)
        self.ln1 = LayerNorm(DIM, eps=EPS)
        self.mlp = FeedForward(rng)
        self.ln2 = LayerNorm(DIM, eps=EPS)

    def forward(self, x: Array, present: Array) -> Array:
        x = self.ln1.forward(x + self.attn.forward(x, present))
        return self.ln2.forward(x + self.mlp.forward(x))

    def backward(self, dy: Array) -> Array:
        dy = self.ln2.backward(dy)
        dy = self.ln1.backward(dy + self.mlp.backward(dy))
        return dy + self.attn.backward(dy)


class BERT(Layer):
    """Two passages (B, T) -> logits (B, 2): does the second follow the first? (Devlin et al., BERT:
    Pre-training of Deep Bidirectional Transformers, 2018).

    Inputs are integers: ``tokens``; ``types``, 0 in the first and 1 in the second;
    ``present``, 1 for a token and 0 for padding.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.embeddings = Embeddings(rng)
        self.blocks = [Block(rng) for _ in range(BLOCKS)]
        self.pooler = Linear(DIM, DIM, rng)
        self.tanh = Tanh()
        self.head = Linear(DIM, CLASSES, rng)

    def forward(self, tokens: Array, types: Array, present: Array) -> Array:
        x = self.embeddings.forward(tokens, types)  # (B, T, C)
        for block in self.blocks:
            x = block.forward(x, present)
        self._shape = x.shape
        first = self.tanh.forward(self.pooler.forward(x[:, 0]))  # (B, C): what stands at [CLS]
        return self.head.forward(first)  # (B, 2)

    def backward(self, dy: Array) -> None:
        dx = array_namespace(dy).zeros(self._shape, dtype=dy.dtype)
        dx[:, 0] = self.pooler.backward(self.tanh.backward(self.head.backward(dy)))
        for block in reversed(self.blocks):
            dx = block.backward(dx)
        self.embeddings.backward(dx)


def build() -> BERT:
    """An untrained net, in evaluation mode."""
    net = BERT(np.random.default_rng(0))
    net.eval()
    return net
