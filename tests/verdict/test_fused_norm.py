"""A norm with a dropout and an activation inside, as timm has it, against three layers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import crosscheck  # noqa: E402


class NormAct(nn.BatchNorm2d):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x: Any) -> Any:
        return self.act(self.drop(super().forward(x)))


class Fused(nn.Module):
    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), NormAct(8, eps)
        self.blocks = nn.Sequential(*(self.block(eps) for _ in range(2)))
        self.head = nn.Linear(8, 4)

    @staticmethod
    def block(eps: float) -> Any:
        depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False)
        pointwise = nn.Conv2d(8, 8, 1, bias=False)
        return nn.Sequential(depthwise, NormAct(8, eps), pointwise, NormAct(8, eps))

    def forward(self, x: Any) -> Any:
        return self.head(self.blocks(self.bn1(self.stem(x))).mean((2, 3)))


class Apart(nn.Module):
    def __init__(self, eps: float = 1e-5, act: Any = nn.ReLU) -> None:
        super().__init__()
        names = ["conv", *(f"{kind}{i}" for i in range(2) for kind in ("dw", "pw"))]
        convs = [nn.Conv2d(3, 8, 3, 2, 1, bias=False)]
        for _ in range(2):
            convs.append(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False))
            convs.append(nn.Conv2d(8, 8, 1, bias=False))
        for name, conv in zip(names, convs, strict=True):
            self.add_module(name, conv)
            self.add_module(f"{name}_bn", nn.BatchNorm2d(8, eps))
            self.add_module(f"{name}_act", act())
        self.logits, self.names = nn.Linear(8, 4), names

    def forward(self, x: Any) -> Any:
        for name, part in itertools.product(self.names, ("", "_bn", "_act")):
            x = getattr(self, name + part)(x)
        return self.logits(x.mean((2, 3)))


def check(reference: Any, candidate: Any, *, trained: bool, seed: int = 3) -> Any:
    torch.manual_seed(seed)
    numbers = [*reference.parameters(), *reference.buffers()] if trained else []
    for one in numbers:
        if one.is_floating_point():
            with torch.no_grad():
                one.add_(0.3 * torch.rand(one.shape))
    return crosscheck.check(reference.eval(), candidate.eval(), "float32[2,3,16,16]")


@pytest.mark.parametrize("trained", [False, True], ids=["new", "trained"])
@pytest.mark.parametrize("fused", ["reference", "candidate"])
def test_it_is_the_same(fused: str, trained: bool) -> None:
    """A norm that has not been trained changes its input by less than what tells two values apart:
    what it is given is not what the dropout behind it is given, all the same."""
    sides = (Fused(), Apart()) if fused == "reference" else (Apart(), Fused())
    report = check(*sides, trained=trained)
    assert report.verdict == "agree", str(report)


@pytest.mark.parametrize("trained", [False, True], ids=["new", "trained"])
@pytest.mark.parametrize("fused", ["reference", "candidate"])
def test_another_eps_is_the_norms(fused: str, trained: bool) -> None:
    sides = (Fused(), Apart(1e-3)) if fused == "reference" else (Apart(), Fused(1e-3))
    report = check(*sides, trained=trained)
    first = report.first_divergence
    blamed = (first.reference, first.candidate)
    assert blamed == (("bn1", "conv_bn") if fused == "reference" else ("conv_bn", "bn1"))
    causes = [c.statement for c in first.causes if c.verified]
    assert causes[0] == "eps 0.001 instead of 1e-05"
    norms = {f"{name}_bn" for name in Apart().names}
    named = {d.candidate if fused == "reference" else d.reference for d in report.divergences}
    assert named <= norms | {f"{name}.weight" for name in norms}, named - norms


@pytest.mark.parametrize("seed", range(3))
def test_another_activation_takes_no_weights_from_the_norms(seed: int) -> None:
    """They return the right values for the weights that their names and places give them."""
    torch.manual_seed(seed)
    report = check(Fused(), Apart(act=nn.GELU), trained=True, seed=seed)
    pairs = {s.reference: s.candidate for s in report.sites if s.phase == "weights"}
    assert pairs["blocks.0.1.weight"] == "dw0_bn.weight"
    assert pairs["blocks.0.3.weight"] == "pw0_bn.weight"
    assert report.first_divergence.candidate == "conv_act"
    assert not any("_bn" in str(d.candidate) for d in report.divergences)


class DepthwiseConv2D(nn.Conv2d):
    """Of another type than its counterpart, as in Keras."""


class BatchNormalization(nn.BatchNorm2d):
    pass


class Mobile(nn.Module):
    """Residual blocks with many norms; ``padding`` of the stem."""

    def __init__(self, padding: int, eps: float, depthwise: Any, norm: Any, name: str) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, padding, bias=False), norm(8, eps)
        self.blocks = [f"{name}{i}" for i in range(4)]
        for block in self.blocks:
            parts = [
                nn.Conv2d(8, 24, 1, bias=False),
                norm(24, eps),
                nn.ReLU6(),
                depthwise(24, 24, 3, padding=1, groups=24, bias=False),
                norm(24, eps),
                nn.ReLU6(),
                nn.Conv2d(24, 8, 1, bias=False),
                norm(8, eps),
            ]
            self.add_module(block, nn.Sequential(*parts))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Any) -> Any:
        x = nn.functional.pad(x, (0, 2, 0, 2)) if self.stem.padding == (0, 0) else x
        x = self.norm(self.stem(x)).relu()
        for block in self.blocks:
            x = x + getattr(self, block)(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_new_norms_do_not_stand_for_the_layers_before_them(seed: int) -> None:
    """What they return is within 0.1 % of what they are given, of another eps or not."""
    torch.manual_seed(seed)
    ours = Mobile(1, 1e-5, nn.Conv2d, nn.BatchNorm2d, "features")
    theirs = Mobile(0, 1e-3, DepthwiseConv2D, BatchNormalization, "block_")
    report = check(ours, theirs, trained=False, seed=seed)
    norms = {"norm", *(f"{block}.{i}" for block in ours.blocks for i in (1, 4, 7))}
    forward = {d.reference for d in report.divergences if d.phase == "forward"}
    assert report.first_divergence.reference == "stem"
    assert "stem" in forward and len(forward & norms) > len(norms) // 2
    assert forward <= norms | {"stem"}, forward - norms
    partners = {s.reference: s.candidate for s in report.sites if s.kind == "activation"}
    for block, its in zip(ours.blocks, theirs.blocks, strict=True):
        for i in (0, 1, 3, 4, 6):
            assert partners[f"{block}.{i}"] == f"{its}.{i}"
