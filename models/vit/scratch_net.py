"""A small vision transformer from scratch (Dosovitskiy et al., 2020, as in `models.vit.reference`);
images are (N, C, H, W).
"""

from __future__ import annotations

import numpy as np

from models.scratch import (
    GELU,
    Array,
    Layer,
    LayerNorm,
    Linear,
    PatchProjection,
    SelfAttention,
    array_namespace,
)

DIM, HEADS, HIDDEN, BLOCKS = 30, 3, 42, 2
PATCHES = 4 * 6  # 16 x 12 pixels in patches of 4 x 2


class Embedding(Layer):
    """Images -> tokens (N, 1 + 24, D): the class token, then the patches row by row."""

    axes = {"class_token": ("batch", "position", "dim"), "positions": ("batch", "position", "dim")}

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.projection = PatchProjection(1, DIM, (4, 2), rng)
        self._add_parameter("class_token", np.zeros((1, 1, DIM), np.float32))
        self._add_parameter("positions", np.zeros((1, 1 + PATCHES, DIM), np.float32))

    def forward(self, x: Array) -> Array:
        xp = array_namespace(x)
        x = self.projection.forward(x)  # (N, D, 4, 6)
        self._grid = x.shape
        x = x.reshape(*x.shape[:2], -1).swapaxes(1, 2)  # (N, 24, D)
        token = xp.broadcast_to(self.params["class_token"], (len(x), 1, DIM))
        return xp.concatenate([token, x], axis=1) + self.params["positions"]  # (N, 25, D)

    def backward(self, dy: Array) -> Array:
        self.accumulate("positions", dy.sum(axis=0, keepdims=True))
        self.accumulate("class_token", dy[:, :1].sum(axis=0, keepdims=True))
        return self.projection.backward(dy[:, 1:].swapaxes(1, 2).reshape(self._grid))


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
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.ln1 = LayerNorm(DIM, eps=1e-6)
        self.attn = SelfAttention(DIM, HEADS, rng)
        self.ln2 = LayerNorm(DIM, eps=1e-6)
        self.mlp = FeedForward(rng)

    def forward(self, x: Array) -> Array:
        x = x + self.attn.forward(self.ln1.forward(x))
        return x + self.mlp.forward(self.ln2.forward(x))

    def backward(self, dy: Array) -> Array:
        dy = dy + self.ln2.backward(self.mlp.backward(dy))
        return dy + self.ln1.backward(self.attn.backward(dy))


class ViT(Layer):
    """Images (N, 1, 16, 12) -> 10 logits."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.embedding = Embedding(rng)
        self.blocks = [Block(rng) for _ in range(BLOCKS)]
        self.ln = LayerNorm(DIM, eps=1e-6)
        self.head = Linear(DIM, 10, rng)

    def forward(self, x: Array) -> Array:
        x = self.embedding.forward(x)  # (N, 25, D)
        for block in self.blocks:
            x = block.forward(x)
        self._tokens = x.shape
        return self.head.forward(self.ln.forward(x)[:, 0])  # the class token: (N, D) -> (N, 10)

    def backward(self, dy: Array) -> Array:
        dx = array_namespace(dy).zeros(self._tokens, dtype=dy.dtype)
        dx[:, 0] = self.head.backward(dy)
        dx = self.ln.backward(dx)
        for block in reversed(self.blocks):
            dx = block.backward(dx)
        return self.embedding.backward(dx)


def build() -> ViT:
    """An untrained net, in evaluation mode."""
    net = ViT(np.random.default_rng(0))
    net.eval()
    return net
