"""Attention that turns its queries and keys by their positions, in the code between the layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import crosscheck

from .kit import normal
from .layers import Array, softmax
from .test_hypotheses_between import between, cut, turn

HEADS, SIZE, LENGTH = 4, 8, 20  # longer than what a first look takes
Turn = Callable[[Array], Array]
HALF = partial(turn, base=1e4)
OTHER = partial(turn, pairs="interleaved")


def drawn(seed: int, shared: int = 2) -> dict[str, Array]:
    widths = {"q": HEADS * SIZE, "k": shared * SIZE, "v": shared * SIZE}
    return {n: normal((2, LENGTH, w), 7 * seed + i) for i, (n, w) in enumerate(widths.items())}


def still(x: Array) -> Array:
    return x


def back(x: Array) -> Array:
    """Turned in the other direction."""
    return turn(x[..., ::-1, :], start=1 - LENGTH)[..., ::-1, :]


def first(x: Array, width: int = 0) -> Array:
    """The first half of the features turned, with the frequencies of so many (0: of the half)."""
    half = x.shape[-1] // 2
    base = 1e4 ** (half / (width or half))
    return np.concatenate([turn(x[..., :half], base), x[..., half:]], -1)


def scores(
    values: dict[str, Array], *, q: Turn = HALF, k: Turn = HALF, scale: float = SIZE**-0.5
) -> Array:
    keys = np.repeat(cut(values["k"], values["k"].shape[-1] // SIZE), 2, 1)
    return q(cut(values["q"], HEADS)) @ k(keys).swapaxes(-1, -2) * scale


def attended(values: dict[str, Array], *, visible: int | None = 0, **more: Any) -> Array:
    ones = np.ones((LENGTH, LENGTH), bool)
    s = np.where(
        ones if visible is None else np.tril(ones, visible), scores(values, **more), -np.inf
    )
    v = np.repeat(cut(values["v"], 2), 2, 1)
    return (softmax(s) @ v).swapaxes(1, 2).reshape(2, LENGTH, -1)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"q": OTHER, "k": OTHER}, "pairs are interleaved and angles laid out interleaved"),
    ({"q": partial(turn, base=1e6), "k": partial(turn, base=1e6)}, "base 1e+06 instead of 10000"),
    ({"q": back, "k": back}, "the rotation is in the other direction"),
    ({"q": still, "k": still}, "queries and keys are not turned"),
    ({"k": still}, "keys are not turned, queries are"),
    ({"q": still}, "queries are not turned, keys are"),
    ({"q": first, "k": first}, "the first 4 features alone are turned, not all"),
    ({"q": partial(turn, start=1)}, "positions of queries are counted from 1 where those of keys"),
    ({"scale": 1.0}, "scores are scaled by 1 (no scale)"),
]


@pytest.mark.parametrize(("wrong", "statement"), WRONG)
@pytest.mark.parametrize("make", [scores, partial(attended, visible=None), attended])
def test_what_is_turned_otherwise(make: Any, wrong: dict[str, Any], statement: str) -> None:
    found = between(make, partial(make, **wrong), drawn)
    assert found[0].startswith(statement), found
    assert all(text.startswith("the value is scaled") for text in found[1:]), found


@pytest.mark.parametrize(
    ("wrong", "statement"),
    [
        ({"visible": 1}, "the mask lets a position see its successor"),
        ({"visible": None}, "every position sees all others"),
    ],
)
def test_a_wrong_mask_beside_it(wrong: dict[str, Any], statement: str) -> None:
    found = between(attended, partial(attended, **wrong), drawn)
    assert len(found) == 1 and found[0].startswith(statement), found


@pytest.mark.parametrize(
    "right",
    [
        {"q": OTHER, "k": OTHER},
        {"q": partial(turn, base=5e5), "k": partial(turn, base=5e5)},
        {"q": first, "k": first},
        {"q": partial(first, width=SIZE), "k": partial(first, width=SIZE)},
    ],
)
def test_other_references_are_recognised(right: dict[str, Any]) -> None:
    found = between(partial(attended, **right), partial(attended, **right, scale=1.0), drawn)
    assert found == ["scores are scaled by 1 (no scale); in the reference by 1/√(head size)"]


def test_nothing_is_said_where_both_start_later() -> None:
    """That changes no score: whatever is wrong, it is not that."""
    later = partial(turn, start=3)
    assert np.allclose(attended(drawn(0)), attended(drawn(0), q=later, k=later))
    wrong = partial(attended, q=later, k=partial(later, base=3e3))
    assert between(attended, wrong, drawn) == []


class Attention(nn.Module):
    """By hand, with frequencies in a buffer of float32 and heads of keys shared."""

    def __init__(self, base: float = 1e4, *, both: bool = True) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(32, 32, bias=False), nn.Linear(32, 16, bias=False)
        self.v_proj, self.o_proj = nn.Linear(32, 16, bias=False), nn.Linear(32, 32, bias=False)
        self.register_buffer(
            "frequencies", base ** (-torch.arange(0, SIZE, 2) / SIZE), persistent=False
        )
        self.both = both

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.outer(torch.arange(x.shape[2]).float(), self.frequencies.float())
        table = torch.cat([angles, angles], -1)
        a, b = x.chunk(2, -1)
        return x * table.cos().to(x.dtype) + torch.cat([-b, a], -1) * table.sin().to(x.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, SIZE)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self.turned(q), self.turned(k) if self.both else k
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("length", [5, 200])
@pytest.mark.parametrize(
    ("wrong", "statement"),
    [
        ({}, ""),
        ({"base": 5e5}, "base 500000 instead of 10000"),
        ({"both": False}, "keys are not turned, queries are"),
    ],
)
def test_models_with_it(length: int, wrong: dict[str, Any], statement: str) -> None:
    torch.manual_seed(0)
    sides = [nn.Sequential(nn.LayerNorm(32), Attention(**given)) for given in ({}, wrong)]
    report = crosscheck.check(*sides, {"x": f"float32[2,{length},32]"})
    first_one = report.first_divergence
    assert (first_one is None) == (not statement)
    if first_one is not None:
        assert first_one.reference == "1"
        assert [cause.statement for cause in first_one.causes if cause.verified] == [statement]
