"""Attention in one layer that is given numbers to add to its scores, 0 and minus infinity: what
`nn.TransformerEncoder` makes of a padding mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import crosscheck  # noqa: E402

LENGTHS = np.array([7, 4, 5])
INPUTS = {
    "x": np.random.default_rng(0).normal(size=(3, 7, 12)).astype(np.float32),
    "hidden": np.arange(7) >= LENGTHS[:, None],
}


class Inverting(nn.MultiheadAttention):
    def forward(self, q: Any, k: Any, v: Any, hidden: Any, **more: Any) -> Any:  # type: ignore[override]
        hidden = torch.zeros(hidden.shape).masked_fill(hidden == 0, -torch.inf)
        return super().forward(q, k, v, hidden, **more)


class Net(nn.Module):
    def __init__(self, wrong: str = "", causal: bool = False) -> None:
        super().__init__()
        kind = Inverting if wrong == "inverted" else nn.MultiheadAttention
        self.attention = kind(12, 3, batch_first=True)
        self.out = nn.Linear(12, 5)
        self.wrong, self.causal = wrong, causal

    def forward(self, x: Any, hidden: Any) -> Any:
        padding = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
        order = torch.full((7, 7), -torch.inf).triu(1) if self.causal else None
        if self.wrong == "missing":
            padding = None
        if self.wrong == "unordered":
            order = None
        y, _ = self.attention(x, x, x, padding, need_weights=False, attn_mask=order)
        return self.out(y)


def causes(wrong: str, causal: bool = False) -> list[str]:
    report = crosscheck.check(Net(causal=causal), Net(wrong, causal), INPUTS, gradients=False)
    first = report.first_divergence
    assert first is not None and first.reference == "attention", str(report)
    return [cause.statement for cause in first.causes if cause.verified]


def test_a_padding_mask_that_is_not_applied() -> None:
    assert causes("missing") == ["the mask is not applied"]


def test_a_padding_mask_that_is_inverted() -> None:
    text = "the mask is read the other way round: True keeps what it drops in the reference"
    assert causes("inverted") == [text]


@pytest.mark.parametrize(("wrong", "shape"), [("missing", (3, 7)), ("unordered", (7, 7))])
def test_of_two_masks_the_one_that_is_not_applied(wrong: str, shape: tuple[int, int]) -> None:
    assert causes(wrong, causal=True) == [f"of 2 masks, that of shape {shape} is not applied"]
