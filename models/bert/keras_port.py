"""The BERT-style encoder in Keras 3."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers, ops

VOCABULARY, LENGTH, TYPES, DIM, HEADS, HIDDEN, BLOCKS, CLASSES = 99, 23, 2, 30, 3, 52, 2, 2
EPS = 1e-12  # of every norm; Keras' default is 1e-3
MASKED = -1e9


def exact_gelu(x: Any) -> Any:
    """x Φ(x) (Hendrycks, Gimpel, Gaussian Error Linear Units, 2016), not its tanh approximation."""
    return keras.activations.gelu(x, approximate=False)


class Embeddings(layers.Layer):
    """The sum of a token's, its position's and its segment's vector, normalised."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tokens = layers.Embedding(VOCABULARY, DIM, name="tokens")
        self.positions = layers.Embedding(LENGTH, DIM, name="positions")
        self.types = layers.Embedding(TYPES, DIM, name="types")
        self.norm = layers.LayerNormalization(epsilon=EPS, name="norm")

    def call(self, tokens: Any, types: Any) -> Any:
        x = self.tokens(tokens) + self.positions(ops.arange(tokens.shape[1])) + self.types(types)
        return self.norm(x)  # (B, T) -> (B, T, C)


class Core(layers.Layer):
    """softmax(q kᵀ · scale, masked) v (Vaswani et al., Attention Is All You Need, 2017)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = 1 / math.sqrt(DIM // HEADS)
        self.softmax = layers.Softmax(axis=-1, name="softmax")

    def call(self, q: Any, k: Any, v: Any, visible: Any) -> Any:
        scores = ops.matmul(q, ops.swapaxes(k, -1, -2)) * self.scale  # (B, nh, T, T)
        att = self.softmax(ops.where(visible, scores, MASKED))
        return ops.matmul(att, v)  # (B, nh, T, hs)


class SelfAttention(layers.Layer):
    """Every position looks at every one that is not padding, in both directions."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.query = layers.Dense(DIM, name="query")
        self.key = layers.Dense(DIM, name="key")
        self.value = layers.Dense(DIM, name="value")
        self.core = Core(name="core")
        self.out = layers.Dense(DIM, name="out")

    def call(self, x: Any, present: Any) -> Any:
        q, k, v = (self.split_heads(layer(x)) for layer in (self.query, self.key, self.value))
        y = ops.swapaxes(self.core(q, k, v, self.visible(present)), 1, 2)  # (B, T, nh, hs)
        return self.out(ops.reshape(y, x.shape))

    def visible(self, present: Any) -> Any:
        """Which key (last axis) a query may see: (B, T) -> (B, 1, 1, T), for every query alike."""
        return ops.not_equal(present, 0)[:, None, None, :]

    def split_heads(self, x: Any) -> Any:
        batch, length, dim = x.shape
        x = ops.reshape(x, (batch, length, HEADS, dim // HEADS))
        return ops.swapaxes(x, 1, 2)  # (B, nh, T, hs)


class FeedForward(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fc = layers.Dense(HIDDEN, name="fc")
        self.gelu = layers.Activation(exact_gelu, name="gelu")
        self.proj = layers.Dense(DIM, name="proj")

    def call(self, x: Any) -> Any:
        return self.proj(self.gelu(self.fc(x)))


class Block(layers.Layer):
    """Normalised behind each residual sum, as in the original Transformer."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attn = SelfAttention(name="attn")
        self.ln1 = layers.LayerNormalization(epsilon=EPS, name="ln1")
        self.mlp = FeedForward(name="mlp")
        self.ln2 = layers.LayerNormalization(epsilon=EPS, name="ln2")

    def call(self, x: Any, present: Any) -> Any:
        x = self.ln1(x + self.attn(x, present))
        return self.ln2(x + self.mlp(x))


class BERT(keras.Model):
    """Two passages (B, T) -> logits (B, 2): does the second follow the first? (Devlin et al., BERT:
    Pre-training of Deep Bidirectional Transformers, 2018).

    Inputs are integers: ``tokens``; ``types``, 0 in the first and 1 in the second;
    ``present``, 1 for a token and 0 for padding (an argument called ``mask`` is Keras' own).
    """

    def __init__(self) -> None:
        super().__init__(name="bert")
        self.embeddings = Embeddings(name="embeddings")
        self.blocks = [Block(name=f"blocks_{i}") for i in range(BLOCKS)]
        self.pooler = layers.Dense(DIM, name="pooler")
        self.tanh = layers.Activation("tanh", name="tanh")
        self.head = layers.Dense(CLASSES, name="head")

    def call(self, tokens: Any, types: Any, present: Any) -> Any:
        x = self.embeddings(tokens, types)  # (B, T, C)
        for block in self.blocks:
            x = block(x, present)
        first = self.tanh(self.pooler(x[:, 0]))  # (B, C): what stands at [CLS]
        return self.head(first)  # (B, 2)


def build() -> BERT:
    """An untrained model with all of its variables."""
    model = BERT()
    zeros = ops.zeros((1, LENGTH), dtype="int32")
    model(zeros, zeros, zeros)
    return model
