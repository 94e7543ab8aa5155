"""What the tests of `check` share: short forms of a report, and ways to plant defects."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import crosscheck
from crosscheck import Report

Change = Callable[[Any], Any]
Run = tuple[str, bool, bool]
"""Side, in float64, with a backward pass."""


def run(reference: Any, candidate: Any, inputs: Any = "float32[5,6]", **options: Any) -> Report:
    return crosscheck.check(reference, candidate, inputs, **options)


def found(report: Report) -> list[tuple[str, str | None, str | None]]:
    """(phase, reference, candidate) of every divergence, in order."""
    return [(d.phase, d.reference, d.candidate) for d in report.divergences]


def forward(report: Report) -> list[tuple[str | None, str | None]]:
    """(reference, candidate) of the forward divergences."""
    return [(r, c) for phase, r, c in found(report) if phase == "forward"]


def backward(report: Report) -> list[tuple[str | None, str | None]]:
    return [(r, c) for phase, r, c in found(report) if phase == "backward"]


def gradients(report: Report) -> list[tuple[str | None, str | None]]:
    return [(r, c) for phase, r, c in found(report) if phase == "parameter_gradient"]


def wrong(report: Report, phase: str) -> set[str]:
    """Reference names of the sites of a phase that do not agree."""
    return {s.reference for s in report.sites if s.phase == phase and s.verdict != "agree"}


def agrees(report: Report) -> bool:
    """No divergence, nothing suspect, and something was compared."""
    assert report.verdict == "agree", str(report)
    assert report.first_divergence is None
    assert report.coverage.aligned > 0
    return True


def replace(layer: Any, method: str, function: Callable[..., Any]) -> None:
    """Put ``function(layer, original, *args)`` in the place of a method of one instance."""
    original = getattr(layer, method)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, original, *args, **kwargs)

    setattr(layer, method, types.MethodType(call, layer))


def scaled(factor: float) -> Callable[..., Any]:
    """A method whose result is off by a factor."""

    def scale(self: Any, original: Any, value: Any) -> Any:
        result = original(value)
        return result * type(result.flat[0])(factor) if hasattr(result, "flat") else result * factor

    return scale
