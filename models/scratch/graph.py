"""Convolution on a graph."""

from __future__ import annotations

import math

import numpy as np

from models.scratch.base import Array, Layer


class GraphConv(Layer):
    """Y = Â X W + b: each node takes the mean over its neighbours, then a linear map (Kipf,
    Welling, Semi-Supervised Classification with Graph Convolutional Networks, 2017).

    Â (N, N) is the normalised adjacency, X (N, in), Y (N, out). The cotangent of Â is
    dY (X W)ᵀ: an input like X, though nobody learns it.
    """

    axes = {"weight": ("in", "out"), "bias": ("out",)}

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        weight = rng.uniform(-bound, bound, (inputs, outputs))
        self._add_parameter("weight", weight.astype(np.float32))
        self._add_parameter("bias", np.zeros(outputs, np.float32))

    def forward(self, x: Array, adjacency: Array) -> Array:
        self._x, self._adjacency = x, adjacency
        self._mapped = x @ self.params["weight"]  # (N, in) -> (N, out)
        return adjacency @ self._mapped + self.params["bias"]

    def backward(self, dy: Array) -> tuple[Array, Array]:
        d = self._adjacency.T @ dy  # (N, out)
        self.accumulate("weight", self._x.T @ d)
        self.accumulate("bias", dy.sum(axis=0))
        return d @ self.params["weight"].T, dy @ self._mapped.T
