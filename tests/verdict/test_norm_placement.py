"""Pre-norm against post-norm: the block is to blame, which calls its layers in another order."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import crosscheck  # noqa: E402


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Any) -> Any:
        b, t, d = x.shape
        q, k, v = (a.reshape(b, t, 4, 4).transpose(1, 2) for a in self.qkv(x).chunk(3, -1))
        weights = (q @ k.mT / math.sqrt(4)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, t, d))


class Fused(nn.MultiheadAttention):
    def __init__(self) -> None:
        super().__init__(16, 4, batch_first=True)

    def forward(self, x: Any) -> Any:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=False)[0]


class Block(nn.Module):
    def __init__(self, pre: bool, attention: Any) -> None:
        super().__init__()
        self.pre, self.norm1, self.norm2 = pre, nn.LayerNorm(16), nn.LayerNorm(16)
        self.attn, self.fc1, self.fc2 = attention(), nn.Linear(16, 32), nn.Linear(32, 16)

    def mlp(self, x: Any) -> Any:
        return self.fc2(nn.functional.gelu(self.fc1(x)))

    def forward(self, x: Any) -> Any:
        if self.pre:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class Renamed(nn.Module):
    """The same with other names, and with one container more."""

    def __init__(self, pre: bool, attention: Any) -> None:
        super().__init__()
        self.pre, self.ln_a, self.ln_b = pre, nn.LayerNorm(16), nn.LayerNorm(16)
        self.mixer = attention()
        self.ff = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Any) -> Any:
        if self.pre:
            x = x + self.mixer(self.ln_a(x))
            return x + self.ff(self.ln_b(x))
        x = self.ln_a(x + self.mixer(x))
        return self.ln_b(x + self.ff(x))


class Flat(nn.Module):
    """All layers in one container, with many of them between a layer and its norm."""

    def __init__(self, pre: bool, attention: Any) -> None:
        super().__init__()
        self.pre, self.norm1, self.norm2 = pre, nn.LayerNorm(16), nn.LayerNorm(16)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.fc1, self.act, self.fc2 = nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)
        self.softmax, self.drop = nn.Softmax(-1), nn.Identity()

    def attend(self, x: Any) -> Any:
        scores = self.q(x) @ self.k(x).mT / 4.0
        return self.o(self.drop(self.softmax(scores) @ self.v(x)))

    def forward(self, x: Any) -> Any:
        if self.pre:
            x = x + self.attend(self.norm1(x))
            return x + self.fc2(self.act(self.fc1(self.norm2(x))))
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + self.fc2(self.act(self.fc1(x))))


class Net(nn.Module):
    def __init__(self, pre: bool, attention: Any = Attention, block: Any = Block) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 16), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(block(pre, attention) for _ in range(2))

    def forward(self, x: Any) -> Any:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def check(reference: Any, candidate: Any) -> Any:
    torch.manual_seed(0)
    for p in reference.parameters():
        with torch.no_grad():
            p.add_(0.2 * torch.randn(p.shape))
    return crosscheck.check(reference, candidate, "float32[2,7,5]")


@pytest.mark.parametrize(
    ("attention", "block"), [(Attention, Block), (Fused, Block), (Attention, Renamed)]
)
@pytest.mark.parametrize("pre", [False, True], ids=["post, pre", "pre, post"])
def test_the_norm_stands_elsewhere(pre: bool, attention: Any, block: Any) -> None:
    report = check(Net(pre, attention), Net(not pre, attention, block))
    first = report.first_divergence
    assert (first.phase, first.reference, first.candidate) == ("forward", "blocks.0", "blocks.0")
    causes = [c for c in first.causes if c.verified]
    assert {c.name for c in causes} == {"norm_placement"}, first.causes
    assert all(("comes before" in c.statement) != pre for c in causes), causes
    blamed = {name for d in report.divergences for name in (d.reference, d.candidate)}
    assert blamed <= {"blocks.0", "blocks.1"}, sorted(map(str, blamed))
    names = {c.name for d in report.divergences for c in d.causes if c.verified}
    assert names <= {"norm_placement", "other_terms"}, names


@pytest.mark.parametrize("pre", [False, True], ids=["post", "pre"])
def test_in_its_place_it_agrees(pre: bool) -> None:
    report = check(Net(pre), Net(pre, block=Renamed))
    assert report.verdict == "agree", str(report)


class Scaled(Attention):
    """What goes into the packed projection is made wrong inside the layer."""

    def forward(self, x: Any) -> Any:
        return super().forward(1.1 * x)


def test_a_layer_that_spoils_its_own_input_is_to_blame() -> None:
    """The block hands the right value in."""
    report = check(Net(True), Net(True, Scaled))
    named = {d.reference for d in report.divergences if d.phase == "forward"}
    assert {re.sub(r"\d", "", str(name)) for name in named} == {"blocks..attn"}, named


def test_many_layers_in_one_container() -> None:
    report = check(Net(False, block=Flat), Net(True, block=Flat))
    first = report.first_divergence
    assert (first.phase, first.reference, first.candidate) == ("forward", "blocks.0", "blocks.0")
    assert [c.name for c in first.causes if c.verified] == ["norm_placement"]


class Shipped(nn.TransformerEncoderLayer):
    """PyTorch's own, with layers of dropout that the block below does not have."""

    def __init__(self, pre: bool, attention: Any) -> None:
        super().__init__(16, 4, 32, 0.1, batch_first=True, norm_first=pre)


class ByHand(nn.Module):
    def __init__(self, pre: bool, attention: Any) -> None:
        super().__init__()
        self.pre, self.norm1, self.norm2 = pre, nn.LayerNorm(16), nn.LayerNorm(16)
        self.self_attn, self.linear1, self.linear2 = Fused(), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Any) -> Any:
        if self.pre:
            x = x + self.self_attn(self.norm1(x))
            return x + self.linear2(self.linear1(self.norm2(x)).relu())
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(self.linear1(x).relu()))


@pytest.mark.parametrize("pre", [False, True], ids=["post, pre", "pre, post"])
def test_layers_that_one_side_does_without_are_not_to_blame(pre: bool) -> None:
    """Nor do they stand for the layer whose value they hand on."""
    report = check(Net(pre, block=Shipped), Net(not pre, block=ByHand))
    causes = [c for c in report.first_divergence.causes if c.verified]
    assert [c.name for c in causes] == ["norm_placement"], causes
    assert "dropout" not in causes[0].statement
    blamed = {name for d in report.divergences for name in (d.reference, d.candidate)}
    assert blamed <= {"blocks.0", "blocks.1"}, sorted(map(str, blamed))
