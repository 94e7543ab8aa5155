"""The BERT-style encoder in Flax NNX."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

VOCABULARY, LENGTH, TYPES, DIM, HEADS, HIDDEN, BLOCKS, CLASSES = 99, 23, 2, 30, 3, 52, 2, 2
MASKED = -1e9


def layer_norm(rngs: nnx.Rngs) -> nnx.LayerNorm:
    """With BERT's epsilon; Flax' default is 1e-6."""
    return nnx.LayerNorm(DIM, epsilon=1e-12, rngs=rngs)


class Embeddings(nnx.Module):
    """The sum of a token's, its position's and its segment's vector, normalised."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.tokens = nnx.Embed(VOCABULARY, DIM, rngs=rngs)
        self.positions = nnx.Embed(LENGTH, DIM, rngs=rngs)
        self.types = nnx.Embed(TYPES, DIM, rngs=rngs)
        self.norm = layer_norm(rngs)

    def __call__(self, tokens: jax.Array, types: jax.Array) -> jax.Array:
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1])) + self.types(types)
        return self.norm(x)  # (B, T) -> (B, T, C)


class Softmax(nnx.Module):
    def __init__(self) -> None:
        self.axis = -1

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.softmax(x, axis=self.axis)


class Core(nnx.Module):
    """softmax(q kᵀ · scale, masked) v (Vaswani et al., Attention Is All You Need, 2017)."""

    def __init__(self) -> None:
        self.scale = 1 / math.sqrt(DIM // HEADS)
        self.softmax = Softmax()

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
        scores = q @ k.swapaxes(-1, -2) * self.scale  # (B, nh, T, T)
        return self.softmax(jnp.where(visible, scores, MASKED)) @ v  # (B, nh, T, hs)


class SelfAttention(nnx.Module):
    """Every position looks at every one that is not padding, in both directions."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.query = nnx.Linear(DIM, DIM, rngs=rngs)
        self.key = nnx.Linear(DIM, DIM, rngs=rngs)
        self.value = nnx.Linear(DIM, DIM, rngs=rngs)
        self.core = Core()
        self.out = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x: jax.Array, present: jax.Array) -> jax.Array:
        q, k, v = (self.split_heads(layer(x)) for layer in (self.query, self.key, self.value))
        y = self.core(q, k, v, self.visible(present))
        return self.out(y.swapaxes(1, 2).reshape(x.shape))

    def visible(self, present: jax.Array) -> jax.Array:
        """Which key (last axis) a query may see: (B, T) -> (B, 1, 1, T), for every query alike."""
        return (present != 0)[:, None, None, :]

    def split_heads(self, x: jax.Array) -> jax.Array:
        batch, length, dim = x.shape
        return x.reshape(batch, length, HEADS, dim // HEADS).swapaxes(1, 2)  # (B, nh, T, hs)


class GELU(nnx.Module):
    """x Φ(x) (Hendrycks, Gimpel, Gaussian Error Linear Units, 2016); Flax' default is its tanh
    approximation."""

    def __init__(self) -> None:
        self.approximate = False

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.gelu(x, approximate=self.approximate)


class FeedForward(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc = nnx.Linear(DIM, HIDDEN, rngs=rngs)
        self.gelu = GELU()
        self.proj = nnx.Linear(HIDDEN, DIM, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.proj(self.gelu(self.fc(x)))


class Block(nnx.Module):
    """Normalised behind each residual sum, as in the original Transformer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attn = SelfAttention(rngs)
        self.ln1 = layer_norm(rngs)
        self.mlp = FeedForward(rngs)
        self.ln2 = layer_norm(rngs)

    def __call__(self, x: jax.Array, present: jax.Array) -> jax.Array:
        x = self.ln1(x + self.attn(x, present))
        return self.ln2(x + self.mlp(x))


class Tanh(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(x)


class BERT(nnx.Module):
    """Two passages (B, T) -> logits (B, 2): does the second follow the first? (Devlin et al., BERT:
    Pre-training of Deep Bidirectional Transformers, 2018).

    Inputs are integers: ``tokens``; ``types``, 0 in the first and 1 in the second;
    ``present``, 1 for a token and 0 for padding.
    """

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embeddings = Embeddings(rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(BLOCKS)])
        self.pooler = nnx.Linear(DIM, DIM, rngs=rngs)
        self.tanh = Tanh()
        self.head = nnx.Linear(DIM, CLASSES, rngs=rngs)

    def __call__(self, tokens: jax.Array, types: jax.Array, present: jax.Array) -> jax.Array:
        x = self.embeddings(tokens, types)  # (B, T, C)
        for block in self.blocks:
            x = block(x, present)
        first = self.tanh(self.pooler(x[:, 0]))  # (B, C): what stands at [CLS]
        return self.head(first)  # (B, 2)


def build() -> BERT:
    """An untrained model."""
    return BERT(nnx.Rngs(0))
