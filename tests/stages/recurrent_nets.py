"""Recurrent nets written by hand in NumPy, with a backward pass, in several layouts."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Dense", "LSTM", "LSTMByGate"]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class LSTM:
    """``W_x`` (in, 4 hidden), ``W_h`` (hidden, 4 hidden), ``b``; or one ``W`` for [x, h] or [h, x].

    Args:
        order: of the gates, of the letters ``i f g o``.
        joined: ``"xh"``, ``"hx"``, or None for two matrices.
    """

    def __init__(
        self, n_in: int, hidden: int, *, order: str = "ifgo", joined: str | None = None
    ) -> None:
        rng = np.random.default_rng(1)

        def draw(*shape: int) -> np.ndarray:
            return (0.3 * rng.normal(size=shape)).astype(np.float32)

        self.hidden, self.order, self.joined = hidden, order, joined
        if joined:
            self.W = draw(n_in + hidden, 4 * hidden)
        else:
            self.W_x, self.W_h = draw(n_in, 4 * hidden), draw(hidden, 4 * hidden)
        self.b = draw(4 * hidden)

    def matrices(self, n_in: int) -> tuple[np.ndarray, np.ndarray]:
        if self.joined == "xh":
            return self.W[:n_in], self.W[n_in:]
        if self.joined == "hx":
            return self.W[self.hidden :], self.W[: self.hidden]
        return self.W_x, self.W_h

    def gates(self, z: np.ndarray) -> dict[str, np.ndarray]:
        parts = dict(zip(self.order, np.split(z, 4, axis=1), strict=True))
        return {k: np.tanh(v) if k == "g" else sigmoid(v) for k, v in parts.items()}

    def forward(self, x: np.ndarray) -> np.ndarray:  # (B, T, in) -> (B, T, hidden)
        w_x, w_h = self.matrices(x.shape[2])
        h = c = np.zeros((x.shape[0], self.hidden), x.dtype)
        self.x, self.steps, out = x, [], []
        for t in range(x.shape[1]):
            g, before = self.gates(x[:, t] @ w_x + h @ w_h + self.b), (c, h)
            c = g["f"] * c + g["i"] * g["g"]
            h = g["o"] * np.tanh(c)
            self.steps.append((g, before, c))
            out.append(h)
        return np.stack(out, axis=1)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        w_x, w_h = self.matrices(self.x.shape[2])
        dw_x, dw_h, dx = np.zeros_like(w_x), np.zeros_like(w_h), np.zeros_like(self.x)
        self.db = np.zeros_like(self.b)
        dh = dc = np.zeros_like(dy[:, 0])
        for t in reversed(range(dy.shape[1])):
            g, (c_before, h_before), c = self.steps[t]
            dh, tanh = dh + dy[:, t], np.tanh(c)
            dc = dc + dh * g["o"] * (1 - tanh**2)
            dz = {
                "i": dc * g["g"] * g["i"] * (1 - g["i"]),
                "f": dc * c_before * g["f"] * (1 - g["f"]),
                "g": dc * g["i"] * (1 - g["g"] ** 2),
                "o": dh * tanh * g["o"] * (1 - g["o"]),
            }
            z = np.concatenate([dz[k] for k in self.order], axis=1)
            dw_x += self.x[:, t].T @ z
            dw_h += h_before.T @ z
            self.db += z.sum(axis=0)
            dx[:, t], dh, dc = z @ w_x.T, z @ w_h.T, dc * g["f"]
        if self.joined:
            parts = (dw_x, dw_h) if self.joined == "xh" else (dw_h, dw_x)
            self.dW = np.concatenate(parts, axis=0)
        else:
            self.dW_x, self.dW_h = dw_x, dw_h
        return dx


class LSTMByGate(LSTM):
    """``W_f`` (hidden, hidden + in), ``b_f`` (hidden, 1) and so on, forward only."""

    def __init__(self, n_in: int, hidden: int) -> None:
        super().__init__(n_in, hidden, joined="hx")
        for k, letter in enumerate("ifco"):
            part = slice(k * hidden, (k + 1) * hidden)
            setattr(self, f"W_{letter}", self.W[:, part].T.copy())
            setattr(self, f"b_{letter}", self.b[part, None].copy())
        del self.W, self.b

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.W = np.concatenate([getattr(self, f"W_{k}").T for k in "ifco"], axis=1)
        self.b = np.concatenate([getattr(self, f"b_{k}")[:, 0] for k in "ifco"])
        try:
            return super().forward(x)
        finally:
            del self.W, self.b

    backward: Any = None


class Dense:
    """``y = x W + b``, axes not declared."""

    def __init__(self, n_in: int, n_out: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.W = rng.normal(size=(n_in, n_out)).astype(np.float32)
        self.b = rng.normal(size=n_out).astype(np.float32)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return x @ self.W + self.b

    def backward(self, dy: np.ndarray) -> np.ndarray:
        flat, x = dy.reshape(-1, dy.shape[-1]), self.x.reshape(-1, self.x.shape[-1])
        self.dW, self.db = x.T @ flat, flat.sum(axis=0)
        return dy @ self.W.T
