"""The bidirectional GRU classifier in Flax NNX."""

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


class GRU(nnx.Module):
    """One direction, by hand: Flax' own cell has no second bias on the new state.

    r, z = σ(x W_ih + b_ih + h W_hh + b_hh), n = tanh(x W_in + b_in + r · (h W_hn + b_hn)),
    h' = (1 - z) · n + z · h (Cho et al., Learning Phrase Representations, 2014), with the reset
    gate behind the product as in PyTorch, and the gates in PyTorch's order r, z, n.
    """

    def __init__(self, rngs: nnx.Rngs, *, reverse: bool) -> None:
        self.reverse = reverse
        shapes = {"weight_ih": (DIM, 3 * HIDDEN), "weight_hh": (HIDDEN, 3 * HIDDEN)}
        for name, shape in shapes.items():
            setattr(self, name, nnx.Param(0.3 * jax.random.normal(rngs.params(), shape)))
        self.bias_ih = nnx.Param(jnp.zeros(3 * HIDDEN))
        self.bias_hh = nnx.Param(jnp.zeros(3 * HIDDEN))

    def __call__(self, x: jax.Array) -> jax.Array:
        """A plain loop: in so short a sequence a scan would take its time to compile."""
        projected = x @ self.weight_ih[...] + self.bias_ih[...]  # (B, T, 11) -> (B, T, 3 · 7)
        h, states = jnp.zeros((x.shape[0], HIDDEN), x.dtype), []
        for t in reversed(range(x.shape[1])) if self.reverse else range(x.shape[1]):
            h = self.update(h, projected[:, t], h @ self.weight_hh[...] + self.bias_hh[...])
            states.append(h)
        if self.reverse:
            states.reverse()  # into the order of the sequence
        return jnp.stack(states, axis=1)  # (B, T, 7)

    def update(self, h: jax.Array, projected: jax.Array, recurrent: jax.Array) -> jax.Array:
        """The next state from both products, (B, 3 · 7) each."""
        xr, xz, xn = jnp.split(projected, 3, axis=-1)
        hr, hz, hn = jnp.split(recurrent, 3, axis=-1)
        r, z = nnx.sigmoid(xr + hr), nnx.sigmoid(xz + hz)
        n = jnp.tanh(xn + r * hn)
        return (1 - z) * n + z * h


class Bidirectional(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.forward = GRU(rngs, reverse=False)
        self.backward = GRU(rngs, reverse=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate([self.forward(x), self.backward(x)], axis=-1)  # (B, T, 2 · 7)


class Classifier(nnx.Module):
    """Tokens (B, T) -> logits (B, 4) (Schuster, Paliwal, Bidirectional Recurrent Neural Networks,
    1997).
    """

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(VOCABULARY, DIM, rngs=rngs)
        self.gru = Bidirectional(rngs)
        self.last = LastStates()
        self.head = nnx.Linear(2 * HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.gru(self.embedding(tokens))  # (B, T) -> (B, T, 11) -> (B, T, 14)
        return self.head(self.last(x))  # (B, 14) -> (B, 4)


def build() -> Classifier:
    """An untrained model."""
    return Classifier(nnx.Rngs(0))
