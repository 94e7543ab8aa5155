"""Hard cases in float32: every honest rewrite agrees, every small mistake is found at its layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from .kit import Case, assert_agrees, assert_found

T = torch.Tensor
LOG2_E = math.log2(math.e)
RNG = np.random.default_rng(0)


def normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    return (mean + std * RNG.normal(size=shape)).astype(np.float32)


def weights(n: int) -> dict[str, T]:
    return {"g": torch.from_numpy(normal(n, mean=1, std=0.2)), "b": torch.from_numpy(normal(n))}


# -- normalisation: ill-conditioned at a large mean, dominated by eps at a small deviation --------


def two_pass(x: T, axes: tuple[int, ...]) -> T:
    d = x - x.mean(axes, keepdim=True)
    return (d * d).mean(axes, keepdim=True)


def one_pass(x: T, axes: tuple[int, ...]) -> T:
    return (x * x).mean(axes, keepdim=True) - x.mean(axes, keepdim=True) ** 2


def norm(variance: Any, eps: float = 1e-5, *, axes: tuple[int, ...] = (-1,), folded: bool = False):  # type: ignore[no-untyped-def]
    def layer(x: T, g: T, b: T) -> T:
        if x.ndim == 4:
            g, b = g[:, None, None], b[:, None, None]
        scale = g / torch.sqrt(variance(x, axes) + eps)
        mean = x.mean(axes, keepdim=True)
        return x * scale + (b - mean * scale) if folded else (x - mean) * scale + b

    return layer


def unbiased(x: T, axes: tuple[int, ...]) -> T:
    n = math.prod(x.shape[a] for a in axes)
    return two_pass(x, axes) * (n / (n - 1))


def layer_norm(mean: float, std: float, wrong_eps: float, *, one: bool = True) -> Case:
    formulas = {
        "own": norm(two_pass),
        "folded": norm(two_pass, folded=True),
        "rsqrt": lambda x, g, b: (
            (x - x.mean(-1, keepdim=True)) * torch.rsqrt(two_pass(x, (-1,)) + 1e-5) * g + b
        ),
    }
    if one:
        formulas |= {
            "one pass": norm(one_pass),
            "one pass, folded": norm(one_pass, folded=True),
        }
    return Case(
        inputs=normal(16, 96, mean=mean, std=std),
        reference=lambda x, g, b: F.layer_norm(x, (96,), g, b, 1e-5),
        honest=formulas,
        wrong={"eps": norm(two_pass, wrong_eps), "unbiased": norm(unbiased)},
        weights=weights(96),
    )


def bias_before(norm_layer: Any) -> Case:
    """The bias's true gradient is zero: what arrives is rounding, and differs by all of itself."""

    def layer(x: T, w: T, b: T) -> T:
        return norm_layer(x @ w + b)

    n = 24
    by_hand = norm(two_pass, axes=(0,))
    return Case(
        inputs=normal(64, n),
        reference=lambda x, w, b: F.batch_norm(x @ w + b, None, None, training=True),
        honest={
            "by hand": lambda x, w, b: by_hand(x @ w + b, torch.ones(()), torch.zeros(())),
            "transposed": lambda x, w, b: layer((w.mT @ x.mT).mT, torch.eye(n, dtype=x.dtype), b),
        },
        wrong={
            "bias behind": lambda x, w, b: norm_layer(x @ w) + b,
            "bias twice, half behind": lambda x, w, b: norm_layer(x @ w + b) + 1e-4 * b,
        },
        weights={
            "w": torch.from_numpy(normal(n, n)) / n**0.5,
            "b": torch.from_numpy(normal(n)),
        },
    )


def batch_norm(mean: float, std: float) -> Case:
    axes = (0, 2, 3)

    def reference(x: T, g: T, b: T) -> T:
        return F.batch_norm(x, None, None, g, b, training=True, eps=1e-5)

    return Case(
        inputs=normal(4, 6, 9, 11, mean=mean, std=std),
        reference=reference,
        honest={
            "two passes": norm(two_pass, axes=axes),
            "one pass": norm(one_pass, axes=axes),
            "folded": norm(two_pass, axes=axes, folded=True),
            "one pass, folded": norm(one_pass, axes=axes, folded=True),
        },
        wrong={
            "eps": norm(two_pass, 1e-3, axes=axes),
            "unbiased": norm(unbiased, axes=axes),
            "statistics are constants": lambda x, g, b: (
                (x - x.mean(axes, keepdim=True).detach())
                / torch.sqrt(two_pass(x, axes).detach() + 1e-5)
                * g[:, None, None]
                + b[:, None, None]
            ),
        },
        weights=weights(6),
    )


# -- sums of many terms ----------------------------------------------------------------------------


def naive(x: T) -> T:
    """One term after the other; a scan's gradient is exact, so only the forward sum is naive."""
    exact = x.sum(-1)
    if x.dtype == torch.float64:
        return exact
    scan = torch.from_numpy(
        np.add.accumulate(x.detach().numpy(), axis=-1, dtype=np.float32)[..., -1]
    )
    return exact + (scan - exact).detach()


def sums(n: int, mean: float) -> Case:
    return Case(
        inputs=normal(1, n, mean=mean),
        reference=lambda x: x.sum(-1),
        honest={
            "naive": naive,
            "backwards": lambda x: naive(x.flip(-1)),
            "blocks of 64": lambda x: naive(naive(x.reshape(1, -1, 64))),
            "eight lanes": lambda x: naive(x.reshape(1, -1, 8).swapaxes(1, 2)).sum(-1),
            "a product": lambda x: x @ torch.ones(n, dtype=x.dtype),
        },
        wrong={
            "1 % of the terms missing": lambda x: x[:, n // 100 :].sum(-1),
            "factor": lambda x: x.sum(-1) * 1.001,
        },
    )


# -- softmax and masks -----------------------------------------------------------------------------


def saturated(scale: float) -> Case:
    def by_hand(x: T) -> T:
        e = torch.exp(x - x.amax(-1, keepdim=True))
        return e / e.sum(-1, keepdim=True)

    def base_two(x: T) -> T:
        total = torch.logsumexp(x, -1, keepdim=True)
        return torch.exp2(x * LOG2_E - total * LOG2_E)

    return Case(
        inputs=normal(20, 30, std=scale),
        reference=lambda x: torch.softmax(x, -1),
        honest={
            "by hand": by_hand,
            "through logarithms": lambda x: torch.exp(torch.log_softmax(x, -1)),
            "base two": lambda x: (
                torch.softmax(x, -1)
                if x.dtype == torch.float64
                else torch.exp2(
                    x * 1.4426950408889634
                    - torch.logsumexp(x, -1, keepdim=True) * 1.4426950408889634
                )
            ),
        },
        # One-hot to the last bit, a temperature changes nothing.
        wrong={"other axis": lambda x: torch.softmax(x, 0)}
        | ({"temperature": lambda x: torch.softmax(x * 1.0002, -1)} if scale < 1000 else {}),
    )


def attend(fill: float, mask: T) -> Any:
    def layer(x: T) -> T:
        scores = (x @ x.mT).masked_fill(~mask, fill)
        return torch.nan_to_num(torch.softmax(scores, -1)) @ x

    return layer


def attend_by_adding(fill: float, mask: T) -> Any:
    added = torch.zeros(mask.shape).masked_fill(~mask, fill)
    return lambda x: torch.softmax(x @ x.mT + added.to(x.dtype), -1) @ x


def attend_and_clear(fill: float, mask: T) -> Any:
    nothing = ~mask.any(-1, keepdim=True)

    def layer(x: T) -> T:
        p = torch.softmax((x @ x.mT).masked_fill(~mask, -1e9), -1)
        return p.masked_fill(nothing, 0.0 if fill == -math.inf else 1 / 8) @ x

    return layer


CAUSAL = torch.ones(8, 8, dtype=torch.bool).tril()
STRICT = CAUSAL.tril(-1)  # the first row sees nothing


def masked(fill: float, mask: T) -> Case:
    honest = {"rows of nothing are set": attend_and_clear(fill, mask)}
    if mask is CAUSAL:
        honest |= {f"{f}": attend(f, mask) for f in (-1e9, -math.inf, -3.4e38)}
        honest["added"] = attend_by_adding(fill, mask)
    return Case(
        inputs=normal(3, 8, 16, std=0.7),
        reference=attend(fill, mask),
        honest=honest,
        wrong={
            "off by one": attend(fill, STRICT if mask is CAUSAL else CAUSAL),
            "leaks": attend(-3.0, mask),
        },
    )


CASES = {
    "layer norm": layer_norm(0, 1, 1e-6),
    "layer norm, std 0.02": layer_norm(0, 0.02, 1.1e-5),
    "layer norm, std 1e-3": layer_norm(0, 1e-3, 1.01e-5),
    "layer norm, mean 30 std 1": layer_norm(30, 1, 1e-3),
    "layer norm, mean 300 std 1": layer_norm(300, 1, 1e-1),
    "layer norm, mean 10 std 0.01": layer_norm(10, 0.01, 3e-4),
    "batch norm": batch_norm(0, 1),
    "batch norm, std 1e-3": batch_norm(0, 1e-3),
    "batch norm, mean 50 std 1": batch_norm(50, 1),
    "bias before batch norm": bias_before(lambda z: F.batch_norm(z, None, None, training=True)),
    "sum of 2^12": sums(2**12, 0.0),
    "sum of 2^20": sums(2**20, 0.0),
    "sum of 2^20, biased": sums(2**20, 0.5),
    "softmax": saturated(1),
    "softmax, saturated": saturated(40),
    "softmax, one-hot": saturated(1000),
    "mask of -inf": masked(-math.inf, CAUSAL),
    "mask of -1e9": masked(-1e9, CAUSAL),
    "mask of -inf, a row of nothing": masked(-math.inf, STRICT),
    "mask of -1e9, a row of nothing": masked(-1e9, STRICT),
}  # fmt: skip


def named(kind: str) -> list[Any]:
    """(case, function) of every case; the largest ones are slow but for one function each."""
    found = []
    for name, case in CASES.items():
        for i, function in enumerate(getattr(case, kind)):
            slow = [pytest.mark.slow] if "2^20" in name and i else []
            found.append(pytest.param(name, function, marks=slow))
    return found


@pytest.mark.parametrize(("name", "rewrite"), named("honest"))
def test_an_honest_rewrite_agrees(name: str, rewrite: str) -> None:
    case = CASES[name]
    assert_agrees(case.check(case.honest[rewrite]))


@pytest.mark.parametrize(("name", "mistake"), named("wrong"))
def test_a_small_mistake_is_found_at_its_layer(name: str, mistake: str) -> None:
    case = CASES[name]
    assert_found(case.check(case.wrong[mistake]))
