"""Causal self-attention."""

from __future__ import annotations

import math

import numpy as np

from models.scratch.activation import Softmax
from models.scratch.base import Array, Layer, array_namespace
from models.scratch.dense import Linear


class CausalSelfAttention(Layer):
    """softmax(q kᵀ · scale + mask) v for every head, scale = 1/√hs.

    ``c_attn`` computes q, k and v side by side; position t attends to positions <= t
    (Vaswani et al., Attention Is All You Need, 2017).
    """

    def __init__(self, dim: int, heads: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.scale = 1 / math.sqrt(dim // heads)
        self.c_attn = Linear(dim, 3 * dim, rng)
        self.softmax = Softmax(axis=-1)
        self.c_proj = Linear(dim, dim, rng)

    def forward(self, x: Array) -> Array:
        xp = array_namespace(x)
        qkv = self.c_attn.forward(x)  # (B, T, 3C)
        q, k, v = (self.split_heads(a) for a in xp.split(qkv, 3, axis=-1))  # (B, nh, T, hs) each
        scores = q @ k.swapaxes(-1, -2) * self.scale  # (B, nh, T, T)
        self._visible = self.visible(scores)  # (T, T)
        att = self.softmax.forward(xp.where(self._visible, scores, -math.inf))
        self._q, self._k, self._v, self._att = q, k, v, att
        return self.c_proj.forward(self.merge_heads(att @ v))  # (B, T, C)

    def backward(self, dy: Array) -> Array:
        xp = array_namespace(dy)
        dy = self.split_heads(self.c_proj.backward(dy))  # (B, nh, T, hs)
        dv = self._att.swapaxes(-1, -2) @ dy
        dscores = self.softmax.backward(dy @ self._v.swapaxes(-1, -2))  # (B, nh, T, T)
        dscores = xp.where(self._visible, dscores, 0.0) * self.scale
        dq, dk = dscores @ self._k, dscores.swapaxes(-1, -2) @ self._q
        dqkv = xp.concatenate([self.merge_heads(d) for d in (dq, dk, dv)], axis=-1)  # (B, T, 3C)
        return self.c_attn.backward(dqkv)

    def visible(self, scores: Array) -> Array:
        """Which key (column) each query (row) may see: (T, T), True on and below the diagonal."""
        xp = array_namespace(scores)
        return xp.tril(xp.ones(scores.shape[-2:], dtype=bool))

    def split_heads(self, x: Array) -> Array:
        batch, length, dim = x.shape
        x = x.reshape(batch, length, self.heads, dim // self.heads)
        return x.swapaxes(1, 2)  # (B, nh, T, hs)

    def merge_heads(self, x: Array) -> Array:
        batch, heads, length, size = x.shape
        return x.swapaxes(1, 2).reshape(batch, length, heads * size)  # (B, T, C)
