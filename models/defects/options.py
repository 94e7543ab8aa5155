"""Mistakes beside a model: in the candidate's own loss or optimizer, an option of the check."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from crosscheck.results import Report, SiteResult
from models.defects.rows import Planted

__all__ = ["Option", "in_the_loss", "in_the_step", "rows_of"]


@dataclass(frozen=True)
class Option:
    """A right model with a wrong loss or optimizer.

    Attributes:
        number: of the row.
        family, candidate: whose pair is checked.
        what: the mistake, for the reader.
        options: seed -> further arguments of the check; makes what is stateful anew.
        located: whether the report blames the loss, or the step, and nothing else.
        names: what a verified cause may be called.
    """

    number: int
    family: str
    candidate: str
    what: str
    options: Callable[[int], Mapping[str, Any]]
    located: Callable[[Report], bool]
    names: frozenset[str]

    def check(self, seed: int) -> Report:
        from crosscheck.pair import load_pair
        from scripts.planted_defects import MODELS

        pair = load_pair(MODELS / self.family)
        return pair.check(self.candidate, seed=seed, **self.options(seed))


def rows_of(plants: Iterable[Option]) -> tuple[Planted, ...]:
    """Those whose candidate's framework is installed, as the list of mistakes takes them."""
    from scripts.planted_defects import installed

    return tuple(
        Planted(
            p.number,
            p.candidate,
            f"{p.family}-{p.candidate}-{p.what}",
            p.check,
            p.located,
            p.names,
        )
        for p in plants
        if installed(p.candidate)
    )


def in_the_loss(*phases: str) -> Callable[[Report], bool]:
    """The loss is blamed, in exactly these phases, and everything else agrees."""
    return functools.partial(_loss_alone, set(phases))


def _loss_alone(phases: set[str], report: Report) -> bool:
    blamed = {(d.phase, d.candidate) for d in report.divergences}
    others = (s for s in report.sites if s.phase != "loss" and s.reference.split(":")[0] != "loss")
    return blamed == {(phase, "loss") for phase in phases} and _agree(others)


def in_the_step(step: int, parameters: str = "") -> Callable[[Report], bool]:
    """The first wrong update is in this step, and everything else agrees.

    Args:
        parameters: ``"vectors"``: biases and what norms hold are wrong, all of them, and no matrix;
            default: any parameter may be.
    """
    return functools.partial(_update_alone, step, parameters)


def _update_alone(step: int, parameters: str, report: Report) -> bool:
    first = report.first_divergence
    if first is None or (first.phase, first.step) != ("update", step):
        return False
    updates = [s for s in report.sites if s.phase == "update"]
    wrong = {s.reference for s in updates if s.verdict == "diverge"}
    vectors = {s.reference for s in updates if len(s.shape) < 2}
    others = (s for s in report.sites if s.phase != "update" or s.step < step)
    return (not parameters or wrong == vectors) and _agree(others)


def _agree(sites: Iterable[SiteResult]) -> bool:
    return all(s.verdict == "agree" for s in sites)
