"""Recurrent layers in float64: LSTM, GRU and plain cells, and the ways in which ports differ.

LSTM (Hochreiter, Schmidhuber 1997; forget gate Gers 2000), GRU (Cho 2014; with the reset gate
behind the matrix product as in cuDNN).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crosscheck.explain.elementwise import sigmoid

__all__ = ["Cell", "Weights", "run"]

GATES = {"lstm": 4, "gru": 3, "rnn": 1}


@dataclass(frozen=True)
class Weights:
    """Of one direction of one layer, rows (gate, unit).

    Attributes:
        into: (G·H, in); back: (G·H, H).
        bias, back_bias: (G·H,); zeros where the layer has none.
    """

    into: np.ndarray
    back: np.ndarray
    bias: np.ndarray
    back_bias: np.ndarray

    @property
    def width(self) -> int:
        """H, the number of units."""
        return int(self.back.shape[1])


@dataclass(frozen=True)
class Cell:
    """What happens at one step.

    Attributes:
        kind: ``"lstm"``, ``"gru"`` or ``"rnn"``.
        gates: which block of the weights serves as the first, second, ... gate.
        reset_after: GRU: r multiplies h·U + b, not h before the product.
        keep: GRU: z weighs the old state; else the new one.
        bias, back_bias: how often each bias is counted.
        forget: added to the forget gate of an LSTM.
        relu: plain cell: ReLU for tanh.
        hard: gates are hard sigmoids of this slope; 0: true ones.
        free_bias: GRU: r multiplies h·U alone, its bias is added behind.
        squash: LSTM: the cell's value goes through tanh before the output gate.
    """

    kind: str
    gates: tuple[int, ...]
    reset_after: bool = True
    keep: bool = True
    bias: float = 1.0
    back_bias: float = 1.0
    forget: float = 0.0
    relu: bool = False
    hard: float = 0.0
    squash: bool = True
    free_bias: bool = False

    def step(
        self, weights: Weights, x: np.ndarray, state: tuple[np.ndarray, ...]
    ) -> tuple[np.ndarray, ...]:
        """The state (h,) or (h, c) after one step; x (B, in), h and c (B, H)."""
        fed = self._blocks(x @ weights.into.T + self.bias * weights.bias)
        if self.kind == "rnn":
            back = self._blocks(state[0] @ weights.back.T + self.back_bias * weights.back_bias)
            total = fed[0] + back[0]
            return (np.maximum(total, 0.0) if self.relu else np.tanh(total),)
        return (
            self._gru(weights, fed, state[0])
            if self.kind == "gru"
            else self._lstm(weights, fed, state[0], state[1])
        )

    def _lstm(
        self, weights: Weights, fed: list[np.ndarray], h: np.ndarray, c: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        back = self._blocks(h @ weights.back.T + self.back_bias * weights.back_bias)
        i, f, g, o = (a + b for a, b in zip(fed, back, strict=True))
        c = self._gate(f + self.forget) * c + self._gate(i) * np.tanh(g)
        return self._gate(o) * (np.tanh(c) if self.squash else c), c

    def _gru(
        self, weights: Weights, fed: list[np.ndarray], h: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        bias = self.back_bias * weights.back_bias
        back = self._blocks(h @ weights.back.T + bias)
        r, z = self._gate(fed[0] + back[0]), self._gate(fed[1] + back[1])
        if self.free_bias:
            added = self._blocks(bias)[2]
            n = np.tanh(fed[2] + r * (back[2] - added) + added)
        elif self.reset_after:
            n = np.tanh(fed[2] + r * back[2])
        else:
            n = np.tanh(fed[2] + self._blocks((r * h) @ weights.back.T + bias)[2])
        new, old = (n, h) if self.keep else (h, n)
        return ((1.0 - z) * new + z * old,)

    def _blocks(self, value: np.ndarray) -> list[np.ndarray]:
        parts = np.split(value, GATES[self.kind], axis=-1)
        return [parts[i] for i in self.gates]

    def _gate(self, value: np.ndarray) -> np.ndarray:
        return np.clip(self.hard * value + 0.5, 0.0, 1.0) if self.hard else sigmoid(value)


def run(
    cell: Cell,
    weights: Weights,
    x: np.ndarray,
    state: tuple[np.ndarray, ...] = (),
    *,
    backwards: bool = False,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """A whole sequence.

    Args:
        x: (T, B, in).
        state: the initial one, (B, H) each; zeros by default.
        backwards: from the last step to the first; the outputs stand where their inputs do.

    Returns:
        Outputs (T, B, H), and the final state.
    """
    count = 2 if cell.kind == "lstm" else 1
    state = state or (np.zeros((x.shape[1], weights.width)),) * count
    outputs = []
    for step in x[::-1] if backwards else x:
        state = cell.step(weights, step, state)
        outputs.append(state[0])
    return np.stack(outputs[::-1] if backwards else outputs), state
