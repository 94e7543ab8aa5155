"""The character-level GPT in Keras 3."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

VOCABULARY, LENGTH, DIM, HEADS, BLOCKS = 96, 32, 48, 3, 2


def exact_gelu(x: Any) -> Any:
    """x Φ(x) (Hendrycks, Gimpel, Gaussian Error Linear Units, 2016), not its tanh approximation."""
    return keras.activations.gelu(x, approximate=False)


class CausalSelfAttention(layers.Layer):
    """softmax(q kᵀ · scale + mask) v per head (Vaswani et al., Attention Is All You Need, 2017)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = 1 / math.sqrt(DIM // HEADS)
        self.c_attn = layers.Dense(3 * DIM, name="c_attn")
        self.softmax = layers.Softmax(axis=-1, name="softmax")
        self.c_proj = layers.Dense(DIM, name="c_proj")

    def call(self, x: Any) -> Any:
        batch, length, dim = x.shape
        q, k, v = self.split_qkv(self.c_attn(x))  # (B, nh, T, hs) each
        scores = ops.matmul(q, ops.swapaxes(k, -1, -2)) * self.scale  # (B, nh, T, T)
        att = self.softmax(ops.where(self.visible(length), scores, -math.inf))
        y = ops.swapaxes(ops.matmul(att, v), 1, 2)  # (B, T, nh, hs)
        return self.c_proj(ops.reshape(y, (batch, length, dim)))

    def visible(self, length: int) -> Any:
        """Which key (column) each query (row) may see: (T, T)."""
        return ops.tril(ops.ones((length, length), dtype="bool"))

    def split_qkv(self, qkv: Any) -> Any:
        batch, length, _ = qkv.shape
        qkv = ops.reshape(qkv, (batch, length, 3, HEADS, DIM // HEADS))
        return ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), 3)


class FeedForward(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fc = layers.Dense(4 * DIM, name="fc")
        self.gelu = layers.Activation(exact_gelu, name="gelu")
        self.proj = layers.Dense(DIM, name="proj")

    def call(self, x: Any) -> Any:
        return self.proj(self.gelu(self.fc(x)))


class Block(layers.Layer):
    """Pre-norm residual block (Xiong et al., On Layer Normalization in the Transformer, 2020)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ln1 = layers.LayerNormalization(epsilon=1e-5, name="ln1")  # Keras' default is 1e-3
        self.attn = CausalSelfAttention(name="attn")
        self.ln2 = layers.LayerNormalization(epsilon=1e-5, name="ln2")
        self.mlp = FeedForward(name="mlp")

    def call(self, x: Any) -> Any:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class TiedHead(layers.Layer):
    """logits = x Eᵀ (Press, Wolf, Using the Output Embedding, 2016).

    ``table`` is a function that returns E: a layer kept here would become this one's child.
    """

    def __init__(self, table: Callable[[], Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = table

    def call(self, x: Any) -> Any:
        return ops.matmul(x, ops.transpose(self.table()))  # (B, T, C) -> (B, T, 96)


class GPT(keras.Model):
    """Tokens (B, T) -> logits (B, T, 96) (Radford et al., Language Models are Unsupervised
    Multitask Learners, 2019).
    """

    def __init__(self) -> None:
        super().__init__(name="gpt")
        self.wte = layers.Embedding(VOCABULARY, DIM, name="wte")
        self.wpe = layers.Embedding(LENGTH, DIM, name="wpe")
        self.blocks = [
            Block(name=f"blocks_{i}") for i in range(BLOCKS)
        ]  # a name may not hold a slash
        self.ln_f = layers.LayerNormalization(epsilon=1e-5, name="ln_f")
        self.lm_head = TiedHead(lambda: self.wte.embeddings, name="lm_head")

    def call(self, tokens: Any) -> Any:
        x = self.wte(tokens) + self.wpe(ops.arange(tokens.shape[1]))  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))  # (B, T, 96)


def build() -> GPT:
    """An untrained model with all of its variables."""
    model = GPT()
    model(ops.zeros((1, LENGTH), dtype="int32"))
    return model
