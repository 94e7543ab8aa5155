"""The kit's models, written by hand in NumPy."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from crosscheck.adapters.numpy.adapter import NumpyAdapter, find
from crosscheck.taps import tap, tap_cotangent

from .kit import Kit


class Dense:
    axes: ClassVar[dict[str, tuple[str, ...]]] = {"W": ("in", "out"), "b": ("out",)}

    def __init__(self, n_in: int, n_out: int, rng: np.random.Generator) -> None:
        self.W = rng.normal(size=(n_in, n_out)).astype(np.float32)
        self.b = rng.normal(size=n_out).astype(np.float32)
        self.dW, self.db = np.zeros_like(self.W), np.zeros_like(self.b)
        self.inputs: list[Any] = []

    def forward(self, x: Any) -> Any:
        self.inputs.append(x)
        return x @ self.W + self.b

    def backward(self, dy: Any) -> Any:
        self.dW += self.inputs.pop().T @ dy
        self.db += dy.sum(0)
        return dy @ self.W.T


class Relu:
    def forward(self, x: Any) -> Any:
        self.mask = x > 0
        return x * self.mask

    def backward(self, dy: Any) -> Any:
        return dy * self.mask


class Net:
    """Named layers, with forward and backward as functions of them."""

    def __init__(self, forward: Any, backward: Any, **layers: Any) -> None:
        self.functions = forward, backward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args: Any) -> Any:
        return self.functions[0](self, *args)

    def backward(self, *dys: Any) -> Any:
        return self.functions[1](self, *dys)


class TwoInputs:
    def __init__(self, fl: Dense, fr: Dense) -> None:
        self.fl, self.fr = fl, fr

    def forward(self, left: Any, right: Any) -> Any:
        return self.fl.forward(left) - self.fr.forward(right)

    def backward(self, dy: Any) -> Any:
        d_right = self.fr.backward(-dy)
        return self.fl.backward(dy), d_right


class Embedding:
    axes: ClassVar[dict[str, tuple[str, ...]]] = {"W": ("row", "dim")}

    def __init__(self, rng: np.random.Generator) -> None:
        self.W = rng.normal(size=(7, 4)).astype(np.float32)
        self.dW = np.zeros_like(self.W)

    def forward(self, ids: Any) -> Any:
        self.ids = ids
        return self.W[ids]

    def backward(self, dy: Any) -> None:
        np.add.at(self.dW, self.ids, dy)


class BatchNorm:
    def __init__(self, n: int) -> None:
        self.gamma, self.beta = np.ones(n, np.float32), np.zeros(n, np.float32)
        self.dgamma, self.dbeta = np.zeros(n, np.float32), np.zeros(n, np.float32)
        self.running_mean, self.running_var = np.zeros(n, np.float32), np.ones(n, np.float32)
        self.training = True

    def forward(self, x: Any) -> Any:
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(0), x.var(0)
            self.running_mean = 0.9 * self.running_mean + 0.1 * mean
            self.running_var = 0.9 * self.running_var + 0.1 * var
        self.scale = 1 / np.sqrt(var + 1e-5)
        self.hat = (x - mean) * self.scale
        return self.gamma * self.hat + self.beta

    def backward(self, dy: Any) -> Any:
        self.dgamma += (dy * self.hat).sum(0)
        self.dbeta += dy.sum(0)
        d = dy * self.gamma
        if self.training:
            d = d - d.mean(0) - self.hat * (d * self.hat).mean(0)
        return d * self.scale


class Dropout:
    training = True

    def forward(self, x: Any) -> Any:
        keep = np.random.random(x.shape) > 0.5 if self.training else np.ones(x.shape, bool)
        self.mask = (keep * (2 if self.training else 1)).astype(x.dtype)
        return x * self.mask

    def backward(self, dy: Any) -> Any:
        return dy * self.mask


class Boom:
    def __init__(self, *, backward: bool) -> None:
        self.late = backward

    def forward(self, x: Any) -> Any:
        if not self.late:
            raise ValueError("boom")
        return x * 1

    def backward(self, dy: Any) -> Any:
        raise ValueError("boom")


def residual(rng: np.random.Generator) -> Net:
    return Net(
        lambda m, h: h + m.act.forward(m.inner.forward(h)),
        lambda m, d: d + m.inner.backward(m.act.backward(d)),
        inner=Dense(5, 5, rng),
        act=Relu(),
    )


def attention(rng: np.random.Generator) -> Net:
    return Net(
        lambda m, x: tap("scores", m.fc.forward(x)),
        lambda m, d: m.fc.backward(tap_cotangent("scores", d)),
        fc=Dense(4, 4, rng),
    )


def returning(rng: np.random.Generator) -> Net:
    def forward(m: Any, x: Any) -> Any:
        h = m.fc.forward(x)
        return m.head.forward(h), h

    return Net(
        forward,
        lambda m, dy, dh: m.fc.backward(dh + m.head.backward(dy)),
        fc=Dense(4, 5, rng),
        head=Dense(5, 3, rng),
    )


def chain(*names: str) -> tuple[Any, Any]:
    def forward(m: Any, x: Any) -> Any:
        for name in names:
            x = getattr(m, name).forward(x)
        return x

    def backward(m: Any, d: Any) -> Any:
        for name in reversed(names):
            d = getattr(m, name).backward(d)
        return d

    return forward, backward


def fan_out(rng: np.random.Generator) -> Net:
    def forward(m: Any, x: Any) -> Any:
        h = m.fc.forward(x)
        return m.a.forward(h) + m.b.forward(h) + m.c.forward(h)

    return Net(
        forward,
        lambda m, d: m.fc.backward(m.c.backward(d) + m.b.backward(d) + m.a.backward(d)),
        fc=Dense(4, 5, rng),
        a=Dense(5, 3, rng),
        b=Dense(5, 3, rng),
        c=Dense(5, 3, rng),
    )


class NumpyKit(Kit):
    def build(self, name: str) -> Any:
        rng = np.random.default_rng(0)

        def dense(n_in: int, n_out: int) -> Dense:
            return Dense(n_in, n_out, rng)

        return {
            "mlp": lambda: Net(
                *chain("fc1", "block", "fc2"),
                fc1=dense(4, 5),
                block=residual(rng),
                fc2=dense(5, 3),
            ),
            "shared": lambda: Net(
                *chain("cell", "cell", "head"), cell=dense(4, 4), head=dense(4, 3)
            ),
            "fan_out": lambda: fan_out(rng),
            "structured": lambda: Net(
                lambda m, x: (m.head.forward(x), {"hidden": m.fc.forward(x)}),
                lambda m, dy, dh: m.fc.backward(dh) + m.head.backward(dy),
                head=dense(4, 3),
                fc=dense(4, 5),
            ),
            "returning": lambda: returning(rng),
            "two_inputs": lambda: TwoInputs(dense(4, 3), dense(4, 3)),
            "embedding": lambda: Net(
                lambda m, ids: m.head.forward(m.table.forward(ids).reshape(-1, 4)).reshape(2, 3, 3),
                lambda m, d: m.table.backward(m.head.backward(d.reshape(-1, 3)).reshape(2, 3, 4)),
                table=Embedding(rng),
                head=dense(4, 3),
            ),
            "cut": lambda: Net(
                lambda m, x: m.main.forward(x) + m.side.forward(x),
                lambda m, d: m.main.backward(d),
                main=dense(4, 3),
                side=dense(4, 3),
            ),
            "norm": lambda: Net(*chain("fc", "bn"), fc=dense(4, 3), bn=BatchNorm(3)),
            "dropout": lambda: Net(*chain("fc", "drop"), fc=dense(4, 3), drop=Dropout()),
            "raising": lambda: Net(*chain("fc", "boom"), fc=dense(4, 3), boom=Boom(backward=False)),
            "raising_backward": lambda: Net(
                *chain("fc", "boom"), fc=dense(4, 3), boom=Boom(backward=True)
            ),
            "tapped": lambda: Net(
                lambda m, x: m.head.forward(tap("mid", m.attn.forward(x))),
                lambda m, d: m.attn.backward(tap_cotangent("mid", m.head.backward(d))),
                attn=attention(rng),
                head=dense(4, 3),
            ),
        }[name]()

    def adapt(self, model: Any) -> NumpyAdapter:
        adapter = find(model)
        assert adapter is not None
        return adapter

    def bare(
        self, model: Any, inputs: Mapping[str, np.ndarray], dys: list[np.ndarray]
    ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        result = model.forward(*inputs.values())
        outputs = [result] if isinstance(result, np.ndarray) else list(result)
        outputs = [o["hidden"] if isinstance(o, dict) else o for o in outputs]
        model.backward(*dys)
        gradients = {}
        for path, layer in self.adapt(model)._layers.items():
            for name in ("W", "b"):
                if isinstance(getattr(layer, name, None), np.ndarray):
                    gradients[f"{path}.{name}"] = getattr(layer, "d" + name)
        return outputs, gradients

    def state(self, model: Any) -> dict[str, Any]:
        layers = self.adapt(model)._layers
        arrays = {
            f"{path}.{name}": value
            for path, layer in layers.items()
            for name, value in vars(layer).items()
            if isinstance(value, np.ndarray)
        }
        return {
            "values": {name: value.copy() for name, value in arrays.items()},
            "places": {name: id(value) for name, value in arrays.items()},
            "attributes": {path: sorted(vars(layer)) for path, layer in layers.items()},
            "modes": {path: getattr(layer, "training", None) for path, layer in layers.items()},
            "pending": {path: len(getattr(layer, "inputs", ())) for path, layer in layers.items()},
            "numpy": np.random.get_state()[1].copy(),  # type: ignore[index, union-attr]
            "python": random.getstate(),
        }
