"""The Llama-style decoder in Flax NNX."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

VOCABULARY, DIM, HEADS, KV_HEADS, SIZE, HIDDEN, BLOCKS = 96, 40, 6, 2, 8, 52, 2


def projection(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)


def rms_norm(rngs: nnx.Rngs) -> nnx.RMSNorm:
    """x / √(mean(x²) + eps) · scale (Zhang, Sennrich, 2019); Flax' default epsilon is 1e-6."""
    return nnx.RMSNorm(DIM, epsilon=1e-5, rngs=rngs)


class Rotary(nnx.Module):
    """y₁ = x₁ cos - x₂ sin, y₂ = x₂ cos + x₁ sin, angle(t, i) = t · base^(-2i/hs) (Su et al.,
    RoFormer, 2021), the pairs being channel i of the first half and channel i of the second.
    """

    def __init__(self) -> None:
        self.base = 10000.0

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.turn(x, *self.angles(x))

    def angles(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """cos and sin of the angles, (T, hs/2) each, for x (B, nh, T, hs)."""
        length, size = x.shape[-2:]
        frequency = self.base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)  # (hs/2,)
        angle = jnp.arange(length, dtype=jnp.float32)[:, None] * frequency  # (T, hs/2)
        return jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)

    def turn(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        first, second = jnp.split(x, 2, axis=-1)  # (B, nh, T, hs/2) each
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Softmax(nnx.Module):
    def __init__(self) -> None:
        self.axis = -1

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.softmax(x, axis=self.axis)


class Core(nnx.Module):
    """softmax(q kᵀ · scale + mask) v per head (Vaswani et al., Attention Is All You Need, 2017)."""

    def __init__(self) -> None:
        self.scale = 1 / math.sqrt(SIZE)
        self.softmax = Softmax()

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = q @ k.swapaxes(-1, -2) * self.scale  # (B, nh, T, T)
        return self.softmax(jnp.where(self.visible(q.shape[-2]), scores, -jnp.inf)) @ v

    def visible(self, length: int) -> jax.Array:
        """Which key (column) each query (row) may see: (T, T)."""
        return jnp.tril(jnp.ones((length, length), bool))


class GroupedQueryAttention(nnx.Module):
    """Neighbouring query heads share a key and a value head (Ainslie et al., GQA, 2023)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.q = projection(DIM, HEADS * SIZE, rngs)
        self.k = projection(DIM, KV_HEADS * SIZE, rngs)
        self.v = projection(DIM, KV_HEADS * SIZE, rngs)
        self.rotary = Rotary()
        self.core = Core()
        self.o = projection(HEADS * SIZE, DIM, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, _ = x.shape
        q, k, v = (self.split_heads(layer(x)) for layer in (self.q, self.k, self.v))
        q, k = self.rotary(q), self.rotary(k)
        y = self.core(q, self.spread(k), self.spread(v))  # (B, nh, T, hs)
        return self.o(y.swapaxes(1, 2).reshape(batch, length, HEADS * SIZE))

    def split_heads(self, x: jax.Array) -> jax.Array:
        batch, length, dim = x.shape
        return x.reshape(batch, length, dim // SIZE, SIZE).swapaxes(1, 2)  # (B, heads, T, hs)

    def spread(self, x: jax.Array) -> jax.Array:
        """A key head for every query head: (B, nkv, T, hs) -> (B, nh, T, hs)."""
        return jnp.repeat(x, HEADS // KV_HEADS, axis=1)


class SiLU(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.silu(x)


class SwiGLU(nnx.Module):
    """(SiLU(x G) · x U) D (Shazeer, GLU Variants Improve Transformer, 2020)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.gate = projection(DIM, HIDDEN, rngs)
        self.silu = SiLU()
        self.up = projection(DIM, HIDDEN, rngs)
        self.down = projection(HIDDEN, DIM, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1 = rms_norm(rngs)
        self.attn = GroupedQueryAttention(rngs)
        self.norm2 = rms_norm(rngs)
        self.mlp = SwiGLU(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Llama(nnx.Module):
    """Tokens (B, T) -> logits (B, T, 96) (Touvron et al., LLaMA, 2023; grouped queries as in
    Llama 2).
    """

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(VOCABULARY, DIM, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(BLOCKS)])
        self.norm = rms_norm(rngs)
        self.head = projection(DIM, VOCABULARY, rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embedding(tokens)  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # (B, T, 96)


def build() -> Llama:
    """An untrained model."""
    return Llama(nnx.Rngs(0))
