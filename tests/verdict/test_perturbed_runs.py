"""A perturbed run computes what is asked about; computing everything gives the same answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import crosscheck
from crosscheck.judging import perturb, ties
from crosscheck.judging.perturb import Scope

T = torch.Tensor
DEPTH, WIDTH = 4, 24


class Block(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, eps=eps)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: T) -> T:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Net(nn.Module):
    """``wrong``: eps of the third block's norm."""

    def __init__(self, wrong: float = 1e-5) -> None:
        super().__init__()
        self.first = nn.Linear(7, WIDTH)
        self.blocks = nn.Sequential(*(Block(wrong if i == 2 else 1e-5) for i in range(DEPTH)))

    def forward(self, x: T) -> T:
        return self.blocks(self.first(x))


class Centred(Net):
    """Ill-conditioned: a small variance around a large mean."""

    def __init__(self, *, other_order: bool) -> None:
        super().__init__()
        self.centre = Centre(other_order)

    def forward(self, x: T) -> T:
        return self.centre(super().forward(x) + 100.0)


class Centre(nn.Module):
    def __init__(self, other_order: bool) -> None:
        super().__init__()
        self.other_order = other_order

    def forward(self, x: T) -> T:
        if self.other_order:
            return (x * x).mean(-1, keepdim=True) - x.mean(-1, keepdim=True) ** 2 + 0 * x
        return ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True) + 0 * x


PAIRS = {
    "forward and backward": lambda: (Net(), Net(1e-3)),
    "ill-conditioned": lambda: (Centred(other_order=False), Centred(other_order=True)),
}


def numbers(report: Any) -> dict[Any, Any]:
    return {s.key: (s.verdict, s.ratio, s.noise_floor, s.notes) for s in report.sites}


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_with_everything_computed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> Any:
        torch.manual_seed(0)
        options = {"explain": False, "blind_spots": False}
        return crosscheck.check(*PAIRS[name](), {"x": "float32[5,7]"}, **options)

    found = numbers(check())
    real = perturb.scopes
    monkeypatch.setattr(ties, "scopes", lambda *args: [real(*args)[-1]])
    calls: list[list[Scope]] = []

    def whole(*args: Any) -> list[Scope]:
        calls.append(real(*args))
        return calls[-1][-1:]

    monkeypatch.setattr(perturb, "scopes", whole)
    expected = numbers(check())
    assert calls
    assert all(len(some) == 2 and some[0].needless for some in calls)
    assert all(len(some[0].parameters) < len(some[1].parameters) for some in calls)
    assert found.keys() == expected.keys()
    for key, (verdict, ratio, floor, notes) in found.items():
        assert (verdict, notes) == (expected[key][0], expected[key][3]), key
        np.testing.assert_allclose((ratio, floor), expected[key][1:3], rtol=1e-6, err_msg=str(key))


def test_what_fails_in_part_is_done_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[bool] = []
    run = Scope.run

    def failing(self: Scope, *args: Any, **options: Any) -> Any:
        ran.append(bool(self.needless))
        if self.needless:
            cause = ValueError("cannot leave anything out")
            raise crosscheck.errors.SideFailed(
                "reference", None, stage="forward", framework="torch", cause=cause
            )
        return run(self, *args, **options)

    monkeypatch.setattr(Scope, "run", failing)
    torch.manual_seed(0)
    report = crosscheck.check(Net(), Net(1e-3), {"x": "float32[5,7]"}, blind_spots=False)
    assert report.verdict == "diverge"
    assert report.first_divergence is not None
    assert report.first_divergence.reference == "blocks.2.norm"
    assert ran[0] and not all(ran)
