"""The character-level GPT in Flax NNX."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

VOCABULARY, LENGTH, DIM, HEADS, BLOCKS = 96, 32, 48, 3, 2


def layer_norm(rngs: nnx.Rngs) -> nnx.LayerNorm:
    """With PyTorch's epsilon; Flax' default is 1e-6."""
    return nnx.LayerNorm(DIM, epsilon=1e-5, rngs=rngs)


class GELU(nnx.Module):
    """x Φ(x) (Hendrycks, Gimpel, Gaussian Error Linear Units, 2016); Flax' default is its tanh
    approximation."""

    def __init__(self) -> None:
        self.approximate = False

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.gelu(x, approximate=self.approximate)


class Softmax(nnx.Module):
    def __init__(self) -> None:
        self.axis = -1

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.softmax(x, axis=self.axis)


class CausalSelfAttention(nnx.Module):
    """softmax(q kᵀ · scale + mask) v per head (Vaswani et al., Attention Is All You Need, 2017)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.scale = 1 / math.sqrt(DIM // HEADS)
        self.c_attn = nnx.Linear(DIM, 3 * DIM, rngs=rngs)
        self.softmax = Softmax()
        self.c_proj = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, dim = x.shape
        q, k, v = self.split_qkv(self.c_attn(x))  # (B, nh, T, hs) each
        scores = q @ k.swapaxes(-1, -2) * self.scale  # (B, nh, T, T)
        att = self.softmax(jnp.where(self.visible(length), scores, -jnp.inf))
        y = (att @ v).swapaxes(1, 2).reshape(batch, length, dim)
        return self.c_proj(y)

    def visible(self, length: int) -> jax.Array:
        """Which key (column) each query (row) may see: (T, T)."""
        return jnp.tril(jnp.ones((length, length), bool))

    def split_qkv(self, qkv: jax.Array) -> jax.Array:
        batch, length, _ = qkv.shape
        return qkv.reshape(batch, length, 3, HEADS, DIM // HEADS).transpose(2, 0, 3, 1, 4)


class FeedForward(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc = nnx.Linear(DIM, 4 * DIM, rngs=rngs)
        self.gelu = GELU()
        self.proj = nnx.Linear(4 * DIM, DIM, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.proj(self.gelu(self.fc(x)))


class Block(nnx.Module):
    """Pre-norm residual block (Xiong et al., On Layer Normalization in the Transformer, 2020)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.ln1 = layer_norm(rngs)
        self.attn = CausalSelfAttention(rngs)
        self.ln2 = layer_norm(rngs)
        self.mlp = FeedForward(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class TiedHead(nnx.Module):
    """logits = x Eᵀ (Press, Wolf, Using the Output Embedding, 2016)."""

    def __call__(self, x: jax.Array, table: jax.Array) -> jax.Array:
        return x @ table.T  # (B, T, C) -> (B, T, 96)


class GPT(nnx.Module):
    """Tokens (B, T) -> logits (B, T, 96) (Radford et al., Language Models are Unsupervised
    Multitask Learners, 2019).
    """

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.wte = nnx.Embed(VOCABULARY, DIM, rngs=rngs)
        self.wpe = nnx.Embed(LENGTH, DIM, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(BLOCKS)])
        self.ln_f = layer_norm(rngs)
        self.lm_head = TiedHead()

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[1]))  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x), self.wte.embedding[...])  # (B, T, 96)


def build() -> GPT:
    """An untrained model."""
    return GPT(nnx.Rngs(0))
