"""The graph convolutional network in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.random_weights import randomise

FEATURES, HIDDEN, CLASSES = 64, 13, 10


class GraphConv(nn.Module):
    """Y = Â X W + b: each node takes the weighted sum over its neighbours (Kipf, Welling,
    Semi-Supervised Classification with Graph Convolutional Networks, 2017), W being (in, out).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(inputs, outputs)))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return adjacency @ (x @ self.weight) + self.bias  # (N, in) -> (N, out)


class GCN(nn.Module):
    """Nodes (N, 64) and the normalised adjacency Â = D^-½ (A + I) D^-½ (N, N) -> logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = GraphConv(FEATURES, HIDDEN)
        self.relu = nn.ReLU()
        self.conv2 = GraphConv(HIDDEN, CLASSES)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = self.relu(self.conv1(x, adjacency))  # (N, 13)
        return self.conv2(x, adjacency)  # (N, 10)


def build() -> GCN:
    """A model of random weights, the same in every run, in evaluation mode."""
    model = GCN()
    randomise(model, seed=6)
    return model.eval()
