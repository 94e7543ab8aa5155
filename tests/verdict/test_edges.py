"""Values at the edges: nothing, no axes, no digits left, no finite number, no float at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import crosscheck

from .kit import Case, Layer, assert_agrees, assert_found, notes

T = torch.Tensor
TINY = float(np.finfo(np.float32).tiny)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 5)).astype(np.float32)
MASK = torch.from_numpy((RNG.random((6, 5)) > 0.3).astype(np.float32))


def flushed(x: T) -> T:
    """As hardware that flushes subnormal numbers to zero holds it."""
    return x if x.dtype == torch.float64 else x * (x.abs() >= TINY)


def signed_zero(x: T) -> T:
    return torch.where(x > 0, x, torch.zeros_like(x))


def divided(x: T) -> T:
    return (x - x[:, :1]) / (x - x[:, :1]).square()  # 0 / 0 in the first column


def one_infinite(value: float, *index: int) -> Any:
    def layer(x: T) -> T:
        y = x * 2
        y = y.clone()
        y[index] = value
        return y

    return layer


def noisy(x: T, noise: T) -> T:
    return x + 0.1 * noise


CASES = {
    "subnormal": Case(
        inputs=(X * 1e-37).astype(np.float32),
        reference=lambda x: x * 1e30,
        honest={"flushes": lambda x: flushed(x) * 1e30, "otherwise": lambda x: x / 1e-30},
        wrong={
            "cuts more": lambda x: x * (x.abs() >= 9 * TINY) * 1e30,
            "scale": lambda x: x * 1.5e30,
        },
        options={"gradients": False},
    ),
    "made subnormal": Case(
        inputs=X,
        reference=lambda x: x * 1e-39,
        honest={"flushes": lambda x: flushed(x * 1e-39)},
        wrong={"not small": lambda x: x * 1e-35},
    ),
    "signs of zero": Case(
        inputs=np.where(np.arange(30).reshape(6, 5) % 3 == 0, 0.0, X).astype(np.float32),
        reference=lambda x: x * (x > 0),
        honest={"positive": signed_zero, "relu": torch.relu},
        wrong={"at zero": lambda x: torch.where(x >= 0, x + 1e-4 * (x == 0), 0.0)},
    ),
    "NaN in place": Case(
        inputs=X,
        reference=divided,
        honest={"otherwise": lambda x: (x - x[:, :1]) * (x - x[:, :1]).square().reciprocal()},
        wrong={
            "cleaned": lambda x: torch.nan_to_num(divided(x)),
            "elsewhere": lambda x: divided(x).flip(1),
            "scaled beside it": lambda x: divided(x) * 1.0001,
        },
        options={"gradients": False},
    ),
    "infinite": Case(
        inputs=X,
        reference=one_infinite(np.inf, 2, 1),
        honest={"same": lambda x: one_infinite(np.inf, 2, 1)(x + x - x)},
        wrong={
            "sign": one_infinite(-np.inf, 2, 1),
            "place": one_infinite(np.inf, 2, 2),
            "NaN": one_infinite(np.nan, 2, 1),
            "largest": one_infinite(3.4e38, 2, 1),
        },
        options={"gradients": False},
    ),
    "integers and booleans": Case(
        inputs=X,
        reference=lambda x: ((x > 0).sum(-1), x > 0.5, x),
        honest={"otherwise": lambda x: (torch.count_nonzero(x > 0, -1).int(), ~(x <= 0.5), x)},
        wrong={
            "off by one": lambda x: ((x > 0).sum(-1) + (x[:, 0] > 0).long(), x > 0.5, x),
            "another threshold": lambda x: ((x > 0).sum(-1), x > 0.3, x),
            "as a float": lambda x: ((x > 0).float().sum(-1), x > 0.5, x),
        },
    ),
    "a number": Case(
        inputs=X,
        reference=lambda x: x.square().mean(),
        honest={"in another order": lambda x: x.flip(0).square().sum() / x.numel()},
        wrong={"factor": lambda x: x.square().mean() * 1.00001},
    ),
    "nothing and something": Case(
        inputs=X,
        reference=lambda x: (x[:0], x * 2),
        honest={"otherwise": lambda x: (x[6:], x + x)},
        wrong={"scale": lambda x: (x[:0], x * 2.0001), "not empty": lambda x: (x[:1], x * 2)},
        options={"gradients": False},
    ),
    "dropout with a shared mask": Case(
        inputs=X,
        reference=lambda x: x * MASK.to(x.dtype) / 0.7,
        honest={"factor first": lambda x: x * (MASK.to(x.dtype) / 0.7)},
        wrong={
            "not rescaled": lambda x: x * MASK.to(x.dtype),
            "other mask": lambda x: x * MASK.flip(0).to(x.dtype) / 0.7,
        },
    ),
    "noise as an input": Case(
        inputs={"x": X, "noise": X[::-1].copy()},
        reference=noisy,
        honest={"otherwise": lambda x, noise: torch.add(x, noise, alpha=0.1)},
        wrong={"variance": lambda x, noise: x + 0.1001 * noise},
    ),
}  # fmt: skip


OF_ANOTHER_KIND = ("as a float", "not empty")


@pytest.mark.parametrize(("name", "rewrite"), [(n, r) for n, c in CASES.items() for r in c.honest])
def test_an_honest_rewrite_agrees(name: str, rewrite: str) -> None:
    case = CASES[name]
    assert_agrees(case.check(case.honest[rewrite]))


@pytest.mark.parametrize(("name", "mistake"), [(n, m) for n, c in CASES.items() for m in c.wrong])
def test_a_small_mistake_is_found_at_its_layer(name: str, mistake: str) -> None:
    case = CASES[name]
    report = case.check(case.wrong[mistake])
    if (
        mistake in OF_ANOTHER_KIND
    ):  # no layer holds a partner for it: seen where it leaves the model
        assert {d.site for d in report.divergences} >= {"output"}
    else:
        assert_found(report)


class Stochastic(torch.nn.Module):
    """Draws its noise; tapped, so that the candidate computes on the reference's."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.encode = Layer(lambda x: x * 3)
        self.scale = scale

    def forward(self, x: T) -> T:
        z = self.encode(x)
        noise = crosscheck.tap("noise", torch.randn_like(z))
        return z + self.scale * noise


def test_noise_that_is_drawn_is_shared_by_a_tap() -> None:
    class Other(Stochastic):
        def forward(self, x: T) -> T:
            torch.randn(3)  # its generator is elsewhere
            return super().forward(x)

    def check(scale: float) -> crosscheck.Report:
        return crosscheck.check(
            Stochastic(0.5), Other(scale), X, sites={"noise": "noise"}, explain=False
        )

    honest = check(0.5)
    assert {s.reference for s in honest.sites if s.verdict != "agree"} == {"noise"}, notes(honest)
    drawn = next(s for s in honest.sites if s.reference == "noise")
    assert "does something else in float64" in " ".join(drawn.notes)
    wrong = check(0.5001)
    assert "output" in {s.reference for s in wrong.sites if s.verdict != "agree"}


class NoFloat64(torch.autograd.Function):
    """A kernel as fused ones are: float32 or nothing."""

    @staticmethod
    def forward(ctx: Any, x: T, w: T) -> T:
        if x.dtype != torch.float32:
            raise RuntimeError(f"fused_linear: expected float32, got {x.dtype}")
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, *grads: T) -> Any:
        x, w = ctx.saved_tensors
        return grads[0] @ w.T, x.T @ grads[0]


FUSED = Case(
    inputs=RNG.normal(size=(16, 48)).astype(np.float32),
    reference=lambda x, w: F.layer_norm(NoFloat64.apply(x, w), (32,)),  # type: ignore[no-untyped-call]
    honest={
        "unfused": lambda x, w: F.layer_norm(x @ w, (32,)),
        "in halves": lambda x, w: F.layer_norm(x[:, 24:] @ w[24:] + x[:, :24] @ w[:24], (32,)),
    },
    wrong={
        "eps": lambda x, w: F.layer_norm(x @ w, (32,), eps=1e-2),
        "scale": lambda x, w: F.layer_norm(x @ w, (32,)) * 1.0001,
    },
    weights={"w": torch.from_numpy(RNG.normal(size=(48, 32)).astype(np.float32))},
)  # fmt: skip


@pytest.mark.parametrize("rewrite", FUSED.honest)
def test_a_reference_that_refuses_float64_has_a_floor_that_says_so(rewrite: str) -> None:
    report = FUSED.check(FUSED.honest[rewrite])
    assert_agrees(report)
    site = next(s for s in report.sites if s.phase == "forward" and s.reference == "layer")
    assert site.metrics is not None
    equal = site.metrics.max_abs == 0.0  # bit for bit: no floor is needed
    assert equal == (rewrite == "unfused")
    assert equal == ("the reference does not run in float64" not in " ".join(site.notes))


@pytest.mark.parametrize("mistake", FUSED.wrong)
def test_a_mistake_against_a_reference_that_refuses_float64(mistake: str) -> None:
    assert_found(FUSED.check(FUSED.wrong[mistake]))
