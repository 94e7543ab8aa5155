"""The graph convolutional network in Keras 3."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

FEATURES, HIDDEN, CLASSES = 64, 13, 10


class GraphConv(layers.Layer):
    """Y = Â X W + b: each node takes the weighted sum over its neighbours (Kipf, Welling,
    Semi-Supervised Classification with Graph Convolutional Networks, 2017), W being (in, out).
    """

    def __init__(self, inputs: int, outputs: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel = self.add_weight(shape=(inputs, outputs), name="kernel")
        self.bias = self.add_weight(shape=(outputs,), initializer="zeros", name="bias")

    def call(self, x: Any, adjacency: Any) -> Any:
        return ops.matmul(adjacency, ops.matmul(x, self.kernel)) + self.bias  # (N, in) -> (N, out)


class GCN(keras.Model):
    """Nodes (N, 64) and the normalised adjacency Â = D^-½ (A + I) D^-½ (N, N) -> logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__(name="gcn")
        self.conv1 = GraphConv(FEATURES, HIDDEN, name="conv1")
        self.relu = layers.ReLU(name="relu")
        self.conv2 = GraphConv(HIDDEN, CLASSES, name="conv2")

    def call(self, x: Any, adjacency: Any) -> Any:
        x = self.relu(self.conv1(x, adjacency))  # (N, 13)
        return self.conv2(x, adjacency)  # (N, 10)


def build() -> GCN:
    """An untrained model with all of its variables."""
    model = GCN()
    model(ops.zeros((3, FEATURES)), ops.eye(3))
    return model
