"""The mixture of experts in Keras 3."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

VOCABULARY, DIM, HIDDEN, EXPERTS, TOP = 96, 22, 26, 5, 2


def projection(units: int, name: str) -> layers.Dense:
    return layers.Dense(units, use_bias=False, name=name)


class Router(layers.Layer):
    """p = softmax(x W); the two largest divided by their sum, zero for every other expert (Shazeer
    et al., Outrageously Large Neural Networks, 2017; Lepikhin et al., GShard, 2020).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.top = TOP
        self.logits = projection(EXPERTS, "logits")
        self.softmax = layers.Softmax(axis=-1, name="softmax")

    def call(self, x: Any) -> Any:
        p = self.softmax(self.logits(x))  # (B, T, E)
        largest = ops.top_k(p, self.top)[1]  # (B, T, 2)
        chosen = p * ops.sum(ops.one_hot(largest, EXPERTS, dtype=p.dtype), axis=-2)
        return self.normalised(chosen)

    def normalised(self, chosen: Any) -> Any:
        return chosen / ops.sum(chosen, axis=-1, keepdims=True)


class SwiGLU(layers.Layer):
    """(SiLU(x G) · x U) D (Shazeer, GLU Variants Improve Transformer, 2020)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gate = projection(HIDDEN, "gate")
        self.silu = layers.Activation("silu", name="silu")
        self.up = projection(HIDDEN, "up")
        self.down = projection(DIM, "down")

    def call(self, x: Any) -> Any:
        return self.down(self.silu(self.gate(x)) * self.up(x))


class MixtureOfExperts(layers.Layer):
    """y = Σᵢ gateᵢ(x) · expertᵢ(x) (Jiang et al., Mixtral of Experts, 2024), every expert on every
    token.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.router = Router(name="router")
        self.experts = [SwiGLU(name=f"experts_{i}") for i in range(EXPERTS)]

    def call(self, x: Any) -> Any:
        gates = self.router(x)  # (B, T, E)
        made = ops.stack([expert(x) for expert in self.experts], axis=-1)  # (B, T, C, E)
        return ops.sum(made * gates[:, :, None, :], axis=-1)  # (B, T, C)


class RMSNorm(layers.Layer):
    """x / √(mean(x²) + eps) · weight (Zhang, Sennrich, Root Mean Square Layer Normalization,
    2019)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = 1e-5  # as in Llama 2

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x: Any) -> Any:
        mean = ops.mean(ops.square(x), axis=-1, keepdims=True)
        return x * ops.rsqrt(mean + self.epsilon) * self.scale


class Model(keras.Model):
    """Tokens (B, T) -> logits (B, T, 96): one residual block, x + moe(norm(x))."""

    def __init__(self) -> None:
        super().__init__(name="model")
        self.embedding = layers.Embedding(VOCABULARY, DIM, name="embedding")
        self.norm1 = RMSNorm(name="norm1")
        self.moe = MixtureOfExperts(name="moe")
        self.norm2 = RMSNorm(name="norm2")
        self.head = layers.Dense(VOCABULARY, name="head")

    def call(self, tokens: Any) -> Any:
        x = self.embedding(tokens)  # (B, T, C)
        x = x + self.moe(self.norm1(x))
        return self.head(self.norm2(x))  # (B, T, 96)


def build() -> Model:
    """An untrained model with all of its variables."""
    model = Model()
    model(ops.zeros((1, 5), dtype="int32"))
    return model
