"""Backpropagation through time in float64, right or with one thing wrong (Werbos, 1990).

The cells are those of `cells`. Of each step the gates are kept; backward, the steps run in reverse,
and what is known of the state's cotangent is carried from one to the one before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crosscheck.explain.cells import GATES, Cell, Weights
from crosscheck.explain.elementwise import sigmoid

__all__ = ["MISTAKES", "Slip", "sent_back"]

Arrays = list[np.ndarray]

MISTAKES = {
    "lstm": {
        "state": "the hidden state's gradient is not carried to the step before",
        "memory": "the memory's gradient is not carried to the step before",
        "both": "no gradient is carried to the step before: of the state or of the memory",
        "tanh": "the derivative of the tanh behind the memory is missing",
        "slope": "the derivative of the gates' sigmoid is missing",
        "candidate": "the derivative of the candidate's tanh is missing",
    },
    "gru": {
        "state": "no gradient is carried to the step before",
        "direct": "what the update gate lets through sends nothing to the step before",
        "product": "the products of the state with its weights send nothing to the step before",
        "reset": "the reset gate is sent no gradient",
        "unreset": "the gradient of the recurrent product is not multiplied by the reset gate",
        "sign": "the update gate's gradient has the opposite sign",
        "slope": "the derivative of the gates' sigmoid is missing",
        "candidate": "the derivative of the candidate's tanh is missing",
    },
    "rnn": {
        "state": "no gradient is carried to the step before",
        "slope": "the derivative of the cell's function is missing",
    },
}


@dataclass(frozen=True)
class Slip:
    """One thing that is wrong on the way back.

    Attributes:
        name: of `MISTAKES`; ``""``: nothing.
        gates: which gate's gradient is written in the place of each; empty: its own.
    """

    name: str = ""
    gates: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sent:
    """What a recurrent layer of one direction sends back.

    Attributes:
        x: (T, B, in).
        weights: in the shapes of `Weights`.
    """

    x: np.ndarray
    weights: Weights


def sent_back(
    cell: Cell, weights: Weights, x: np.ndarray, dy: np.ndarray, slip: Slip, *, backwards: bool
) -> Sent:
    """The gradients of one direction of one layer that starts at zero.

    Args:
        x, dy: (T, B, in), and the cotangent at the outputs (T, B, H).
        backwards: the sequence is read from its end.
    """
    x, dy = (x[::-1], dy[::-1]) if backwards else (x, dy)
    zeros = np.zeros((x.shape[1], weights.width))
    h, c, kept = zeros, zeros, []
    for step in x:
        values = _gates(cell, weights, step, h)
        kept.append((h, c, values))
        h, c = _next(cell, values, h, c)
    dh, dc = zeros, zeros
    made = Weights(*(np.zeros(w.shape) for w in _parts(weights)))
    dx = np.zeros(x.shape)
    for t in range(len(x) - 1, -1, -1):
        h, c, values = kept[t]
        fed, back, into, dc, direct = _step(cell, weights, values, h, c, dh + dy[t], dc, slip)
        dx[t] = fed @ weights.into
        made.into[:] += fed.T @ x[t]
        made.back[:] += _outer(cell, back, into, h)
        made.bias[:] += fed.sum(0)
        made.back_bias[:] += back.sum(0)
        product = _into_state(cell, weights, back, values)
        dh = direct + (0.0 if slip.name == "product" else product)
        dh = np.zeros_like(dh) if slip.name in ("state", "both") else dh
        dc = np.zeros_like(dc) if slip.name in ("memory", "both") else dc
    return Sent(dx[::-1] if backwards else dx, made)


def _parts(weights: Weights) -> Arrays:
    return [weights.into, weights.back, weights.bias, weights.back_bias]


def _blocks(cell: Cell, value: np.ndarray) -> Arrays:
    parts = np.split(value, GATES[cell.kind], axis=-1)
    return [parts[i] for i in cell.gates]


def _joined(cell: Cell, blocks: Arrays) -> np.ndarray:
    """Gates in the order of the weights' rows."""
    return np.concatenate([blocks[cell.gates.index(i)] for i in range(len(blocks))], axis=-1)


def _gates(cell: Cell, weights: Weights, x: np.ndarray, h: np.ndarray) -> Arrays:
    """The gates of a step (with the part of a GRU's candidate that its reset gate multiplies)."""
    fed = _blocks(cell, x @ weights.into.T + weights.bias)
    back = _blocks(cell, h @ weights.back.T + weights.back_bias)
    if cell.kind == "rnn":
        total = fed[0] + back[0]
        return [np.maximum(total, 0.0) if cell.relu else np.tanh(total)]
    if cell.kind == "lstm":
        i, f, g, o = (a + b for a, b in zip(fed, back, strict=True))
        return [sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)]
    r, z = sigmoid(fed[0] + back[0]), sigmoid(fed[1] + back[1])
    if not cell.reset_after:
        back = _blocks(cell, (r * h) @ weights.back.T + weights.back_bias)
        return [r, z, np.tanh(fed[2] + back[2]), r * h]
    return [r, z, np.tanh(fed[2] + r * back[2]), back[2]]


def _next(
    cell: Cell, values: Arrays, h: np.ndarray, c: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if cell.kind == "rnn":
        return values[0], c
    if cell.kind == "lstm":
        i, f, g, o = values
        c = f * c + i * g
        return o * np.tanh(c), c
    _, z, n, _ = values
    return (1.0 - z) * n + z * h, c


def _step(
    cell: Cell,
    weights: Weights,
    values: Arrays,
    h: np.ndarray,
    c: np.ndarray,
    dh: np.ndarray,
    dc: np.ndarray,
    slip: Slip,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cotangents of what is fed, and of the recurrent product; what that product was made of; the
    memory's cotangent; and the state's that does not pass through a product."""
    nothing = np.zeros_like(dh)
    if cell.kind == "rnn":
        (y,) = values
        slope = 1.0 if slip.name == "slope" else ((y > 0.0) if cell.relu else 1.0 - y * y)
        d = _joined(cell, [dh * slope])
        return d, d, h, dc, nothing
    if cell.kind == "lstm":
        gates, dc = _lstm(values, c, dh, dc, slip)
        d = _joined(cell, _moved(gates, slip))
        return d, d, h, dc, nothing
    (dr, dz, dn), inside, direct = _gru(cell, weights, values, h, dh, slip)
    fed, back = (_joined(cell, _moved([dr, dz, last], slip)) for last in (dn, inside))
    return fed, back, values[3], dc, direct


def _moved(gates: Arrays, slip: Slip) -> Arrays:
    return [gates[i] for i in slip.gates] if slip.gates else gates


def _slope(gate: np.ndarray, slip: Slip) -> np.ndarray | float:
    return 1.0 if slip.name == "slope" else gate * (1.0 - gate)


def _lstm(
    values: Arrays, c: np.ndarray, dh: np.ndarray, dc: np.ndarray, slip: Slip
) -> tuple[Arrays, np.ndarray]:
    i, f, g, o = values
    squashed = np.tanh(f * c + i * g)
    dc = dc + dh * o * (1.0 if slip.name == "tanh" else 1.0 - squashed**2)
    curve = 1.0 if slip.name == "candidate" else 1.0 - g * g
    return [
        dc * g * _slope(i, slip),
        dc * c * _slope(f, slip),
        dc * i * curve,
        dh * squashed * _slope(o, slip),
    ], dc * f


def _gru(
    cell: Cell, weights: Weights, values: Arrays, h: np.ndarray, dh: np.ndarray, slip: Slip
) -> tuple[Arrays, np.ndarray, np.ndarray]:
    """Cotangents of r, z, n before their functions, of the recurrent part of n, of h directly."""
    r, z, n, other = values
    dn = dh * (1.0 - z) * (1.0 if slip.name == "candidate" else 1.0 - n * n)
    dz = dh * (n - h if slip.name == "sign" else h - n) * _slope(z, slip)
    direct = np.zeros_like(dh) if slip.name == "direct" else dh * z
    if cell.reset_after:
        inside, dr = dn if slip.name == "unreset" else dn * r, dn * other
    else:
        through = dn @ _rows(cell, weights.back)[2]  # of r * h
        inside, dr = dn, through * h
        direct = direct + (through if slip.name == "unreset" else through * r)
    dr = np.zeros_like(dr) if slip.name == "reset" else dr * _slope(r, slip)
    return [dr, dz, dn], inside, direct


def _rows(cell: Cell, weight: np.ndarray) -> Arrays:
    parts = np.split(weight, GATES[cell.kind])
    return [parts[i] for i in cell.gates]


def _into_state(cell: Cell, weights: Weights, back: np.ndarray, values: Arrays) -> np.ndarray:
    """What the recurrent products send to the state (of a reset before the product, of r and z)."""
    if cell.kind != "gru" or cell.reset_after:
        return np.asarray(back @ weights.back)
    blocks, rows = _blocks(cell, back), _rows(cell, weights.back)
    return np.asarray(blocks[0] @ rows[0] + blocks[1] @ rows[1])


def _outer(cell: Cell, back: np.ndarray, into: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The gradient of the recurrent weights."""
    if cell.kind != "gru" or cell.reset_after:
        return np.asarray(back.T @ h)
    blocks = _blocks(cell, back)
    return _joined_rows(cell, [blocks[0].T @ h, blocks[1].T @ h, blocks[2].T @ into])


def _joined_rows(cell: Cell, blocks: Arrays) -> np.ndarray:
    return np.concatenate([blocks[cell.gates.index(i)] for i in range(len(blocks))])
