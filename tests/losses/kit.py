"""One small model in every framework: (N, ..., 6) -> (N, ..., 4); ``shape``: of one sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import crosscheck
from crosscheck import Report


def torch_net(shape: tuple[int, ...] = (6,)) -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))


class Net:
    """The same by hand, over the last axis."""

    def __init__(self, shape: tuple[int, ...] = (6,)) -> None:
        rng = np.random.default_rng(1)
        self.W1, self.b1 = _normal(rng, 6, 5), _normal(rng, 5)
        self.W2, self.b2 = _normal(rng, 5, 4), _normal(rng, 4)

    def forward(self, x: Any) -> Any:
        self.x = x
        self.h = np.tanh(x @ self.W1 + self.b1)
        return self.h @ self.W2 + self.b2

    def backward(self, dy: Any) -> Any:
        flat = lambda a: a.reshape(-1, a.shape[-1])  # noqa: E731
        self.dW2, self.db2 = flat(self.h).T @ flat(dy), flat(dy).sum(0)
        dh = (dy @ self.W2.T) * (1 - self.h**2)
        self.dW1, self.db1 = flat(self.x).T @ flat(dh), flat(dh).sum(0)
        return dh @ self.W1.T


def _normal(rng: Any, *shape: int) -> Any:
    return rng.normal(size=shape).astype(np.float32)


def keras_net(shape: tuple[int, ...] = (6,)) -> Any:
    keras = pytest.importorskip("keras")
    first = keras.layers.Dense(5, activation="tanh")
    net = keras.Sequential([first, keras.layers.Dense(4)])
    net.build((None, *shape))
    return net


def jax_net(shape: tuple[int, ...] = (6,)) -> Any:
    pytest.importorskip("jax")
    import jax.numpy as jnp

    net = Net()

    def forward(params: Any, x: Any) -> Any:
        h = jnp.tanh(x @ params["W1"] + params["b1"])
        return h @ params["W2"] + params["b2"]

    params = {name: jnp.array(getattr(net, name)) for name in ("W1", "b1", "W2", "b2")}
    return crosscheck.adapt(forward, params=params)


CANDIDATES = {"numpy": Net, "keras": keras_net, "jax": jax_net, "torch": torch_net}


def divergences(report: Report) -> list[tuple[str, str | None]]:
    """(phase, blamed) of every divergence."""
    return [(d.phase, d.candidate) for d in report.divergences]


def verified(report: Report, phase: str) -> list[str]:
    """The statements of the verified causes at the loss in a phase."""
    found = [d for d in report.divergences if d.phase == phase and d.candidate == "loss"]
    return [c.statement for d in found for c in d.causes if c.verified]


def only_the_loss(report: Report) -> bool:
    """Something diverges, and nothing but the loss is blamed for it."""
    return report.verdict == "diverge" and {d.candidate for d in report.divergences} == {"loss"}


X, LABELS = "float32[7,6]", "int64[7] 0..4"
TOKENS, IDS = "float32[3,5,6]", np.arange(15).reshape(3, 5) % 4


def check(loss: Any, targets: Any, candidate: Any = None, inputs: Any = X, **options: Any) -> Any:
    candidate = Net() if candidate is None else candidate
    return crosscheck.check(torch_net(), candidate, inputs, loss=loss, targets=targets, **options)
