"""The Llama-style decoder in Keras 3."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers, ops

VOCABULARY, DIM, HEADS, KV_HEADS, SIZE, HIDDEN, BLOCKS = 96, 40, 6, 2, 8, 52, 2


def projection(units: int, name: str) -> layers.Dense:
    return layers.Dense(units, use_bias=False, name=name)


class RMSNorm(layers.Layer):
    """x / √(mean(x²) + eps) · weight (Zhang, Sennrich, Root Mean Square Layer Normalization,
    2019)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = 1e-5  # as in Llama 2

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x: Any) -> Any:
        mean = ops.mean(ops.square(x), axis=-1, keepdims=True)
        return x * ops.rsqrt(mean + self.epsilon) * self.scale


class Rotary(layers.Layer):
    """y₁ = x₁ cos - x₂ sin, y₂ = x₂ cos + x₁ sin, angle(t, i) = t · base^(-2i/hs) (Su et al.,
    RoFormer, 2021), the pairs being channel i of the first half and channel i of the second.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.base = 10000.0

    def call(self, x: Any) -> Any:
        return self.turn(x, *self.angles(x))

    def angles(self, x: Any) -> Any:
        """cos and sin of the angles, (T, hs/2) each, for x (B, nh, T, hs)."""
        length, size = x.shape[-2:]
        frequency = self.base ** (-ops.arange(0, size, 2, dtype="float32") / size)  # (hs/2,)
        angle = ops.arange(length, dtype="float32")[:, None] * frequency  # (T, hs/2)
        return ops.cast(ops.cos(angle), x.dtype), ops.cast(ops.sin(angle), x.dtype)

    def turn(self, x: Any, cos: Any, sin: Any) -> Any:
        first, second = ops.split(x, 2, axis=-1)  # (B, nh, T, hs/2) each
        return ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Core(layers.Layer):
    """softmax(q kᵀ · scale + mask) v per head (Vaswani et al., Attention Is All You Need, 2017)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = 1 / math.sqrt(SIZE)
        self.softmax = layers.Softmax(axis=-1, name="softmax")

    def call(self, q: Any, k: Any, v: Any) -> Any:
        scores = ops.matmul(q, ops.swapaxes(k, -1, -2)) * self.scale  # (B, nh, T, T)
        scores = ops.where(self.visible(q.shape[-2]), scores, -math.inf)
        return ops.matmul(self.softmax(scores), v)  # (B, nh, T, hs)

    def visible(self, length: int) -> Any:
        """Which key (column) each query (row) may see: (T, T)."""
        return ops.tril(ops.ones((length, length), dtype="bool"))


class GroupedQueryAttention(layers.Layer):
    """Neighbouring query heads share a key and a value head (Ainslie et al., GQA, 2023)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.q = projection(HEADS * SIZE, "q")
        self.k = projection(KV_HEADS * SIZE, "k")
        self.v = projection(KV_HEADS * SIZE, "v")
        self.rotary = Rotary(name="rotary")
        self.core = Core(name="core")
        self.o = projection(DIM, "o")

    def call(self, x: Any) -> Any:
        batch, length, _ = x.shape
        q, k, v = (self.split_heads(layer(x)) for layer in (self.q, self.k, self.v))
        q, k = self.rotary(q), self.rotary(k)
        y = self.core(q, self.spread(k), self.spread(v))  # (B, nh, T, hs)
        return self.o(ops.reshape(ops.swapaxes(y, 1, 2), (batch, length, HEADS * SIZE)))

    def split_heads(self, x: Any) -> Any:
        batch, length, dim = x.shape
        x = ops.reshape(x, (batch, length, dim // SIZE, SIZE))
        return ops.swapaxes(x, 1, 2)  # (B, heads, T, hs)

    def spread(self, x: Any) -> Any:
        """A key head for every query head: (B, nkv, T, hs) -> (B, nh, T, hs)."""
        return ops.repeat(x, HEADS // KV_HEADS, axis=1)


class SwiGLU(layers.Layer):
    """(SiLU(x G) · x U) D (Shazeer, GLU Variants Improve Transformer, 2020)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gate = projection(HIDDEN, "gate")
        self.silu = layers.Activation("silu", name="silu")
        self.up = projection(HIDDEN, "up")
        self.down = projection(DIM, "down")

    def call(self, x: Any) -> Any:
        return self.down(self.silu(self.gate(x)) * self.up(x))


class Block(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm1 = RMSNorm(name="norm1")
        self.attn = GroupedQueryAttention(name="attn")
        self.norm2 = RMSNorm(name="norm2")
        self.mlp = SwiGLU(name="mlp")

    def call(self, x: Any) -> Any:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Llama(keras.Model):
    """Tokens (B, T) -> logits (B, T, 96) (Touvron et al., LLaMA, 2023; grouped queries as in
    Llama 2).
    """

    def __init__(self) -> None:
        super().__init__(name="llama")
        self.embedding = layers.Embedding(VOCABULARY, DIM, name="embedding")
        self.blocks = [Block(name=f"blocks_{i}") for i in range(BLOCKS)]
        self.norm = RMSNorm(name="norm")
        self.head = projection(VOCABULARY, "head")

    def call(self, tokens: Any) -> Any:
        x = self.embedding(tokens)  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # (B, T, 96)


def build() -> Llama:
    """An untrained model with all of its variables."""
    model = Llama()
    model(ops.zeros((1, 5), dtype="int32"))
    return model
