"""A small vision transformer in Keras 3 (Dosovitskiy et al., 2020, as in `models.vit.reference`);
images are (N, H, W, C).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

DIM, HEADS, HIDDEN, BLOCKS = 30, 3, 42, 2
PATCHES = 4 * 6  # 16 x 12 pixels in patches of 4 x 2


def exact_gelu(x: Any) -> Any:
    """x Φ(x), not its tanh approximation."""
    return keras.activations.gelu(x, approximate=False)


class Embedding(layers.Layer):
    """Images -> tokens (N, 1 + 24, D): the class token, then the patches row by row."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.projection = layers.Conv2D(DIM, (4, 2), strides=(4, 2), name="projection")
        self.class_token = self.add_weight(shape=(1, 1, DIM), name="class_token")
        self.positions = self.add_weight(shape=(1, 1 + PATCHES, DIM), name="positions")

    def call(self, x: Any) -> Any:
        x = self.sequence(self.projection(x))  # (N, 4, 6, D) -> (N, 24, D)
        token = ops.broadcast_to(self.class_token, (len(x), 1, DIM))
        return ops.concatenate([token, x], axis=1) + self.positions  # (N, 25, D)

    def sequence(self, x: Any) -> Any:
        return ops.reshape(x, (x.shape[0], PATCHES, DIM))


class FeedForward(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fc = layers.Dense(HIDDEN, name="fc")
        self.gelu = layers.Activation(exact_gelu, name="gelu")
        self.proj = layers.Dense(DIM, name="proj")

    def call(self, x: Any) -> Any:
        return self.proj(self.gelu(self.fc(x)))


class Block(layers.Layer):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ln1 = layers.LayerNormalization(epsilon=1e-6, name="ln1")  # Keras' default is 1e-3
        self.attn = layers.MultiHeadAttention(HEADS, DIM // HEADS, name="attn")
        self.ln2 = layers.LayerNormalization(epsilon=1e-6, name="ln2")
        self.mlp = FeedForward(name="mlp")

    def call(self, x: Any) -> Any:
        y = self.ln1(x)
        x = x + self.attn(query=y, value=y)
        return x + self.mlp(self.ln2(x))


class ViT(keras.Model):
    """Images (N, 16, 12, 1) -> 10 logits."""

    def __init__(self) -> None:
        super().__init__(name="vit")
        self.embedding = Embedding(name="embedding")
        self.blocks = [Block(name=f"blocks_{i}") for i in range(BLOCKS)]
        self.ln = layers.LayerNormalization(epsilon=1e-6, name="ln")
        self.head = layers.Dense(10, name="head")

    def call(self, x: Any) -> Any:
        x = self.embedding(x)  # (N, 25, D)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x)[:, 0])  # the class token: (N, D) -> (N, 10)


def build() -> ViT:
    """An untrained model with all of its variables."""
    model = ViT()
    model(ops.zeros((1, 16, 12, 1)))
    return model
