"""The bidirectional LSTM classifier in Flax NNX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

VOCABULARY, DIM, HIDDEN, CLASSES = 96, 11, 7, 4


class LastStates(nnx.Module):
    """The forward half at the last step beside the backward half at the first."""

    def __call__(self, y: jax.Array) -> jax.Array:
        half = y.shape[-1] // 2
        return jnp.concatenate([y[:, -1, :half], y[:, 0, half:]], axis=-1)  # (B, 2h)


class LSTM(nnx.Module):
    """One direction. Flax packs the gates as i, f, g, o and has one bias."""

    def __init__(self, rngs: nnx.Rngs, *, reverse: bool) -> None:
        self.reverse = reverse
        self.cell = nnx.OptimizedLSTMCell(DIM, HIDDEN, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """A plain loop: in so short a sequence a scan would take its time to compile."""
        zeros = jnp.zeros((x.shape[0], HIDDEN), x.dtype)
        carry, states = (zeros, zeros), []  # c and h
        for t in reversed(range(x.shape[1])) if self.reverse else range(x.shape[1]):
            carry, h = self.cell(carry, x[:, t])
            states.append(h)
        if self.reverse:
            states.reverse()  # into the order of the sequence
        return jnp.stack(states, axis=1)  # (B, T, 7)


class Bidirectional(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.forward = LSTM(rngs, reverse=False)
        self.backward = LSTM(rngs, reverse=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate([self.forward(x), self.backward(x)], axis=-1)  # (B, T, 2 · 7)


class Classifier(nnx.Module):
    """Tokens (B, T) -> logits (B, 4) (Schuster, Paliwal, Bidirectional Recurrent Neural Networks,
    1997).
    """

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(VOCABULARY, DIM, rngs=rngs)
        self.lstm = Bidirectional(rngs)
        self.last = LastStates()
        self.head = nnx.Linear(2 * HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.lstm(self.embedding(tokens))  # (B, T) -> (B, T, 11) -> (B, T, 14)
        return self.head(self.last(x))  # (B, 14) -> (B, 4)


def build() -> Classifier:
    """An untrained model."""
    return Classifier(nnx.Rngs(0))
