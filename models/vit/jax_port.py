"""A small vision transformer in Flax NNX (Dosovitskiy et al., 2020, as in `models.vit.reference`);
images are (N, H, W, C).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

DIM, HEADS, HIDDEN, BLOCKS = 30, 3, 42, 2
PATCHES = 4 * 6  # 16 x 12 pixels in patches of 4 x 2


class GELU(nnx.Module):
    """x Φ(x); Flax' default is its tanh approximation."""

    def __init__(self) -> None:
        self.approximate = False

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.gelu(x, approximate=self.approximate)


class Embedding(nnx.Module):
    """Images -> tokens (N, 1 + 24, D): the class token, then the patches row by row."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.projection = nnx.Conv(1, DIM, (4, 2), strides=(4, 2), padding="VALID", rngs=rngs)
        self.class_token = nnx.Param(jnp.zeros((1, 1, DIM)))
        self.positions = nnx.Param(jnp.zeros((1, 1 + PATCHES, DIM)))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.sequence(self.projection(x))  # (N, 4, 6, D) -> (N, 24, D)
        token = jnp.broadcast_to(self.class_token[...], (len(x), 1, DIM))
        return jnp.concatenate([token, x], axis=1) + self.positions[...]  # (N, 25, D)

    def sequence(self, x: jax.Array) -> jax.Array:
        return x.reshape(len(x), PATCHES, DIM)


class FeedForward(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc = nnx.Linear(DIM, HIDDEN, rngs=rngs)
        self.gelu = GELU()
        self.proj = nnx.Linear(HIDDEN, DIM, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.proj(self.gelu(self.fc(x)))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); Flax' epsilon is 1e-6, as the authors'."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.ln1 = nnx.LayerNorm(DIM, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(HEADS, DIM, decode=False, rngs=rngs)
        self.ln2 = nnx.LayerNorm(DIM, rngs=rngs)
        self.mlp = FeedForward(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class ViT(nnx.Module):
    """Images (N, 16, 12, 1) -> 10 logits."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embedding = Embedding(rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(BLOCKS)])
        self.ln = nnx.LayerNorm(DIM, rngs=rngs)
        self.head = nnx.Linear(DIM, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embedding(x)  # (N, 25, D)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x)[:, 0])  # the class token: (N, D) -> (N, 10)


def build() -> ViT:
    """An untrained model."""
    return ViT(nnx.Rngs(0))
