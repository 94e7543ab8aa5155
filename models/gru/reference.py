"""The bidirectional GRU classifier in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.random_weights import randomise

VOCABULARY, DIM, HIDDEN, CLASSES = 96, 11, 7, 4


class GRU(nn.GRU):
    """r, z = σ(W_ih x + b_ih + W_hh h + b_hh), n = tanh(W_in x + b_in + r · (W_hn h + b_hn)),
    h' = (1 - z) · n + z · h (Cho et al., Learning Phrase Representations, 2014).

    PyTorch stacks the gates as r, z, n. It applies the reset gate behind the product, which the
    paper applies before it; so the two biases of n are different functions.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]  # (B, T, 11) -> (B, T, 2 · 7), without the final states


class LastStates(nn.Module):
    """The forward half at the last step beside the backward half at the first."""

    def forward(self, y: Tensor) -> Tensor:
        half = y.shape[-1] // 2
        return torch.cat([y[:, -1, :half], y[:, 0, half:]], dim=-1)  # (B, T, 2h) -> (B, 2h)


class Classifier(nn.Module):
    """Tokens (B, T) -> logits (B, 4) (Schuster, Paliwal, Bidirectional Recurrent Neural Networks,
    1997).
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, DIM)
        self.gru = GRU(DIM, HIDDEN, batch_first=True, bidirectional=True)
        self.last = LastStates()
        self.head = nn.Linear(2 * HIDDEN, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.gru(self.embedding(tokens))  # (B, T) -> (B, T, 11) -> (B, T, 14)
        return self.head(self.last(x))  # (B, 14) -> (B, 4)


def build() -> Classifier:
    """A model of random weights, the same in every run, in evaluation mode."""
    model = Classifier()
    randomise(model, seed=2)
    return model.eval()
