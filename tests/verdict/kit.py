"""What the tests of the verdict share: one layer, written twice, inside a small net."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import crosscheck
from crosscheck import Report

Function = Callable[..., Any]


class Layer(nn.Module):
    """A function as a layer, so that it is a site."""

    def __init__(self, function: Function, **weights: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in weights.items():
            setattr(self, name, nn.Parameter(value.clone()))

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs, *self.parameters())


class Net(nn.Module):
    """The layer, with a site behind it that is innocent whatever happens."""

    def __init__(self, function: Function, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.layer = Layer(function, **weights)
        self.after = Layer(_after)

    def forward(self, *inputs: Any) -> Any:
        return self.after(self.layer(*inputs))


def _after(*values: Any) -> Any:
    return tuple(2 * v for v in values) if len(values) > 1 else 2 * values[0]


@dataclass(frozen=True)
class Case:
    """A layer, honest rewrites of it, and small mistakes."""

    inputs: Any
    reference: Function
    honest: Mapping[str, Function]
    wrong: Mapping[str, Function]
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def check(self, function: Function, *, seed: int = 0) -> Report:
        """Check the layer with ``function`` in its place."""
        sides = (Net(self.reference, self.weights), Net(function, self.weights))
        fixed = {"explain": False, "weights": "keep", "seed": seed}
        return crosscheck.check(*sides, self.inputs, **{**fixed, **self.options})


def blamed(report: Report) -> set[str | None]:
    """The layers of the reference that anything is said against."""
    return {d.reference and re.split("[.:]", d.reference)[0] for d in report.divergences}


def assert_agrees(report: Report) -> None:
    assert report.verdict == "agree", f"{report}\n{notes(report)}"
    assert report.coverage.aligned >= 3, report.coverage


def assert_found(report: Report) -> None:
    assert report.verdict != "agree", "the mistake was not found"
    assert blamed(report) == {"layer"}, f"{report}"


def notes(report: Report) -> list[Any]:
    return [(s.phase, s.kind, s.reference, s.ratio, s.notes) for s in report.sites if s.notes]
