"""The mixture of experts in Flax NNX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

VOCABULARY, DIM, HIDDEN, EXPERTS, TOP = 96, 22, 26, 5, 2


def projection(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)


def rms_norm(rngs: nnx.Rngs) -> nnx.RMSNorm:
    """x / √(mean(x²) + eps) · scale (Zhang, Sennrich, 2019); Flax' default epsilon is 1e-6."""
    return nnx.RMSNorm(DIM, epsilon=1e-5, rngs=rngs)


class Softmax(nnx.Module):
    def __init__(self) -> None:
        self.axis = -1

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.softmax(x, axis=self.axis)


class Router(nnx.Module):
    """p = softmax(x W); the two largest divided by their sum, zero for every other expert (Shazeer
    et al., Outrageously Large Neural Networks, 2017; Lepikhin et al., GShard, 2020).
    """

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.top = TOP
        self.logits = projection(DIM, EXPERTS, rngs)
        self.softmax = Softmax()

    def __call__(self, x: jax.Array) -> jax.Array:
        p = self.softmax(self.logits(x))  # (B, T, E)
        largest = jax.lax.top_k(p, self.top)[1]  # (B, T, 2)
        chosen = p * nnx.one_hot(largest, EXPERTS, dtype=p.dtype).sum(axis=-2)
        return self.normalised(chosen)

    def normalised(self, chosen: jax.Array) -> jax.Array:
        return chosen / chosen.sum(axis=-1, keepdims=True)


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


class MixtureOfExperts(nnx.Module):
    """y = Σᵢ gateᵢ(x) · expertᵢ(x) (Jiang et al., Mixtral of Experts, 2024), every expert on every
    token.
    """

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.router = Router(rngs)
        self.experts = nnx.List([SwiGLU(rngs) for _ in range(EXPERTS)])

    def __call__(self, x: jax.Array) -> jax.Array:
        gates = self.router(x)  # (B, T, E)
        made = jnp.stack([expert(x) for expert in self.experts], axis=-1)  # (B, T, C, E)
        return (made * gates[:, :, None, :]).sum(axis=-1)  # (B, T, C)


class Model(nnx.Module):
    """Tokens (B, T) -> logits (B, T, 96): one residual block, x + moe(norm(x))."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(VOCABULARY, DIM, rngs=rngs)
        self.norm1 = rms_norm(rngs)
        self.moe = MixtureOfExperts(rngs)
        self.norm2 = rms_norm(rngs)
        self.head = nnx.Linear(DIM, VOCABULARY, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embedding(tokens)  # (B, T, C)
        x = x + self.moe(self.norm1(x))
        return self.head(self.norm2(x))  # (B, T, 96)


def build() -> Model:
    """An untrained model."""
    return Model(nnx.Rngs(0))
