"""Attention in code of its own behind one projection for queries, keys and values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import crosscheck

WIDTH, HEADS = 24, 4


class Attention(nn.Module):
    """As in nanoGPT or timm, without a softmax of its own.

    Args:
        scale: what scores are multiplied by; None: one over the root of the head size.
        order: which third of the projection is taken for queries, keys and values.
        per_head: whether each head's three lie side by side.
        turned: whether queries and keys are turned by their positions.
    """

    def __init__(
        self,
        *,
        causal: bool = True,
        scale: float | None = None,
        order: tuple[int, ...] = (0, 1, 2),
        per_head: bool = False,
        base: float = 0.0,
        axis: int = -1,
    ) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.causal, self.order, self.per_head, self.axis = causal, order, per_head, axis
        self.scale = 1 / math.sqrt(WIDTH // HEADS) if scale is None else scale
        self.base = base

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[-1]
        angles = torch.outer(
            torch.arange(x.shape[2]).double(), self.base ** (-torch.arange(0, size, 2) / size)
        )
        table = torch.cat([angles, angles], -1).to(x.dtype)
        a, b = x.chunk(2, -1)
        return x * table.cos() + torch.cat([-b, a], -1) * table.sin()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        packed = self.qkv(x)
        if self.per_head:
            parts = packed.unflatten(-1, (HEADS, 3, -1)).permute(3, 0, 2, 1, 4)
        else:
            parts = packed.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = (parts[i] for i in self.order)
        if self.base:
            q, k = self.turned(q), self.turned(k)
        s = q @ k.transpose(-1, -2) * self.scale
        if self.causal:
            hidden = torch.ones(s.shape[-2:], dtype=torch.bool).triu(1)
            s = s.masked_fill(hidden, -torch.inf)
        y = s.softmax(self.axis).nan_to_num() @ v
        made: torch.Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return made


def causes(right: dict[str, Any], wrong: dict[str, Any], length: int = 7) -> list[str]:
    """The verified ones, of the first divergence."""
    torch.manual_seed(0)
    sides = [nn.Sequential(nn.LayerNorm(WIDTH), Attention(**given)) for given in (right, wrong)]
    report = crosscheck.check(*sides, f"float32[2,{length},{WIDTH}]", probes=())
    first = report.first_divergence
    assert (first is None) == (right == wrong)
    if first is None:
        return []
    assert first.site == "1.proj"  # what goes into it
    return [cause.statement for cause in first.causes if cause.verified]


@pytest.mark.parametrize(
    ("wrong", "statement"),
    [
        ({"scale": 1.0}, "scores are scaled by 1 (no scale)"),
        ({"scale": 1 / math.sqrt(WIDTH)}, "scores are scaled by 1/√(model width)"),
        ({"order": (1, 0, 2)}, "the keys, queries and values of the reference are taken for"),
        ({"order": (0, 2, 1)}, "the queries, values and keys of the reference are taken for"),
    ],
)
@pytest.mark.parametrize("right", [{}, {"causal": False}, {"per_head": True}, {"base": 1e4}])
def test_what_is_wrong_behind_a_packed_projection(
    right: dict[str, Any], wrong: dict[str, Any], statement: str
) -> None:
    found = causes(right, right | wrong)
    assert found and all(one.startswith(statement) for one in found)


@pytest.mark.parametrize(
    ("right", "wrong", "statement"),
    [
        ({}, {"causal": False}, "every position sees all others"),
        ({"causal": False}, {}, "a position sees itself and the past alone"),
        ({}, {"per_head": True}, "q, k, v are split per head, not into flat thirds"),
        ({"per_head": True}, {}, "q, k, v are split into flat thirds, not per head"),
        ({"causal": False}, {"causal": False, "axis": -2}, "softmax over the queries"),
        ({"base": 1e4}, {"base": 5e5}, "base 500000 instead of 10000"),
        ({"base": 1e4}, {}, "queries and keys are not turned"),
    ],
)
def test_how_it_is_split_masked_and_turned(
    right: dict[str, Any], wrong: dict[str, Any], statement: str
) -> None:
    found = causes(right, wrong)
    assert found and all(one.startswith(statement) for one in found)


def test_nothing_is_said_of_what_is_something_else() -> None:
    assert causes({}, {"scale": 0.3}) == []
