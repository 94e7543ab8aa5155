"""A mixture of experts with their weights in one array, as libraries hold them, against experts
that are layers of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from .kit import run

WIDTH, INNER, EXPERTS = 8, 12, 4


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)

    def expert(self, k: int, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares, chosen = self.router(x).softmax(-1).topk(2, -1)
        every = [
            self.expert(k, x) * torch.where(chosen == k, shares, 0.0).sum(-1, keepdim=True)
            for k in range(EXPERTS)
        ]
        return x + torch.stack(every).sum(0)


class Stacked(Mixture):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, 2 * INNER, WIDTH) * 0.3)
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER) * 0.3)

    def expert(self, k: int, x: torch.Tensor) -> torch.Tensor:
        gate, up = F.linear(x, self.gate_up_proj[k]).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.down_proj[k])


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return made


class Apart(Mixture):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def expert(self, k: int, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.experts[k](x)
        return made


def net(mixture: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(5, WIDTH), mixture(), mixture(), nn.Linear(WIDTH, 3))


def check(*mixtures: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(0)
    return run(*map(net, mixtures), "float32[3,6,5]")


@pytest.mark.parametrize("turned", [False, True])
def test_weights_go_from_one_to_the_other(turned: bool) -> None:
    report = check(*((Apart, Stacked) if turned else (Stacked, Apart)))
    assert report.verdict == "agree", str(report)
    coverage = report.coverage
    assert not coverage.unmatched_reference_parameters
    assert not coverage.unmatched_candidate_parameters
    gradients = {s.reference for s in report.sites if s.phase == "parameter_gradient"}
    assert ("1.experts.3.up_proj.weight" if turned else "2.gate_up_proj") in gradients


def test_a_mistake_in_one_of_them_is_the_mixtures() -> None:
    class Wrong(Apart):
        def expert(self, k: int, x: torch.Tensor) -> torch.Tensor:
            return super().expert(k, x * 1.1 if k == 2 else x)

    report = check(Stacked, Wrong)
    assert report.verdict == "diverge"
    for divergence in report.divergences:
        assert str(divergence.reference)[:1] == str(divergence.candidate)[:1]
        assert str(divergence.reference)[:1] in "12", str(report)
