"""Recurrent layers, unrolled in time by hand: LSTM, GRU, and both directions of either."""

from __future__ import annotations

import math

import numpy as np

from models.scratch.base import Array, Layer, array_namespace


class Recurrent(Layer):
    """What an LSTM and a GRU have in common: two products, each with a bias, for all gates at once.

    ``weight_ih`` (in, gates · hidden) acts on the input, ``weight_hh`` (hidden, gates · hidden) on
    the state; the gates lie side by side, in the order of ``gates``. Sequences are (B, T, in), the
    states that come out (B, T, hidden), and the first state is zero. With ``reverse`` the sequence
    is read from its end; the states still come out in the order of the sequence.
    """

    gates = ""

    def __init__(
        self, inputs: int, hidden: int, rng: np.random.Generator, *, reverse: bool = False
    ) -> None:
        super().__init__()
        self.hidden, self.reverse = hidden, reverse
        bound, width = 1 / math.sqrt(hidden), len(self.gates) * hidden
        shapes = {"weight_ih": (inputs, width), "weight_hh": (hidden, width)}
        for name, shape in (shapes | {"bias_ih": (width,), "bias_hh": (width,)}).items():
            self._add_parameter(name, rng.uniform(-bound, bound, shape).astype(np.float32))

    def forward(self, x: Array) -> Array:
        xp = array_namespace(x)
        p = self.params
        self._x, self._steps = x, {}
        projected = x @ p["weight_ih"] + p["bias_ih"]  # (B, T, in) -> (B, T, gates · hidden)
        state = self.start(xp.zeros((x.shape[0], self.hidden), dtype=projected.dtype))
        y = xp.zeros((*x.shape[:2], self.hidden), dtype=projected.dtype)
        for t in self.order(x.shape[1]):
            h = state[0]
            state, kept = self.step(projected[:, t], h @ p["weight_hh"] + p["bias_hh"], state)
            self._steps[t] = h, kept
            y[:, t] = state[0]
        return y

    def backward(self, dy: Array) -> Array:
        """Backpropagation through time (Werbos, 1990): the steps in reverse."""
        xp, weight = array_namespace(dy), self.params["weight_hh"]
        dprojected = xp.zeros((*dy.shape[:2], weight.shape[1]), dtype=dy.dtype)
        dstate = self.start(xp.zeros_like(dy[:, 0]))
        for t in reversed(self.order(dy.shape[1])):
            h, kept = self._steps[t]
            dstate = (dstate[0] + dy[:, t], *dstate[1:])
            dprojected[:, t], drecurrent, dstate = self.step_backward(dstate, kept)
            self.accumulate("weight_hh", h.T @ drecurrent)
            self.accumulate("bias_hh", drecurrent.sum(axis=0))
            dstate = (dstate[0] + drecurrent @ weight.T, *dstate[1:])
        x = self._x.reshape(-1, self._x.shape[-1])  # (B·T, in)
        self.accumulate("weight_ih", x.T @ dprojected.reshape(len(x), -1))
        self.accumulate("bias_ih", dprojected.sum(axis=(0, 1)))
        return dprojected @ self.params["weight_ih"].T

    def order(self, length: int) -> range:
        return range(length - 1, -1, -1) if self.reverse else range(length)

    def start(self, zeros: Array) -> tuple[Array, ...]:
        """The state before the first step, (B, hidden) each; what comes out is its first part."""
        return (zeros,)

    def step(
        self, projected: Array, recurrent: Array, state: tuple[Array, ...]
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """(the next state, what `step_backward` needs) from both products and the last state."""
        raise NotImplementedError

    def step_backward(
        self, dstate: tuple[Array, ...], kept: tuple[Array, ...]
    ) -> tuple[Array, Array, tuple[Array, ...]]:
        """Cotangents of both products, and of the last state but for its way through them."""
        raise NotImplementedError


class LSTM(Recurrent):
    """c' = f · c + i · g and h' = o · tanh c' (Hochreiter, Schmidhuber, Long Short-Term Memory,
    1997; with the forget gate of Gers et al., 2000), where

        i, f, o = σ(x W_ih + b_ih + h W_hh + b_hh)    g = tanh(the same)

    The gates lie in the order i, f, g, o, as in PyTorch.
    """

    gates = "ifgo"
    axes = {
        "weight_ih": ("in", "gates:ifgo"),
        "weight_hh": ("in", "gates:ifgo"),
        "bias_ih": ("gates:ifgo",),
        "bias_hh": ("gates:ifgo",),
    }

    def start(self, zeros: Array) -> tuple[Array, ...]:
        return zeros, zeros  # h and c

    def step(
        self, projected: Array, recurrent: Array, state: tuple[Array, ...]
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        xp = array_namespace(projected)
        i, f, g, o = xp.split(projected + recurrent, 4, axis=-1)  # (B, hidden) each
        i, f, g, o = sigmoid(i), sigmoid(f), xp.tanh(g), sigmoid(o)
        c = f * state[1] + i * g
        tanh = xp.tanh(c)
        return (o * tanh, c), (i, f, g, o, tanh, state[1])

    def step_backward(
        self, dstate: tuple[Array, ...], kept: tuple[Array, ...]
    ) -> tuple[Array, Array, tuple[Array, ...]]:
        xp = array_namespace(dstate[0])
        i, f, g, o, tanh, before = kept
        dh, dc = dstate
        dc = dc + dh * o * (1 - tanh**2)
        di, df, do = dc * g * i * (1 - i), dc * before * f * (1 - f), dh * tanh * o * (1 - o)
        d = xp.concatenate([di, df, dc * i * (1 - g**2), do], axis=-1)  # (B, 4 · hidden)
        return d, d, (xp.zeros_like(dh), dc * f)


class GRU(Recurrent):
    """h' = (1 - z) · n + z · h (Cho et al., Learning Phrase Representations, 2014), where

        r, z = σ(x W_ih + b_ih + h W_hh + b_hh)    n = tanh(x W_in + b_in + r · (h W_hn + b_hn))

    The reset gate acts behind the product, as in PyTorch (Keras: ``reset_after=True``), so the two
    biases of n are different functions. The gates lie in the order r, z, n, as in PyTorch.
    """

    gates = "rzn"
    axes = {
        "weight_ih": ("in", "gates:rzn"),
        "weight_hh": ("in", "gates:rzn"),
        "bias_ih": ("gates:rzn",),
        "bias_hh": ("gates:rzn",),
    }

    def step(
        self, projected: Array, recurrent: Array, state: tuple[Array, ...]
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        xp = array_namespace(projected)
        (h,) = state
        xr, xz, xn = xp.split(projected, 3, axis=-1)  # (B, hidden) each
        hr, hz, hn = xp.split(recurrent, 3, axis=-1)
        r, z = sigmoid(xr + hr), sigmoid(xz + hz)
        n = xp.tanh(xn + r * hn)
        return ((1 - z) * n + z * h,), (r, z, n, hn, h)

    def step_backward(
        self, dstate: tuple[Array, ...], kept: tuple[Array, ...]
    ) -> tuple[Array, Array, tuple[Array, ...]]:
        xp = array_namespace(dstate[0])
        r, z, n, hn, h = kept
        (dh,) = dstate
        dn = dh * (1 - z) * (1 - n**2)
        dr, dz = dn * hn * r * (1 - r), dh * (h - n) * z * (1 - z)
        dprojected = xp.concatenate([dr, dz, dn], axis=-1)  # (B, 3 · hidden)
        drecurrent = xp.concatenate([dr, dz, dn * r], axis=-1)
        return dprojected, drecurrent, (dh * z,)


class Bidirectional(Layer):
    """Two recurrent layers, one reading backwards, side by side: (B, T, in) -> (B, T, 2 · hidden)
    (Schuster, Paliwal, Bidirectional Recurrent Neural Networks, 1997).
    """

    def __init__(
        self, kind: type[Recurrent], inputs: int, hidden: int, rng: np.random.Generator
    ) -> None:
        super().__init__()
        self.forwards = kind(inputs, hidden, rng)
        self.backwards = kind(inputs, hidden, rng, reverse=True)

    def forward(self, x: Array) -> Array:
        y = [self.forwards.forward(x), self.backwards.forward(x)]  # (B, T, hidden) each
        return array_namespace(x).concatenate(y, axis=-1)

    def backward(self, dy: Array) -> Array:
        ahead, back = array_namespace(dy).split(dy, 2, axis=-1)
        dx = self.backwards.backward(back)
        return dx + self.forwards.backward(ahead)


class LastStates(Layer):
    """What each direction has at its end: (B, T, 2 · hidden) -> (B, 2 · hidden).

    The forward half is taken at the last step, the backward half at the first.
    """

    def forward(self, y: Array) -> Array:
        self._shape = y.shape
        half = y.shape[-1] // 2
        ends = [y[:, -1, :half], y[:, 0, half:]]  # (B, hidden) each
        return array_namespace(y).concatenate(ends, axis=-1)

    def backward(self, dy: Array) -> Array:
        d = array_namespace(dy).zeros(self._shape, dtype=dy.dtype)
        half = dy.shape[-1] // 2
        d[:, -1, :half], d[:, 0, half:] = dy[:, :half], dy[:, half:]
        return d


def sigmoid(x: Array) -> Array:
    """σ(x) = 1 / (1 + exp(-x)), by way of tanh, which does not overflow."""
    return (array_namespace(x).tanh(x / 2) + 1) / 2
