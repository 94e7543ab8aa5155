"""A table of vectors, and the output layer that shares it."""

from __future__ import annotations

import numpy as np

from models.scratch.base import Array, Layer, array_namespace


class Embedding(Layer):
    """Row lookup, y = weight[index] (Bengio et al., Neural Probabilistic Language Model, 2003)."""

    axes = {"weight": ("row", "dim")}

    def __init__(self, rows: int, dim: int, rng: np.random.Generator) -> None:
        super().__init__()
        self._add_parameter("weight", rng.normal(0, 0.02, (rows, dim)).astype(np.float32))

    def forward(self, index: Array) -> Array:
        self._index = index
        return self.params["weight"][index]  # (...,) -> (..., dim)

    def backward(self, dy: Array) -> None:
        gradient = array_namespace(dy).zeros(self.params["weight"].shape, dtype=dy.dtype)
        scatter_add(gradient, self._index, dy)
        self.accumulate("weight", gradient)


class TiedHead(Layer):
    """logits = x Eᵀ, E being an embedding's table (Press, Wolf, Using the Output Embedding, 2016).

    It owns no parameter: it reads the embedding's, and adds to the embedding's gradient.
    """

    def __init__(self, embedding: Embedding) -> None:
        super().__init__()
        self._embedding = embedding

    def forward(self, x: Array) -> Array:
        self._x = x
        return x @ self._embedding.params["weight"].T  # (..., dim) -> (..., row)

    def backward(self, dy: Array) -> Array:
        x = self._x.reshape(-1, self._x.shape[-1])  # (N, dim)
        d = dy.reshape(-1, dy.shape[-1])  # (N, row)
        self._embedding.accumulate("weight", d.T @ x)
        return dy @ self._embedding.params["weight"]


def scatter_add(target: Array, index: Array, values: Array) -> None:
    """target[index] += values, where a repeated index counts repeatedly (a plain += keeps one)."""
    array_namespace(target).add.at(target, index, values)
