"""Attention that is one piece of code, with a way back written by hand: its mistakes by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import crosscheck  # noqa: E402
from models.scratch import Linear  # noqa: E402
from models.scratch.base import Layer  # noqa: E402

Array = np.ndarray
WIDTH, HEADS = 12, 3


def split(x: Any) -> Any:
    return x.reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2)


def merged(x: Any) -> Any:
    b, h, t, d = x.shape
    return x.swapaxes(1, 2).reshape(b, t, h * d)


class Torch(nn.Module):
    """``F.scaled_dot_product_attention`` in a layer of its own, or in the code of the container."""

    def __init__(self, packed: bool, layer: bool) -> None:
        super().__init__()
        if packed:
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        else:
            self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.attend: Any = Attend() if layer else attended
        self.packed, self.proj = packed, nn.Linear(WIDTH, 5)

    def forward(self, x: Any) -> Any:
        given = self.qkv(x) if self.packed else (self.q(x), self.k(x), self.v(x))
        return self.proj(self.attend(given) if self.packed else self.attend(*given))


def attended(*given: Any) -> Any:
    q, k, v = given[0].chunk(3, -1) if len(given) == 1 else given
    y = F.scaled_dot_product_attention(*map(split, (q, k, v)), is_causal=True)
    return merged(y)


class Attend(nn.Module):
    def forward(self, *given: Any) -> Any:
        return attended(*given)


class Core:
    """The attention of a NumPy net, forward and back, with a mistake or without."""

    def __init__(self, mistake: str) -> None:
        self.mistake = mistake

    def forward(self, q: Array, k: Array, v: Array) -> Array:
        self.q, self.k, self.v = map(split, (q, k, v))
        s = self.q @ self.k.swapaxes(-1, -2) / np.float32(2.0)
        seen = np.tril(np.ones(s.shape[-2:], dtype=bool))
        self.bare, s = s, np.where(seen, s, np.float32(-np.inf))
        self.p = self.softmax(s)
        return merged(self.p @ self.v)

    @staticmethod
    def softmax(s: Array) -> Array:
        e = np.exp(s - s.max(-1, keepdims=True))
        return np.asarray(e / e.sum(-1, keepdims=True))

    def backward(self, dy: Array) -> tuple[Array, Array, Array]:
        wrong, dy = self.mistake, split(dy)
        p = self.softmax(self.bare) if wrong == "mask" else self.p
        dp = dy @ self.v.swapaxes(-1, -2)
        ds = p * (dp - (0.0 if wrong == "sum" else (p * dp).sum(-1, keepdims=True)))
        ds = ds * np.float32(1.0 if wrong == "scale" else 0.5)
        dk = (ds if wrong == "turned" else ds.swapaxes(-1, -2)) @ self.q
        dv = (p if wrong == "weights" else p.swapaxes(-1, -2)) @ dy
        dq = (ds.swapaxes(-1, -2) if wrong == "turned" else ds) @ self.k
        return merged(dq), merged(dk), merged(dv)


class Packed(Layer):
    """The core as a layer of its own, given all three in one."""

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self._core = Core(mistake)

    def forward(self, x: Array) -> Array:
        return self._core.forward(*np.split(x, 3, axis=-1))

    def backward(self, dy: Array) -> Array:
        return np.concatenate(self._core.backward(dy), axis=-1)


class Net(Layer):
    def __init__(self, packed: bool, layer: bool, mistake: str) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        if packed:
            self.qkv = Linear(WIDTH, 3 * WIDTH, rng)
        else:
            self.q, self.k, self.v = (Linear(WIDTH, WIDTH, rng) for _ in range(3))
        if layer:
            self.attend = Packed(mistake)
        self.proj = Linear(WIDTH, 5, rng)
        self._packed, self._layer, self._core = packed, layer, Core(mistake)

    def forward(self, x: Array) -> Array:
        if self._layer:
            return self.proj.forward(self.attend.forward(self.qkv.forward(x)))
        if self._packed:
            given = np.split(self.qkv.forward(x), 3, axis=-1)
        else:
            given = [self.q.forward(x), self.k.forward(x), self.v.forward(x)]
        return self.proj.forward(self._core.forward(*given))

    def backward(self, dy: Array) -> Array:
        if self._layer:
            return self.qkv.backward(self.attend.backward(self.proj.backward(dy)))
        dq, dk, dv = self._core.backward(self.proj.backward(dy))
        if self._packed:
            return self.qkv.backward(np.concatenate([dq, dk, dv], axis=-1))
        return self.q.backward(dq) + self.k.backward(dk) + self.v.backward(dv)


STATEMENTS = {
    "sum": "the softmax sends back P · dP, without the sum that is taken off",
    "scale": "the scale of the scores is missing on the way back",
    "turned": "queries and keys get each other's gradient of the scores: dS is transposed",
    "weights": "the values get P dy, not Pᵀ dy",
    "mask": "the mask is not applied on the way back",
}
FORMS = {"a layer": (True, True), "packed": (True, False), "apart": (False, False)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mistake", STATEMENTS)
def test_a_mistake_on_the_way_back(mistake: str, form: str) -> None:
    how = FORMS[form]
    report = crosscheck.check(Torch(*how), Net(*how, mistake), f"float32[2,6,{WIDTH}]")
    assert not [s for s in report.sites if s.phase == "forward" and s.verdict != "agree"]
    first = report.first_divergence
    assert first is not None and first.phase == "backward", str(report)
    assert first.reference == ("attend" if how[1] else "output"), first
    told = [c.statement for c in first.causes if c.verified]
    assert STATEMENTS[mistake] in told or (form, mistake) == ("apart", "scale"), first.causes
    causes = {c.name for d in report.divergences for c in d.causes if c.verified}
    assert causes <= {"attention_backward", "scaled", "scaled_parts"}, causes


@pytest.mark.parametrize("form", FORMS)
def test_without_a_mistake_it_agrees(form: str) -> None:
    how = FORMS[form]
    report = crosscheck.check(Torch(*how), Net(*how, ""), f"float32[2,6,{WIDTH}]")
    assert report.verdict == "agree", str(report)
