"""The graph convolutional network from scratch."""

from __future__ import annotations

import numpy as np

from models.scratch import Array, GraphConv, Layer, ReLU

FEATURES, HIDDEN, CLASSES = 64, 13, 10


class GCN(Layer):
    """Nodes (N, 64) and the normalised adjacency Â = D^-½ (A + I) D^-½ (N, N) -> logits (N, 10)."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.conv1 = GraphConv(FEATURES, HIDDEN, rng)
        self.relu = ReLU()
        self.conv2 = GraphConv(HIDDEN, CLASSES, rng)

    def forward(self, x: Array, adjacency: Array) -> Array:
        x = self.relu.forward(self.conv1.forward(x, adjacency))  # (N, 13)
        return self.conv2.forward(x, adjacency)  # (N, 10)

    def backward(self, dy: Array) -> tuple[Array, Array]:
        dx, from_second = self.conv2.backward(dy)
        dx, from_first = self.conv1.backward(self.relu.backward(dx))
        return dx, from_second + from_first  # both layers use the adjacency


def build() -> GCN:
    """An untrained net, in evaluation mode."""
    net = GCN(np.random.default_rng(0))
    net.eval()
    return net
