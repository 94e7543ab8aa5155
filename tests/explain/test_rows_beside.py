"""Mistakes in the candidate's own loss and optimizer: found, blamed on them alone, and named."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from crosscheck.pair import load_pair  # noqa: E402
from models.defects import losses, optimizers  # noqa: E402
from models.defects.options import Option, in_the_loss, in_the_step  # noqa: E402
from models.defects.rows import Planted, planted  # noqa: E402
from scripts.planted_defects import MODELS  # noqa: E402
from scripts.porting_rows import mark  # noqa: E402

ROWS = (*losses.ROWS, *optimizers.ROWS)
QUICK = [one for one in ROWS if one.adapter == "numpy"]
OTHERS = [one for one in ROWS if one.adapter != "numpy"]


def require(one: Planted) -> None:
    marked = mark(one, 0)
    assert marked.found and marked.located, marked
    assert not marked.wrong, [cause.statement for cause in marked.wrong]
    assert marked.right is not None, marked.causes


@pytest.mark.parametrize("one", QUICK, ids=lambda one: f"{one.number} {one.where}")
def test_a_row_by_hand(one: Planted) -> None:
    require(one)


@pytest.mark.slow
@pytest.mark.parametrize("one", OTHERS, ids=lambda one: f"{one.number} {one.where}")
def test_a_row_in_another_framework(one: Planted) -> None:
    require(one)


def test_every_row_of_losses_and_optimizers_is_planted_by_hand() -> None:
    rows = {56, 57, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70}
    assert {one.number for one in QUICK} == rows
    listed = {one.where for one in planted(rows, per="row")}
    assert {one.where for one in ROWS} <= listed


def beside(number: int) -> Option:
    plants = (*losses.PLANTS, *optimizers.PLANTS)
    return next(p for p in plants if (p.number, p.candidate) == (number, "numpy"))


def test_the_marks_can_fail() -> None:
    """A report of a wrong loss is not one of a wrong step, nor of a loss that differs less."""
    report = beside(63).check(0)
    assert in_the_loss("loss", "backward")(report)
    assert not in_the_loss("backward")(report)
    assert not in_the_step(1)(report)
    report = beside(69).check(0)
    assert in_the_step(2)(report)
    assert not in_the_step(1)(report)
    assert not in_the_step(2, "vectors")(report)
    assert not in_the_loss("loss")(report)


RIGHT = {
    "adamw(1e-3, weight_decay=0.01)": lambda: optimizers.Adam(decay=0.01),
    optimizers.RMSPROP: optimizers.RmsProp,
    optimizers.MOMENTUM: lambda: optimizers.Sgd(optimizers.RATES, 0.9),
}


@pytest.mark.parametrize("meant", RIGHT)
def test_without_its_mistake_an_optimizer_by_hand_agrees(meant: str) -> None:
    pair = load_pair(MODELS / optimizers.FAMILY)
    report = pair.check("numpy", optimizer=(meant, RIGHT[meant]()), steps=2)
    assert report.verdict == "agree", str(report)
    assert not in_the_step(1)(report) and not in_the_loss("loss")(report)
