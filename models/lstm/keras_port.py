"""The bidirectional LSTM classifier in Keras 3."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

VOCABULARY, DIM, HIDDEN, CLASSES = 96, 11, 7, 4


class LastStates(layers.Layer):
    """The forward half at the last step beside the backward half at the first."""

    def call(self, y: Any) -> Any:
        half = y.shape[-1] // 2
        return ops.concatenate([y[:, -1, :half], y[:, 0, half:]], axis=-1)  # (B, 2h)


class Classifier(keras.Model):
    """Tokens (B, T) -> logits (B, 4) (Schuster, Paliwal, Bidirectional Recurrent Neural Networks,
    1997).

    Keras stacks the gates as i, f, c, o (c is PyTorch's g) and keeps one bias, PyTorch's two added
    up. `Bidirectional` turns the backward outputs round again, so that both halves are in time.
    """

    def __init__(self) -> None:
        super().__init__(name="classifier")
        self.embedding = layers.Embedding(VOCABULARY, DIM, name="embedding")
        self.lstm = layers.Bidirectional(
            layers.LSTM(HIDDEN, return_sequences=True, name="lstm"), name="lstm"
        )
        self.last = LastStates(name="last")
        self.head = layers.Dense(CLASSES, name="head")

    def call(self, tokens: Any) -> Any:
        x = self.lstm(self.embedding(tokens))  # (B, T) -> (B, T, 11) -> (B, T, 14)
        return self.head(self.last(x))  # (B, 14) -> (B, 4)


def build() -> Classifier:
    """An untrained model with all of its variables."""
    model = Classifier()
    model(ops.zeros((1, 5), dtype="int32"))
    return model
