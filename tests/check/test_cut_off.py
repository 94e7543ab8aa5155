"""What lies behind a cut in the backward pass is not to blame, with a partner or without."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import crosscheck
from crosscheck.results import Report


class Gated(nn.Module):
    """``h * gate(mean of h)``; the first layer of the gate without its activation, or with it."""

    def __init__(self, fused: bool, cut: str = "", factor: float = 1.0) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.pool = nn.AvgPool1d(1) if fused else nn.Identity()
        self.squeeze = Fused() if fused else nn.Linear(5, 3)
        self.excite = nn.Linear(3, 5)
        self.gate = nn.Sigmoid()
        self.join = Join(cut == "join") if fused else nn.Identity()
        self.stop = Stop(cut == "stop") if fused else nn.Identity()
        self.head = nn.Linear(5, 4)
        self.fused, self.factor = fused, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.fc(x))
        pooled = self.pool(h)
        w = self.squeeze(pooled) if self.fused else F.silu(self.squeeze(pooled))
        w = self.gate(self.excite(w))
        y = self.join(h, self.stop(w)) if self.fused else h * w
        y = self.head(y)
        if self.factor != 1.0:  # forward the same
            y = y * self.factor - (y * (self.factor - 1.0)).detach()
        return y


class Fused(nn.Linear):
    def __init__(self) -> None:
        super().__init__(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(super().forward(x))


class Stop(nn.Module):
    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach() if self.cut else x * 1


class Join(Stop):
    def forward(self, h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return h * (w.detach() if self.cut else w)


def run(**options: object) -> Report:
    torch.manual_seed(0)
    reference = Gated(False)
    return crosscheck.check(reference, Gated(True, **options), "float32[7,6]")  # type: ignore[arg-type]


def test_nothing_is_cut() -> None:
    assert run().verdict == "agree"


@pytest.mark.parametrize("cut", ["stop", "join"])
def test_layers_behind_a_cut_are_not_to_blame(cut: str) -> None:
    """`squeeze` has no partner for its output; its VJP and gradients are zero all the same."""
    report = run(cut=cut)
    (only,) = report.divergences
    assert (only.phase, only.site) == ("backward", "gate")
    assert cut in (only.candidate, *only.between) and "squeeze" not in only.between
    assert any("squeeze" in line for line in report.coverage.not_compared)


def test_a_mistake_beside_a_cut_is_found() -> None:
    report = run(cut="stop", factor=1.5)
    assert [(d.phase, d.site) for d in report.divergences] == [
        ("backward", "head"),
        ("backward", "gate"),
    ]
