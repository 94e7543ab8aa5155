"""Nets by hand, in the styles in which people write them. None of them knows of crosscheck."""

from __future__ import annotations

from typing import Any

import numpy as np

from crosscheck import adapt, tap, tap_cotangent
from crosscheck.adapters.base import Adapter


class Affine:
    """Attributes W, b and dW, db."""

    def __init__(self, n_in: int, n_out: int, rng: Any = None) -> None:
        rng = rng or np.random.default_rng(n_in + n_out)
        self.W = rng.normal(size=(n_in, n_out)).astype(np.float32)
        self.b = rng.normal(size=n_out).astype(np.float32)

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.W + self.b

    def backward(self, dout: Any) -> Any:
        self.dW = self.x.T @ dout
        self.db = dout.sum(0)
        return dout @ self.W.T


class Rectifier:
    def forward(self, x: Any) -> Any:
        self.mask = x > 0
        return x * self.mask

    def backward(self, dout: Any) -> Any:
        return dout * self.mask


class Tanh:
    def forward(self, x: Any) -> Any:
        self.y = np.tanh(x)
        return self.y

    def backward(self, dout: Any) -> Any:
        return dout * (1 - self.y**2)


class LN:
    def __init__(self, n: int, eps: float = 1e-5) -> None:
        self.gamma, self.beta = np.ones(n, np.float32), np.zeros(n, np.float32)
        self.dgamma, self.dbeta = np.zeros(n, np.float32), np.zeros(n, np.float32)
        self.eps = eps

    def forward(self, x: Any) -> Any:
        c = x - x.mean(-1, keepdims=True)
        self.r = 1 / np.sqrt((c * c).mean(-1, keepdims=True) + x.dtype.type(self.eps))
        self.h = c * self.r
        return self.h * self.gamma + self.beta

    def backward(self, dout: Any) -> Any:
        self.dgamma, self.dbeta = (dout * self.h).sum(0), dout.sum(0)
        d = dout * self.gamma
        return (d - d.mean(-1, keepdims=True) - self.h * (d * self.h).mean(-1, keepdims=True)) * (
            self.r
        )


class Stack:
    """A net as a list of layers: the counterpart of the torch `Mlp`."""

    def __init__(self, *layers: Any) -> None:
        self.layers = list(layers) or [
            Affine(6, 8),
            Rectifier(),
            LN(8),
            Affine(8, 8),
            Tanh(),
            Affine(8, 3),
        ]

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dout: Any) -> Any:
        for layer in reversed(self.layers):
            dout = layer.backward(dout)
        return dout


class ForwardOnly:
    """The same net without a backward pass."""

    def __init__(self) -> None:
        self.layers = Stack().layers

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer.forward(x)
        return x


class FusedDense:
    """Dense and ReLU in one; dicts for parameters and gradients, the latter empty at first."""

    def __init__(self, n_in: int, n_out: int, relu: bool) -> None:
        rng = np.random.default_rng(n_in + n_out)
        self.params = {
            "weights": rng.normal(size=(n_in, n_out)).astype(np.float32),
            "biases": rng.normal(size=n_out).astype(np.float32),
        }
        self.grads: dict[str, Any] = {}
        self.relu = relu

    def forward(self, x: Any) -> Any:
        self._x = x
        z = x @ self.params["weights"] + self.params["biases"]
        self._mask = z > 0 if self.relu else np.ones(z.shape, bool)
        return z * self._mask

    def backward(self, dout: Any) -> Any:
        dz = dout * self._mask
        self.grads["weights"] = self._x.T @ dz
        self.grads["biases"] = dz.sum(0)
        return dz @ self.params["weights"].T


class FusedNet:
    """Stages in a dict, under names of their own."""

    def __init__(self, *sizes: int) -> None:
        self.stages = {
            f"stage{i}": FusedDense(a, b, relu=i < len(sizes) - 2)
            for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False))
        }

    def forward(self, x: Any) -> Any:
        for stage in self.stages.values():
            x = stage.forward(x)
        return x

    def backward(self, dout: Any) -> Any:
        for stage in reversed(self.stages.values()):
            dout = stage.backward(dout)
        return dout


def split(*sizes: int) -> list[Any]:
    """A plain list: Affine and Rectifier in turn."""
    layers: list[Any] = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        layers += [Affine(a, b), Rectifier()]
    return layers[:-1]


class Cell(Affine):
    """Called several times: what backward needs lies on a stack, gradients add up."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.dW, self.db = np.zeros_like(self.W), np.zeros_like(self.b)
        self.seen: list[Any] = []

    def forward(self, x: Any) -> Any:
        self.seen.append(x)
        return x @ self.W + self.b

    def backward(self, dout: Any) -> Any:
        self.dW += self.seen.pop().T @ dout
        self.db += dout.sum(0)
        return dout @ self.W.T


class RecurrentNet:
    def __init__(self) -> None:
        self.cell, self.head = Cell(6, 6), Cell(6, 3)

    def forward(self, x: Any) -> Any:
        self.hidden = []
        for _ in range(3):
            x = np.tanh(self.cell.forward(x))
            self.hidden.append(x)
        return self.head.forward(x)

    def backward(self, dout: Any) -> Any:
        d = self.head.backward(dout)
        for h in reversed(self.hidden):
            d = self.cell.backward(d * (1 - h**2))
        return d


def function_net(leak: float = 0.0, drop_mask: bool = False) -> Adapter:
    """Two functions over dicts; only `tap` makes their inside visible. 6 -> 8 -> 8 -> 3."""
    rng = np.random.default_rng(0)
    P = {}
    for i, (a, b) in enumerate([(6, 8), (8, 8), (8, 3)]):
        P[f"W{i}"] = rng.normal(size=(a, b)).astype(np.float32)
        P[f"b{i}"] = rng.normal(size=b).astype(np.float32)
    G: dict[str, Any] = {}
    S: dict[str, Any] = {}

    def forward(x: Any) -> Any:
        S["x"] = x
        z = x @ P["W0"] + P["b0"]
        S["h1"] = tap("h1", np.maximum(z, 0))
        z = S["h1"] @ P["W1"] + P["b1"]
        S["h2"] = tap("h2", np.where(z > 0, z, z * z.dtype.type(leak)))
        return S["h2"] @ P["W2"] + P["b2"]

    def backward(dy: Any) -> Any:
        G["W2"], G["b2"] = S["h2"].T @ dy, dy.sum(0)
        d = tap_cotangent("h2", dy @ P["W2"].T) * np.where(S["h2"] > 0, 1, leak)
        d = d.astype(dy.dtype)
        G["W1"], G["b1"] = S["h1"].T @ d, d.sum(0)
        d = tap_cotangent("h1", d @ P["W1"].T) * (1 if drop_mask else S["h1"] > 0)
        G["W0"], G["b0"] = S["x"].T @ d, d.sum(0)
        return d @ P["W0"].T

    return adapt(forward, backward=backward, params=P, grads=G)


class ConvLast:
    """A convolution on (N, H, W, C) with a kernel (h, w, in, out); bias_grad, kernel_grad."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1, pad: int = 0) -> None:
        rng = np.random.default_rng(n_in)
        self.kernel = rng.normal(size=(3, 3, n_in, n_out)).astype(np.float32)
        self.bias = rng.normal(size=n_out).astype(np.float32)
        self.stride, self.pad = stride, pad

    def _window(self, x: Any, a: int, b: int) -> Any:
        h, w = self.shape
        s = self.stride
        return x[:, a : a + h * s : s, b : b + w * s : s]

    def forward(self, x: Any) -> Any:
        p, s = self.pad, self.stride
        self.x = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        self.shape = (self.x.shape[1] - 3) // s + 1, (self.x.shape[2] - 3) // s + 1
        taps = [(a, b) for a in range(3) for b in range(3)]
        return sum(self._window(self.x, a, b) @ self.kernel[a, b] for a, b in taps) + self.bias

    def backward(self, dout: Any) -> Any:
        dx, p = np.zeros_like(self.x), self.pad
        self.kernel_grad, self.bias_grad = np.zeros_like(self.kernel), dout.sum((0, 1, 2))
        for a in range(3):
            for b in range(3):
                window = self._window(self.x, a, b)
                self.kernel_grad[a, b] = np.einsum("nhwi,nhwo->io", window, dout)
                self._window(dx, a, b)[...] += dout @ self.kernel[a, b].T
        return dx[:, p : dx.shape[1] - p, p : dx.shape[2] - p]


class ConvNet:
    """The counterpart of the torch `Convolutional`, channels last."""

    def __init__(self, channels_first_flatten: bool = True) -> None:
        self.first, self.second = ConvLast(3, 4, pad=1), ConvLast(4, 6, stride=2)
        self.act1, self.act2 = Rectifier(), Rectifier()
        self.dense = Affine(72, 5)
        self.order = (0, 3, 1, 2) if channels_first_flatten else (0, 1, 2, 3)

    def forward(self, x: Any) -> Any:
        x = self.act1.forward(self.first.forward(x))
        x = self.act2.forward(self.second.forward(x)).transpose(self.order)
        self.flat_from = x.shape
        return self.dense.forward(x.reshape(len(x), -1))

    def backward(self, dout: Any) -> Any:
        d = self.dense.backward(dout).reshape(self.flat_from).transpose(np.argsort(self.order))
        return self.first.backward(self.act1.backward(self.second.backward(self.act2.backward(d))))
