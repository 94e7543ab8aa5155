"""The checks of an audit, by name, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crosscheck.auditing.results import Severity
from crosscheck.auditing.subject import Subject

__all__ = ["CHECKS", "Check", "Failure", "Looked", "Skip", "check"]


@dataclass(frozen=True)
class Failure:
    """What a check found to be the matter; ``severity`` None: the check's own."""

    statement: str
    tensor: str = ""
    number: float | None = None
    severity: Severity | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Looked:
    """A check that passed, and what it saw."""

    statement: str
    number: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skip:
    """A check that could not be made, and why."""

    reason: str


NO_LOSS = "the loss is NaN, and shows nothing"
NO_GRADIENT = "the gradients hold NaN or Inf, and show nothing"
Outcome = Failure | Looked | Skip


@dataclass(frozen=True)
class Check:
    """A check: its name, its default severity, what it does."""

    name: str
    severity: Severity
    function: Callable[[Subject], Outcome]
    needs_loss: bool
    statement: str


CHECKS: dict[str, Check] = {}


def check(
    severity: Severity, *, needs_loss: bool = False
) -> Callable[[Callable[[Subject], Outcome]], Callable[[Subject], Outcome]]:
    """Register a function as a check under its own name; its docstring says what it looks for."""

    def add(function: Callable[[Subject], Outcome]) -> Callable[[Subject], Outcome]:
        name = function.__name__
        line = (function.__doc__ or "").strip().partition("\n")[0]
        CHECKS[name] = Check(name, severity, function, needs_loss, line)
        return function

    return add
