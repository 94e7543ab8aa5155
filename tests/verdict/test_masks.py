"""Masks: what stands for minus infinity is not compared, what it does is."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import crosscheck  # noqa: E402
from crosscheck import Report  # noqa: E402

INF = -math.inf
LOWEST = torch.finfo(torch.float32).min


class Softmax(nn.Module):
    def forward(self, scores: Any) -> Any:
        return scores.softmax(-1)


class Masked(nn.Module):
    """A mask as a layer: a number in the place of scores, or added to them."""

    def __init__(self, *how: Any) -> None:
        super().__init__()
        self.how = how

    def forward(self, scores: Any, keep: Any) -> Any:
        return masked(scores, keep, *self.how)


def masked(scores: Any, keep: Any, fill: float, added: bool, more: int) -> Any:
    keep = keep | torch.ones_like(keep).triu(more).tril(more) if more else keep
    if added:
        return scores + torch.where(keep, 0.0, fill)
    return scores.masked_fill(~keep, fill)


class Attention(nn.Module):
    def __init__(self, fill: float, *, added: bool, layer: bool, more: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.softmax = Softmax()
        self.how = (fill, added, more)
        self.mask: Any = Masked(*self.how) if layer else None

    def forward(self, x: Any, keep: Any) -> Any:
        b, t, d = x.shape
        q, k, v = (f(x).reshape(b, t, 4, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        s = q @ k.mT / 2
        s = self.mask(s, keep) if self.mask else masked(s, keep, *self.how)
        return self.out((self.softmax(s) @ v).transpose(1, 2).reshape(b, t, d))


class Net(nn.Module):
    def __init__(
        self,
        fill: float,
        *,
        added: bool = False,
        layer: bool = False,
        blind_row: bool = False,
        size: float = 1.0,
        more: int = 0,
    ) -> None:
        super().__init__()
        self.embed, self.attention = (
            nn.Linear(5, 16),
            Attention(fill, added=added, layer=layer, more=more),
        )
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)
        self.blind_row, self.size = blind_row, size

    def forward(self, x: Any) -> Any:
        keep = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if self.blind_row:
            keep[2] = False
        x = self.embed(x) * self.size
        return self.head(self.norm(x + self.attention(x, keep)))


def check(reference: Net, candidate: Net) -> Report:
    torch.manual_seed(0)
    for p in reference.parameters():
        with torch.no_grad():
            p.add_(0.2 * torch.randn(p.shape))
    return crosscheck.check(reference, candidate, "float32[2,7,5]")


WAYS = [
    {"added": added, "layer": layer} for added in (False, True) for layer in (False, True)
]  # fmt: skip
NUMBERS = [(INF, -1e9), (-1e9, INF), (LOWEST, -1e4), (-1e4, INF), (-1e9, LOWEST)]


@pytest.mark.parametrize(
    ("ours", "theirs", "way"),
    [*((*two, WAYS[0]) for two in NUMBERS), *((*NUMBERS[0], way) for way in WAYS[1:])],
)
def test_another_number_for_what_is_masked_is_no_mistake(
    ours: float, theirs: float, way: Any
) -> None:
    report = check(Net(ours, **way), Net(theirs, **way))
    assert report.verdict == "agree", str(report)
    said = [note for site in report.sites for note in site.notes]
    assert len(said) == 1 and said[0].startswith("masked by "), said
    assert "inherited" not in str(report)
    assert "everything behind is the same" in " ".join(str(report).split())


@pytest.mark.parametrize("way", [WAYS[1], WAYS[2]], ids=str)
@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        pytest.param(INF, -10.0, {}, id="too small a number"),
        pytest.param(-1e9, -30.0, {"size": 8.0}, id="one that lets something through"),
        pytest.param(INF, -1e4, {"size": 300.0}, id="scores as large as the number"),
        pytest.param(INF, -1e9, {"blind_row": True}, id="a row of nothing, no longer NaN"),
        pytest.param(-1e9, INF, {"blind_row": True}, id="a row of nothing, now NaN"),
    ],
)
def test_a_number_that_makes_a_difference_is_found_and_explained(
    ours: float, theirs: float, options: Any, way: Any
) -> None:
    report = check(Net(ours, **way, **options), Net(theirs, **way, **options))
    first = report.first_divergence
    assert first is not None and first.phase == "forward", str(report)
    assert first.reference == ("attention.mask" if way["layer"] else "attention"), first
    assert {c.name for c in first.causes if c.verified} == {"mask_value"}, first.causes
    assert all(d.reference == first.reference for d in report.divergences), report.divergences


@pytest.mark.parametrize("way", WAYS[:2], ids=str)
def test_other_elements_are_no_other_number(way: Any) -> None:
    """One more key in sight, and -1e9 for -inf beside it."""
    report = check(Net(INF, **way), Net(-1e9, **way, more=1))
    assert report.verdict == "diverge"
    assert not [n for s in report.sites for n in s.notes if n.startswith("masked by ")]


class Scores(nn.Module):
    """The scores themselves are what it returns."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.q, self.fill = nn.Linear(5, 8), fill

    def forward(self, x: Any) -> Any:
        q = self.q(x)
        keep = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        return (q @ q.mT).masked_fill(~keep, self.fill)


def test_what_a_model_returns_is_not_excused() -> None:
    """Nothing lies behind it that could tell."""
    report = crosscheck.check(Scores(INF), Scores(-1e9), "float32[2,7,5]")
    assert report.verdict == "diverge"
    assert [c.name for c in report.divergences[0].causes] == ["mask_value"]


def test_a_mistake_behind_another_number_is_found_where_it_is() -> None:
    """The weights are right; what is made of them is not."""
    reference, candidate = Net(INF, layer=True), Net(-1e9, layer=True)
    candidate.norm.eps = 1e-3
    report = check(reference, candidate)
    assert {d.reference for d in report.divergences} == {"norm", "norm.weight"}, str(report)
    assert [n for s in report.sites for n in s.notes if n.startswith("masked by ")]


class Sharper(Softmax):
    def forward(self, scores: Any) -> Any:
        return super().forward(1.01 * scores)


def test_a_mistake_in_the_softmax_is_not_the_masks() -> None:
    reference, candidate = Net(INF, layer=True), Net(-1e9, layer=True)
    candidate.attention.softmax = Sharper()
    report = check(reference, candidate)
    assert {d.reference for d in report.divergences} == {"attention.softmax"}, str(report)
