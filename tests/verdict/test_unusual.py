"""Honest ports that look unlike their reference, and mistakes between layers: who is blamed."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import crosscheck  # noqa: E402


class Attention(nn.Module):
    """softmax(q kᵀ / 2) v for three heads, in several ways of writing it down."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.norm, self.how = nn.LayerNorm(12), how

    def forward(self, x: Any) -> Any:
        b, t, d = x.shape
        order = "vkq" if self.how == "another order" else "qkv"
        made = {n: getattr(self, n)(x).reshape(b, t, 3, 4).transpose(1, 2) for n in order}
        q, k, v = (made[n] for n in "qkv")
        if self.how == "einsum":
            weights = torch.einsum("bhtd,bhsd->bhts", q, k).mul(0.5).softmax(-1)
            y = torch.einsum("bhts,bhsd->bthd", weights, v).reshape(b, t, d)
        elif self.how == "chunks":
            cut = [(q[:, :, i : i + 2] @ k.mT / 2).softmax(-1) @ v for i in range(0, t, 2)]
            y = torch.cat(cut, 2).transpose(1, 2).reshape(b, t, d)
        elif self.how.startswith("online"):
            y = online(q / 2, k, v, self.how).transpose(1, 2).reshape(b, t, d)
        else:
            y = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(b, t, d)
        return self.norm(x + self.out(y))


def online(q: Any, k: Any, v: Any, how: str) -> Any:
    """A softmax whose largest score is known only of the blocks so far (Milakov, Gimelshein)."""
    top, total = torch.full((*q.shape[:3], 1), -math.inf), torch.zeros(*q.shape[:3], 1)
    sums = torch.zeros_like(q)
    for i in range(0, k.shape[2], 3):
        s = q @ k[:, :, i : i + 3].mT
        larger = torch.maximum(top, s.amax(-1, keepdim=True))
        p, shrunk = (s - larger).exp(), (top - larger).exp()
        total = total * shrunk + p.sum(-1, keepdim=True)
        sums = sums * (1.0 if how == "online, not shrunk" else shrunk) + p @ v[:, :, i : i + 3]
        top = larger
    return sums / total


class Images(nn.Module):
    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.shrink, self.head = nn.Conv2d(6, 4, 2, stride=2), nn.Linear(48, 5)
        self.drop, self.same = nn.Dropout(), nn.Identity()
        self.norm.running_mean.copy_(torch.linspace(-0.5, 0.5, 6))
        self.how = how
        self.eval()

    def forward(self, x: Any) -> Any:
        if self.how == "product":
            b, _, h, w = x.shape
            y = self.conv.weight.reshape(6, -1) @ F.unfold(x, 3, padding=1)
            x = (y + self.conv.bias[:, None]).reshape(b, 6, h, w)
        else:
            x = self.conv(x)
        if self.how == "relu first":
            x = self.norm(F.relu(x))
        elif self.how == "in place":
            x = self.norm(x).relu_()
        else:
            x = F.relu(self.norm(x))
        if self.how == "more layers":
            x = self.same(self.drop(self.same(x)))
        x = self.shrink(x)
        if self.how == "channels last":
            return self.head(x.permute(0, 2, 3, 1).flatten(1))
        return self.head(x.reshape(len(x), -1) if self.how == "reshape" else x.flatten(1))


class Gated(nn.Module):
    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.a, self.b, self.c, self.gate, self.out = (nn.Linear(6, 6) for _ in range(5))
        self.how = how

    def forward(self, x: Any) -> Any:
        if self.how == "another order":
            c, b, a = self.c(x), torch.tanh(self.b(x)), self.a(x)
        else:
            a, b, c = self.a(x), torch.tanh(self.b(x)), self.c(x)
        g = torch.sigmoid(self.gate(x))
        if self.how == "lerp":
            return self.out(torch.lerp(b, a, g) + c)
        if self.how == "without c":
            return self.out(a * g + b * (1 - g))
        if self.how == "turned":
            a, b = b, a
        return self.out(a * g + b * (1 - g) + c)


INPUTS = {Attention: "float32[2,7,12]", Images: "float32[2,3,6,8]", Gated: "float32[5,6]"}


def check(kind: Any, how: str) -> Any:
    torch.manual_seed(0)
    return crosscheck.check(kind(), kind(how), INPUTS[kind])


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (Attention, "einsum"),
        (Attention, "chunks"),
        (Attention, "online"),
        (Attention, "another order"),
        (Images, "product"),
        (Images, "in place"),
        (Images, "more layers"),
        (Images, "reshape"),
        (Gated, "another order"),
        (Gated, "lerp"),
    ],
)
def test_an_unusual_port_agrees(kind: Any, how: str) -> None:
    report = check(kind, how)
    assert report.verdict == "agree", str(report)


@pytest.mark.parametrize(
    ("kind", "how", "seen", "cause"),
    [
        (Attention, "online, not shrunk", "out", None),
        (Images, "relu first", "norm", "activation"),
        (Images, "channels last", "head", "flatten_order"),
        (Gated, "without c", "out", "term_missing"),
        (Gated, "turned", "out", None),
    ],
)
def test_a_mistake_between_layers_is_the_models(
    kind: Any, how: str, seen: str, cause: str | None
) -> None:
    """No layer is wrong, so none is blamed: the code that calls them is the whole model's."""
    report = check(kind, how)
    first = report.first_divergence
    assert (first.phase, first.site) == ("forward", seen), str(report)
    assert {d.reference for d in report.divergences} == {"output"}, report.divergences
    named = {c.name for c in first.causes if c.verified}
    assert cause in named if cause else not named, first.causes
