"""Backpropagation through time written by hand, with one thing forgotten: found and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import crosscheck  # noqa: E402
from models.scratch import GRU, LSTM, Bidirectional, Linear  # noqa: E402
from models.scratch.base import Layer  # noqa: E402

Array = np.ndarray
HIDDEN = 5


class Reference(nn.Module):
    def __init__(self, kind: type[nn.Module], both: bool) -> None:
        super().__init__()
        self.before = nn.Linear(4, 6)
        self.rnn = kind(6, HIDDEN, batch_first=True, bidirectional=both)
        self.head = nn.Linear(HIDDEN * (1 + both), 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.rnn(self.before(x))[0])


class Candidate(Layer):
    def __init__(self, kind: Any, both: bool) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.before = Linear(4, 6, rng)
        self.rnn = Bidirectional(kind, 6, HIDDEN, rng) if both else kind(6, HIDDEN, rng)
        self.head = Linear(HIDDEN * (1 + both), 3, rng)

    def forward(self, x: Array) -> Array:
        return self.head.forward(self.rnn.forward(self.before.forward(x)))

    def backward(self, dy: Array) -> Array:
        return self.before.backward(self.rnn.backward(self.head.backward(dy)))


Wrong = Callable[[Array, Array, tuple[Array, ...], tuple[Array, ...]], Any]


def lstm(change: Wrong) -> type[LSTM]:
    """An LSTM whose step back ends in ``change``: of what it sends, and of what it was given."""

    class Changed(LSTM):
        def step_backward(self, dstate: Any, kept: Any) -> Any:
            return change(*super().step_backward(dstate, kept)[:2], dstate, kept)

    return Changed


def memory(dstate: Any, kept: Any) -> Array:
    i, f, g, o, tanh, before = kept
    return dstate[1] + dstate[0] * o * (1 - tanh**2)


def without_memory(d: Array, r: Array, dstate: Any, kept: Any) -> Any:
    return d, r, (np.zeros_like(dstate[0]), np.zeros_like(dstate[0]))


def exchanged_gates(d: Array, r: Array, dstate: Any, kept: Any) -> Any:
    i, f, g, o = np.split(d, 4, axis=-1)
    d = np.concatenate([i, f, o, g], axis=-1)
    return d, d, (np.zeros_like(dstate[0]), memory(dstate, kept) * kept[1])


class WithoutTanh(LSTM):
    def step_backward(self, dstate: Any, kept: Any) -> Any:
        i, f, g, o, tanh, before = kept
        dh, dc = dstate
        dc = dc + dh * o
        di, df, do = dc * g * i * (1 - i), dc * before * f * (1 - f), dh * tanh * o * (1 - o)
        d = np.concatenate([di, df, dc * i * (1 - g**2), do], axis=-1)
        return d, d, (np.zeros_like(dh), dc * f)


class WithoutState(LSTM):
    """What comes back through the recurrent product is forgotten."""

    def backward(self, dy: Array) -> Array:
        weight = self.params["weight_hh"]
        dprojected = np.zeros((*dy.shape[:2], weight.shape[1]), dtype=dy.dtype)
        dc = np.zeros_like(dy[:, 0])
        for t in reversed(range(dy.shape[1])):
            h, values = self._steps[t]
            d, _, (_, dc) = self.step_backward((dy[:, t], dc), values)
            dprojected[:, t] = d
            self.accumulate("weight_hh", h.T @ d)
            self.accumulate("bias_hh", d.sum(axis=0))
        x = self._x.reshape(-1, self._x.shape[-1])
        self.accumulate("weight_ih", x.T @ dprojected.reshape(len(x), -1))
        self.accumulate("bias_ih", dprojected.sum(axis=(0, 1)))
        return dprojected @ self.params["weight_ih"].T


def gru(**wrong: Any) -> type[GRU]:
    """A GRU with a factor in front of something on its way back."""

    class Changed(GRU):
        def step_backward(self, dstate: Any, kept: Any) -> Any:
            r, z, n, hn, h = kept
            (dh,) = dstate
            dn = dh * (1 - z) * (1 - n**2)
            dr = dn * hn * r * (1 - r) * wrong.get("reset", 1)
            dz = dh * (h - n) * z * (1 - z) * wrong.get("update", 1)
            inside = dn if "inside" in wrong else dn * r
            fed = np.concatenate([dr, dz, dn], axis=-1)
            back = np.concatenate([dr, dz, inside], axis=-1)
            return fed, back, (dh * z * wrong.get("direct", 1),)

    return Changed


CASES: dict[str, tuple[Any, Any, str]] = {
    "memory": (nn.LSTM, lstm(without_memory), "the memory's gradient is not carried"),
    "gates": (nn.LSTM, lstm(exchanged_gates), "for the gradients of the gates i, f, g, o those"),
    "tanh": (nn.LSTM, WithoutTanh, "the derivative of the tanh behind the memory is missing"),
    "state": (nn.LSTM, WithoutState, "the hidden state's gradient is not carried"),
    "direct": (nn.GRU, gru(direct=0), "what the update gate lets through sends nothing"),
    "reset": (nn.GRU, gru(reset=0), "the reset gate is sent no gradient"),
    "sign": (nn.GRU, gru(update=-1), "the update gate's gradient has the opposite sign"),
    "inside": (nn.GRU, gru(inside=True), "the gradient of the recurrent product is not"),
}


@pytest.mark.parametrize(
    ("name", "both"), [*((name, False) for name in CASES), ("gates", True), ("direct", True)]
)
def test_a_mistake_on_the_way_back(name: str, both: bool) -> None:
    kind, wrong, statement = CASES[name]
    report = crosscheck.check(Reference(kind, both), Candidate(wrong, both), "float32[3,6,4]")
    forward = [s for s in report.sites if s.phase == "forward" and s.verdict != "agree"]
    assert not forward, str(report)
    causes = [c for d in report.divergences for c in d.causes if c.verified]
    assert causes and all(c.statement.startswith(statement) for c in causes), causes
    assert all("rnn" in str(d.reference) for d in report.divergences), report.divergences
    explained = [d for d in report.divergences[:5] if any(c.verified for c in d.causes)]
    assert len(explained) == len(report.divergences[:5]), report.divergences


@pytest.mark.parametrize(("kind", "theirs"), [(nn.LSTM, LSTM), (nn.GRU, GRU)])
def test_without_a_mistake_it_agrees(kind: Any, theirs: Any) -> None:
    report = crosscheck.check(Reference(kind, True), Candidate(theirs, True), "float32[3,6,4]")
    assert report.verdict == "agree", str(report)
