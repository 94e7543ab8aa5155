"""The transformer of `bench_models` in Keras."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from scripts.bench_models import Sizes

__all__ = ["Encoder"]


class Encoder(keras.Model):
    """Token ids (B, T) -> logits (B, T, words)."""

    def __init__(self, s: Sizes) -> None:
        super().__init__(name="encoder")
        self.words = layers.Embedding(s.words, s.width, name="words")
        self.places = self.add_weight(shape=(s.length, s.width), name="places")
        self.blocks = [Block(s, f"blocks_{i}") for i in range(s.depth)]
        self.norm, self.head = norm("norm"), layers.Dense(s.words, use_bias=False, name="head")

    def call(self, ids: Any) -> Any:
        x = self.words(ids) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(layers.Layer):
    def __init__(self, s: Sizes, name: str) -> None:
        super().__init__(name=name)
        self.norm1, self.norm2 = norm("norm1"), norm("norm2")
        self.attention = Attention(s, "attention")
        self.up, self.down = layers.Dense(4 * s.width), layers.Dense(s.width)

    def call(self, x: Any) -> Any:
        x = x + self.attention(self.norm1(x))
        return x + self.down(keras.activations.gelu(self.up(self.norm2(x)), False))


class Attention(layers.Layer):
    def __init__(self, s: Sizes, name: str) -> None:
        super().__init__(name=name)
        self.sizes = s
        for part in ("query", "key", "value", "out"):
            setattr(self, part, layers.Dense(s.width, name=part))

    def call(self, x: Any) -> Any:
        s = self.sizes
        shape = (s.batch, s.length, s.heads, s.width // s.heads)
        q, k, v = (
            ops.transpose(ops.reshape(part(x), shape), (0, 2, 1, 3))
            for part in (self.query, self.key, self.value)
        )
        scores = ops.matmul(q, ops.swapaxes(k, -1, -2)) / (s.width // s.heads) ** 0.5
        y = ops.transpose(ops.matmul(ops.softmax(scores), v), (0, 2, 1, 3))
        return self.out(ops.reshape(y, (s.batch, s.length, s.width)))


def norm(name: str) -> Any:
    return layers.LayerNormalization(epsilon=1e-5, name=name)
