"""The bidirectional LSTM classifier from scratch."""

from __future__ import annotations

import numpy as np

from models.scratch import LSTM, Array, Bidirectional, Embedding, LastStates, Layer, Linear

VOCABULARY, DIM, HIDDEN, CLASSES = 96, 11, 7, 4


class Classifier(Layer):
    """Tokens (B, T) -> logits (B, 4) (Schuster, Paliwal, Bidirectional Recurrent Neural Networks,
    1997).
    """

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.embedding = Embedding(VOCABULARY, DIM, rng)
        self.lstm = Bidirectional(LSTM, DIM, HIDDEN, rng)
        self.last = LastStates()
        self.head = Linear(2 * HIDDEN, CLASSES, rng)

    def forward(self, tokens: Array) -> Array:
        x = self.lstm.forward(self.embedding.forward(tokens))  # (B, T) -> (B, T, 11) -> (B, T, 14)
        return self.head.forward(self.last.forward(x))  # (B, 14) -> (B, 4)

    def backward(self, dy: Array) -> None:
        dx = self.last.backward(self.head.backward(dy))
        self.embedding.backward(self.lstm.backward(dx))


def build() -> Classifier:
    """An untrained net, in evaluation mode."""
    net = Classifier(np.random.default_rng(0))
    net.eval()
    return net
