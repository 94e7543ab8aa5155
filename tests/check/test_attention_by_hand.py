"""`nn.MultiheadAttention`, one layer to taps, against projections that are layers of their own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from .kit import run

WIDTH, HEADS, BLOCKS = 12, 2, 2
Split = Callable[[torch.Tensor], torch.Tensor]


class Block(nn.Module):
    """What both sides have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 20), nn.Linear(20, WIDTH)

    def attended(self, h: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attended(self.n1(x))
        return x + self.down(F.gelu(self.up(self.n2(x))))


class InOne(Block):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def attended(self, h: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attn(h, h, h, need_weights=False)[0]
        return out


def split(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def split_wrongly(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (-1, HEADS)).movedim(-1, 1)


class ByHand(Block):
    def __init__(self, factor: float = 1.0, split: Split = split) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.scale, self.split = factor / math.sqrt(WIDTH / HEADS), split

    def attended(self, h: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(project(h)) for project in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.mT * self.scale, -1)
        made: torch.Tensor = self.o((weights @ v).transpose(1, 2).flatten(2))
        return made


class Net(nn.Module):
    def __init__(self, *blocks: Block) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 5)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.last(x)
        return out


def nets(*by_hand: ByHand, turned: bool) -> tuple[Net, Net]:
    torch.manual_seed(0)
    pair = Net(*(InOne() for _ in by_hand)), Net(*by_hand)
    return pair[::-1] if turned else pair


@pytest.mark.parametrize("turned", [False, True])
def test_honest(turned: bool) -> None:
    report = run(*nets(ByHand(), ByHand(), turned=turned), "float32[3,7,8]")
    assert report.verdict == "agree", str(report)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "wrong", [lambda: ByHand(0.5), lambda: ByHand(split=split_wrongly)], ids=["scale", "heads"]
)
def test_a_mistake_between_the_projections(wrong: Callable[[], ByHand], turned: bool) -> None:
    """Attention returns what the last projection returns: the first has only parameters with it
    in common."""
    report = run(*nets(ByHand(), wrong(), turned=turned), "float32[3,7,8]")
    assert report.verdict == "diverge"
    ours, theirs = ("blocks.1.o", "blocks.1.attn")[:: -1 if not turned else 1]
    forward = [(d.reference, d.candidate) for d in report.divergences if d.phase == "forward"]
    assert forward == [(ours, theirs)], str(report)
    assert not any("blocks.0" in f"{d.reference} {d.candidate}" for d in report.divergences)


def test_the_scale_is_the_cause() -> None:
    by_size = ByHand(1.0 / math.sqrt(WIDTH / HEADS))
    report = run(*nets(ByHand(), by_size, turned=False), "float32[3,7,8]")
    assert report.first_divergence is not None
    assert [c.name for c in report.first_divergence.causes if c.verified] == ["attention_scale"]
