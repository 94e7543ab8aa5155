"""Attention with separate projections: over padded sequences, and with grouped queries."""

from __future__ import annotations

import math

import numpy as np

from models.scratch.activation import Softmax
from models.scratch.base import Array, Layer, array_namespace
from models.scratch.dense import Linear
from models.scratch.rotary import Rotary


class ScaledDotProduct(Layer):
    """softmax(q kᵀ · scale, masked) v for every head, scale = 1/√hs (Vaswani et al., Attention Is
    All You Need, 2017). q, k and v are (B, nh, T, hs); ``visible`` broadcasts to (B, nh, T, T).

    A score that must not be seen becomes ``masked``. Where a query sees nothing at all, -inf gives
    NaN and a large finite number the mean of all values.
    """

    def __init__(self, size: int, *, masked: float = -math.inf) -> None:
        super().__init__()
        self.scale, self.masked = 1 / math.sqrt(size), masked
        self.softmax = Softmax(axis=-1)

    def forward(self, q: Array, k: Array, v: Array, visible: Array) -> Array:
        xp = array_namespace(q)
        scores = q @ k.swapaxes(-1, -2) * self.scale  # (B, nh, T, T)
        att = self.softmax.forward(xp.where(visible, scores, xp.asarray(self.masked, q.dtype)))
        self._q, self._k, self._v, self._att, self._visible = q, k, v, att, visible
        return att @ v

    def backward(self, dy: Array) -> tuple[Array, Array, Array]:
        xp = array_namespace(dy)
        dv = self._att.swapaxes(-1, -2) @ dy
        dscores = self.softmax.backward(dy @ self._v.swapaxes(-1, -2))  # (B, nh, T, T)
        dscores = xp.where(self._visible, dscores, xp.asarray(0, dy.dtype)) * self.scale
        return dscores @ self._k, dscores.swapaxes(-1, -2) @ self._q, dv


class PaddedSelfAttention(Layer):
    """Self-attention of every position to the positions that are not padding (Devlin et al., BERT,
    2018): x (B, T, C), ``present`` (B, T), true where there is a token.
    """

    def __init__(self, dim: int, heads: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (Linear(dim, dim, rng) for _ in range(3))
        self.core = ScaledDotProduct(dim // heads, masked=-1e9)
        self.out = Linear(dim, dim, rng)

    def forward(self, x: Array, present: Array) -> Array:
        q, k, v = (
            split_heads(layer.forward(x), self.heads)  # (B, nh, T, hs)
            for layer in (self.query, self.key, self.value)
        )
        y = self.core.forward(q, k, v, self.visible(present))
        return self.out.forward(merge_heads(y))

    def backward(self, dy: Array) -> Array:
        dy = split_heads(self.out.backward(dy), self.heads)
        dq, dk, dv = (merge_heads(d) for d in self.core.backward(dy))
        dx = self.value.backward(dv)
        dx = dx + self.key.backward(dk)
        return dx + self.query.backward(dq)

    def visible(self, present: Array) -> Array:
        """Which key (last axis) a query may see: (B, T) -> (B, 1, 1, T), for every query alike."""
        return (present != 0)[:, None, None, :]


class GroupedQueryAttention(Layer):
    """Causal self-attention in which several query heads share a key head and its value head
    (Ainslie et al., GQA, 2023), with rotary positions; x is (B, T, C).

    Query head i looks at key head i // (heads / kv_heads): neighbours share.
    """

    def __init__(
        self, dim: int, heads: int, kv_heads: int, size: int, rng: np.random.Generator
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.q = Linear(dim, heads * size, rng, bias=False)
        self.k = Linear(dim, kv_heads * size, rng, bias=False)
        self.v = Linear(dim, kv_heads * size, rng, bias=False)
        self.rotary = Rotary()
        self.core = ScaledDotProduct(size)
        self.o = Linear(heads * size, dim, rng, bias=False)

    def forward(self, x: Array) -> Array:
        xp = array_namespace(x)
        q = self.rotary.forward(split_heads(self.q.forward(x), self.heads))  # (B, nh, T, hs)
        k = self.rotary.forward(split_heads(self.k.forward(x), self.kv_heads))  # (B, nkv, T, hs)
        v = split_heads(self.v.forward(x), self.kv_heads)
        visible = xp.tril(xp.ones((x.shape[1], x.shape[1]), dtype=bool))
        y = self.core.forward(q, self.spread(k), self.spread(v), visible)
        return self.o.forward(merge_heads(y))

    def backward(self, dy: Array) -> Array:
        dy = split_heads(self.o.backward(dy), self.heads)
        dq, dk, dv = self.core.backward(dy)
        dk = self.rotary.backward(self.gather(dk))  # its calls go backward in reverse
        dq = self.rotary.backward(dq)
        dx = self.v.backward(merge_heads(self.gather(dv)))
        dx = dx + self.k.backward(merge_heads(dk))
        return dx + self.q.backward(merge_heads(dq))

    def spread(self, x: Array) -> Array:
        """A key head for every query head: (B, nkv, T, hs) -> (B, nh, T, hs)."""
        return array_namespace(x).repeat(x, self.heads // self.kv_heads, axis=1)

    def gather(self, d: Array) -> Array:
        """The adjoint of `spread`: the sum over the query heads that share a key head."""
        batch, heads, length, size = d.shape
        groups = (batch, self.kv_heads, heads // self.kv_heads, length, size)
        return d.reshape(groups).sum(axis=2)


def split_heads(x: Array, heads: int) -> Array:
    """(B, T, nh·hs) -> (B, nh, T, hs)."""
    batch, length, dim = x.shape
    return x.reshape(batch, length, heads, dim // heads).swapaxes(1, 2)


def merge_heads(x: Array) -> Array:
    """(B, nh, T, hs) -> (B, T, nh·hs)."""
    batch, heads, length, size = x.shape
    return x.swapaxes(1, 2).reshape(batch, length, heads * size)
