"""Discontinuities: a flip within rounding is a tie, counted and left out; one with a margin is a
bug, ties beside it or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crosscheck import Report
from crosscheck.judging.ties import ties_among

from .kit import Case, assert_agrees, assert_found

T = torch.Tensor
ROWS, WIDTH, UNITS = 24, 40, 12


def tied(report: Report) -> int:
    return sum(any(note.startswith("tie:") for note in s.notes) for s in report.sites)


def numbers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    w = rng.normal(size=(WIDTH, UNITS)).astype(np.float32)
    # The first two units differ by less than the rounding of either.
    w[:, 0] *= 4
    w[:, 1] = w[:, 0] * (1 + 6e-8 * rng.normal(size=WIDTH).astype(np.float32))
    return x, w


X, W = numbers()
WEIGHT = {"w": torch.from_numpy(W)}


def backwards(x: T, w: T) -> T:
    """The same product, summed from the other end and in halves."""
    h = WIDTH // 2
    return x[:, h:].flip(1) @ w[h:].flip(0) + x[:, :h].flip(1) @ w[:h].flip(0)


PRODUCTS = torch.matmul, backwards


def off_by_one_row(choice: Any) -> Any:
    def layer(x: T, w: T) -> Any:
        z = x @ w
        return choice(torch.cat([z[:1].flip(1), z[1:]]))

    return layer


def argmax(z: T) -> tuple[T, T]:
    return z.argmax(-1), z.mean(-1)


def top_two(z: T) -> tuple[T, T]:
    found = z.topk(2)
    return found.indices, found.values


def brought_to(value: float) -> dict[str, T]:
    """A bias that brings one unit of some rows to where one order of summation gives ``value``
    and the other a little more."""
    x, w = torch.from_numpy(X), torch.from_numpy(W)
    one, other = x @ w, backwards(x, w)
    b = torch.full((UNITS,), 0.3)
    for unit in range(2, UNITS):
        rows = (one[:, unit] != other[:, unit]).nonzero()[:, 0]
        if len(rows):
            b[unit] = value - torch.minimum(one, other)[rows[0], unit]
    return {**WEIGHT, "b": b}


def pooled(z: T) -> tuple[T, T]:
    values, indices = F.max_pool1d(z[:, None], 2, return_indices=True)
    return indices, values


def float8(z: T) -> T:
    cast = z.detach().to(torch.float32).to(torch.float8_e4m3fn).to(z.dtype)
    return z + (cast - z).detach()


def after(choice: Any, product: Any) -> Any:
    return lambda x, w, *b: choice(product(x, w) + (b[0] if b else 0))


def argmax_of_one_row(z: T) -> tuple[T, T]:
    """One number, of the first row in which the two products have it elsewhere."""
    both = [product(*map(torch.from_numpy, (X, W))).argmax(-1) for product in PRODUCTS]
    return z[(both[0] != both[1]).nonzero()[0, 0]].argmax(), z.mean()


CASES: dict[str, tuple[Any, dict[str, T], Any]] = {
    "argmax": (argmax, WEIGHT, off_by_one_row(argmax)),
    "one number": (argmax_of_one_row, WEIGHT, lambda x, w: argmax_of_one_row((x @ w).flip(1))),
    "top two": (top_two, WEIGHT, off_by_one_row(top_two)),
    "relu": (torch.relu, brought_to(0.0), lambda x, w, b: F.leaky_relu(x @ w + b, 1e-4)),
    "max pool": (pooled, WEIGHT, off_by_one_row(pooled)),
    "float8": (
        float8,
        brought_to(1.0625),  # between 1 and 1.125
        lambda x, w, b: float8(x @ w + b + 0.2 * (torch.arange(UNITS) == 1)),
    ),
}


def case(name: str) -> Case:
    choice, weights, wrong = CASES[name]
    return Case(
        inputs=X,
        reference=after(choice, torch.matmul),
        honest={"backwards": after(choice, backwards)},
        wrong={"wrong": wrong},
        weights=weights,
    )


@pytest.mark.parametrize("name", CASES)
def test_a_flip_within_rounding_is_a_tie_and_reported(name: str) -> None:
    one = case(name)
    report = one.check(one.honest["backwards"])
    assert_agrees(report)
    assert tied(report), "nothing flipped: the test shows nothing"


@pytest.mark.parametrize("name", CASES)
def test_a_flip_with_a_margin_is_a_bug(name: str) -> None:
    one = case(name)
    assert_found(one.check(one.wrong["wrong"]))


def test_a_mistake_beside_ties_of_the_reference_is_seen() -> None:
    """One flip of the reference's own would be a floor under which much could hide."""
    one = case("float8")
    report = one.check(lambda x, w, b: float8(x @ w + b) * (1 + 1e-4))
    assert_found(report)


def beside_float8(product: Any, two: Any = lambda z: z) -> Any:
    """Units in float8 that flip, and the first two, which do not: ``two`` makes these."""

    def layer(x: T, w: T, b: T) -> T:
        z = product(x, w) + b
        return torch.cat([two(z[:, :2]), float8(z[:, 2:])], 1)

    return layer


@pytest.mark.parametrize(
    ("two", "verdict", "note"),
    [
        (lambda z: z, "agree", ""),
        # In float64 neither is there; an ulp moves both of them less than a flip does.
        (lambda z: z if z.dtype == torch.float64 else z.bfloat16().float(), "diverge", "lower"),
        (lambda z: z * (1 + 3e-6), "diverge", "it stays in float64"),
    ],
)
def test_what_stands_beside_ties_is_settled_without_them(two: Any, verdict: str, note: str) -> None:
    """A flip vanishes in float64 and is redrawn by an ulp: that says nothing of other elements."""
    one = Case(X, beside_float8(torch.matmul), {}, {}, case("float8").weights, {"gradients": False})
    report = one.check(beside_float8(backwards, two))
    layer = next(s for s in report.sites if s.reference == "layer" and s.kind == "activation")
    assert layer.verdict == verdict, f"{report}"
    assert tied(report) and note in " ".join(layer.notes)


@pytest.mark.parametrize(
    ("draws", "held", "ties"),
    [
        ([0, 5, 0, 5, 5, 0], 5, True),
        ([0, 5, 0, 5, 5, 0], 3, False),  # a value that the oracle never takes
        ([0, 5, 0, 9, 5, 9], 9, True),
        ([0, 1, 2, 3, 4, 5], 5, False),  # moves, and does not jump
        ([-9, 14, 30, -25, 8, 51], 8, False),  # ill-conditioned
        ([0, 0, 0, 0, 0, 0], 5, False),
    ],
)
def test_a_tie_is_a_jump_between_a_few_values(draws: Any, held: float, ties: bool) -> None:
    values = [np.array([float(d)]) for d in draws]
    found = ties_among((np.array([float(held)]),), np.zeros(1), values, near=0.1)
    assert bool(found[0]) is ties
