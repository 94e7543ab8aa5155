"""Mistakes in the candidate's optimizer or training are found at the parameter, in the phase, at
the step where they show, and named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import crosscheck
from crosscheck import Report
from tests.check.numpy_models import Stack
from tests.check.torch_models import Mlp

from . import wrong

DECAY = "adamw(1e-3, weight_decay=0.1, exclude='biases and norms')"


def run(reference: Any, candidate: Any, steps: int = 1, **options: Any) -> Report:
    return crosscheck.check(
        Mlp(), Stack(), "float32[5,6]", optimizer=(reference, candidate), steps=steps, **options
    )


ROWS: dict[str, tuple[Any, Any, int, str, int]] = {
    "64 eps before the bias correction": (
        "adam(1e-3)", lambda: wrong.Adam(eps_early=True), 1,
        "eps is added before the bias correction instead of after it", 1,
    ),
    "64 another eps": (
        "adam(1e-3, eps=1e-6)", lambda: wrong.Adam(), 1, "eps 1e-08 instead of 1e-06", 1,
    ),
    "65 no bias correction": (
        "adam(1e-3)", lambda: wrong.Adam(correct=False), 2, "no bias correction", 1,
    ),
    "66 eps inside the root": (
        "rmsprop(1e-2, rho=0.9, eps=1e-6)",
        lambda: wrong.RmsProp(1e-2, 0.9, 1e-6, inside=True, start=0.0), 1,
        "eps is added inside the root", 1,
    ),
    "66 another initial accumulator": (
        "rmsprop(1e-2, rho=0.9)", lambda: wrong.RmsProp(1e-2, 0.9, 1e-8, inside=False, start=1.0),
        1, "the accumulator starts at 1 instead of 0", 1,
    ),
    "67 decay by lambda": (
        "adamw(1e-3, weight_decay=0.01)", lambda: wrong.Adam(decay=0.01, decay_by=""), 1,
        "weight decay by λ instead of learning rate · λ", 1,
    ),
    "68 nothing excluded": (
        DECAY, lambda: wrong.Adam(decay=0.1), 1,
        "weight decay acts on this parameter, which is on the exclusion list", 1,
    ),
    "69 the rate inside the velocity": (
        "sgd(lr=[0.1, 0.01], momentum=0.9)",
        lambda: wrong.Sgd([0.1, 0.01], 0.9, lr_inside=True), 2,
        "the learning rate is inside the velocity: a change of it acts late", 2,
    ),
    "69 dampening": (
        "sgd(0.1, momentum=0.9, dampening=0.5)", lambda: wrong.Sgd([0.1], 0.9), 2,
        "no dampening", 2,
    ),
    "70 clipped one by one": (
        "sgd(0.1, clip_norm=0.5)", lambda: wrong.Sgd([0.1], clip=wrong.per_tensor(0.5)), 1,
        "each gradient is clipped by its own norm instead of the norm of all", 1,
    ),
    "gradients kept": (
        "sgd(0.1)", lambda: wrong.Sgd([0.1], keep=True), 2,
        "the gradients are not put back to zero: those of earlier steps are added", 2,
    ),
    "schedule ignored": (
        "sgd(step(0.1, every=1, factor=0.5))", lambda: wrong.Sgd([0.1]), 2,
        "the learning rate stays what it was at the first step", 2,
    ),
    "betas swapped": (
        "adam(1e-3, betas=(0.9, 0.99))", lambda: wrong.Adam(betas=(0.99, 0.9)), 2,
        "β₁ and β₂ are swapped", 2,
    ),
    "wrong way": (
        "sgd(0.1)", lambda: wrong.Sgd([-0.1]), 1,
        "the update has the wrong sign: the gradient is ascended", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_row(row: str) -> None:
    named, make, steps, statement, step = ROWS[row]
    report = run(named, make(), steps)
    assert report.verdict == "diverge"
    assert {d.phase for d in report.divergences} == {"update"}
    first = report.divergences[0]
    assert first.step == step
    assert all(s.verdict == "agree" for s in report.sites if s.step < step)
    if statement:
        assert (first.causes[0].statement, first.causes[0].verified) == (statement, True)


def test_row_70_norm_plus_a_millionth() -> None:
    clip = wrong.by_global_norm(1e-4, 1e-6)
    small = {"loss": "0.001 * cross_entropy", "targets": "int64[5] 0..3"}
    report = run("sgd(0.1, clip_norm=1e-4)", wrong.Sgd([0.1], clip=clip), **small)
    assert {d.phase for d in report.divergences} == {"update"} and len(report.divergences) == 8
    cause = report.divergences[0].causes[0]
    assert cause.verified and cause.statement == "the clipping factor divides by the norm + 1e-06"
    clip = wrong.by_global_norm(1e-4)
    assert run("sgd(0.1, clip_norm=1e-4)", wrong.Sgd([0.1], clip=clip), **small).verdict == "agree"


def test_constants_in_float32_are_rounding() -> None:
    """1 - β₂ᵗ loses a hundred times what β₂ loses when it is stored in float32."""
    betas = (np.float32(0.9), np.float32(0.999))
    for text, honest in (
        ("adam(1e-3)", wrong.Adam(betas=betas)),
        ("adamw(1e-3, weight_decay=0.1)", wrong.Adam(betas=betas, decay=0.1)),
    ):
        report = run(text, honest, 3)
        assert report.verdict == "agree", str(report)
    apart = wrong.Adam(1.001e-3, betas=betas)
    assert run("adam(1e-3)", apart, explain=False).verdict == "diverge"
