"""Flags that keep on one side and drop on the other."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import crosscheck  # noqa: E402


class Attend(nn.Module):
    """Of q, k, v (B, H, T, D) and flags: True lets a query see a key, or hides it."""

    def __init__(self, drops: bool) -> None:
        super().__init__()
        self.drops = drops

    def forward(self, q: Any, k: Any, v: Any, flags: Any) -> Any:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=~flags if self.drops else flags)


class Flags(nn.Module):
    """Which keys a query may see."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Any) -> Any:
        flags = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(1)
        return ~flags if self.wrong else flags


class Net(nn.Module):
    def __init__(self, drops: bool = False, wrong: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.flags, self.attend = Flags(wrong), Attend(drops)

    def forward(self, x: Any) -> Any:
        q, k, v = (
            f(x).reshape(*x.shape[:2], 3, 4).swapaxes(1, 2) for f in (self.q, self.k, self.v)
        )
        y = self.attend(q, k, v, self.flags(x))
        return self.out(y.swapaxes(1, 2).reshape(x.shape))


class Fused(nn.Module):
    def __init__(self, drops: bool) -> None:
        super().__init__()
        self.mha = Multihead() if drops else Keeps()
        self.out = nn.Linear(12, 3)

    def forward(self, x: Any) -> Any:
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(2)
        return self.out(self.mha(x, x, x, hidden))


class Multihead(nn.MultiheadAttention):
    def __init__(self) -> None:
        super().__init__(12, 3, batch_first=True)

    def forward(self, q: Any, k: Any, v: Any, flags: Any) -> Any:  # type: ignore[override]
        return super().forward(q, k, v, attn_mask=flags, need_weights=False)[0]


class Keeps(Multihead):
    def forward(self, q: Any, k: Any, v: Any, flags: Any) -> Any:
        return super().forward(q, k, v, ~flags)


def causes(report: Any, layer: str) -> list[tuple[str, str]]:
    first = report.first_divergence
    assert first is not None and first.phase == "forward" and first.reference == layer, str(report)
    return [(c.name, c.statement) for c in first.causes if c.verified]


@pytest.mark.parametrize("drops", [False, True])
def test_the_layer_reads_its_flags_the_other_way_round(drops: bool) -> None:
    report = crosscheck.check(Net(drops), Net(not drops), "float32[2,6,12]")
    words = ("drops", "keeps") if drops else ("keeps", "drops")
    text = f"the mask is read the other way round: True {words[1]} what it {words[0]} in the"
    assert causes(report, "attend") == [("mask_polarity", f"{text} reference")]


def test_a_fused_layer_reads_its_flags_the_other_way_round() -> None:
    report = crosscheck.check(Fused(True), Fused(False), "float32[2,6,12]")
    assert [name for name, _ in causes(report, "mha")] == ["mask_polarity"]


def test_the_flags_themselves_are_inverted() -> None:
    report = crosscheck.check(Net(), Net(wrong=True), "float32[2,6,12]")
    text = "the flags are inverted: True where the reference has False"
    assert causes(report, "flags") == [("mask_polarity", text)]


def test_the_same_polarity_agrees() -> None:
    assert crosscheck.check(Net(), Net(), "float32[2,6,12]").verdict == "agree"
    assert crosscheck.check(Fused(True), Fused(True), "float32[2,6,12]").verdict == "agree"
