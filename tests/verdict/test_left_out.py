"""Runs that leave layers out: what they must not miss, and how little a divergence then costs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import crosscheck
from crosscheck.judging.perturb import BLOCK, Moved

T = torch.Tensor
WIDTH, DEPTH = 24, 6


# -- a parameter that a layer uses without owning it -----------------------------------------------


class Head(nn.Module):
    """Logits by the weights of another layer, which nobody can see it use."""

    def __init__(self, words: nn.Embedding, *, detach: bool) -> None:
        super().__init__()
        self.held, self.norm, self.detach = [words], nn.LayerNorm(8), detach

    def forward(self, x: T) -> T:
        weight = self.held[0].weight
        return self.norm(x) @ (weight.detach() if self.detach else weight).t()


class Tied(nn.Module):
    def __init__(self, *, detach: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.mix = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.head = Head(self.words, detach=detach)
        if scale != 1.0:
            self.words.weight.register_hook(lambda g: g * scale)

    def forward(self, ids: T) -> T:
        return 1.0 * self.head(torch.tanh(self.mix(self.words(ids))))


@pytest.mark.parametrize("defect", [{"detach": True}, {"scale": 1.01}])
def test_the_gradient_of_a_weight_used_unseen_is_not_taken_for_ill_conditioned(
    defect: dict[str, Any],
) -> None:
    ids = np.arange(10).reshape(2, 5)
    assert crosscheck.check(Tied(), Tied(), {"ids": ids}, blind_spots=False).verdict == "agree"
    report = crosscheck.check(Tied(), Tied(**defect), {"ids": ids}, blind_spots=False)
    first = report.first_divergence
    assert first is not None
    assert (first.phase, first.reference) == ("parameter_gradient", "words.weight")


# -- what a divergence costs -----------------------------------------------------------------------


class Counted(nn.Linear):
    """A layer that counts how often it is computed."""

    calls: Counter[str] = Counter()
    side = ""

    def forward(self, x: T) -> T:
        Counted.calls[self.side] += 1
        return super().forward(x)


class Block(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(WIDTH, eps=eps), Counted(WIDTH, WIDTH)

    def forward(self, x: T) -> T:
        return x + torch.tanh(self.up(self.norm(x)))


def net(side: str, wrong: float = 1e-5) -> nn.Module:
    """``wrong``: eps of the third block's norm."""
    torch.manual_seed(0)
    blocks = nn.Sequential(*(Block(wrong if i == 2 else 1e-5) for i in range(DEPTH)))
    for module in blocks.modules():
        if isinstance(module, Counted):
            module.side = side
    return nn.Sequential(nn.Linear(7, WIDTH), blocks)


def test_innocent_layers_are_computed_a_few_times_only() -> None:
    Counted.calls.clear()
    sides = net("reference"), net("candidate", 1e-3)
    report = crosscheck.check(*sides, {"x": "float32[5,7]"}, blind_spots=False)
    first = report.first_divergence
    assert first is not None
    assert first.reference == "1.2.norm"
    assert first.causes[0].verified
    # The free run, the oracle forced and free, and the free run on fresh inputs.
    assert Counted.calls["reference"] == 4 * DEPTH
    assert Counted.calls["candidate"] <= 5 * DEPTH


# -- noise -----------------------------------------------------------------------------------------


def test_noise_is_of_the_value_wherever_it_stands() -> None:
    values = np.random.default_rng(0).standard_normal(2 * BLOCK + 3).astype(np.float32)
    key = ("activation", "a")
    moved = Moved({key: values}, 3)[key]  # type: ignore[dict-item, index]
    for part in (slice(0, 7), slice(BLOCK - 2, BLOCK + 2), slice(2 * BLOCK, None)):
        alone = Moved({key: values[part]}, 3)[key]  # type: ignore[dict-item, index]
        np.testing.assert_array_equal(moved[part], alone)
    size = (moved - values) / values.astype(np.float64)
    assert size.std() == pytest.approx(2.0**-24, rel=0.02)
    assert abs(size.mean()) < 2.0**-24 / 50


def test_a_number_stays_a_number() -> None:
    key = ("input", "scale")
    moved = Moved({key: np.float32(3.0).reshape(())}, 0)[key]  # type: ignore[dict-item, index]
    assert moved.shape == () and moved.dtype == np.float64 and moved != 3.0


def test_what_is_not_near_is_put_in_as_it_is() -> None:
    values: Any = {("input", "a"): np.ones(3, np.float32), ("input", "b"): np.ones(3, np.float32)}
    moved = Moved(values, 0, only=frozenset({("input", "a")}))
    assert (moved["input", "a"] != 1.0).all()
    np.testing.assert_array_equal(moved["input", "b"], 1.0)
