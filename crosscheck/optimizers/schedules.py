"""Learning rates that change: the rate of every step, counted from 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crosscheck.errors import InvalidArgument

__all__ = ["Constant", "Cosine", "Exponential", "Linear", "Listed", "Schedule", "Stepwise"]


@dataclass(frozen=True)
class Schedule:
    """The learning rate at every step.

    Attributes:
        lr: the rate that the schedule starts from (after the warm-up).
        warmup: so many steps lead up to it: the rate of step t ≤ warmup is lr · t / warmup.
    """

    lr: float
    warmup: int = 0

    def at(self, step: int) -> float:
        """The rate of ``step`` = 1, 2, ..."""
        if step <= self.warmup:
            return self.lr * step / self.warmup
        return self.after(step - 1 - self.warmup)

    def after(self, done: int) -> float:
        """The rate of the step before which ``done`` steps were made after the warm-up."""
        raise NotImplementedError

    @property
    def is_constant(self) -> bool:
        """Whether all steps have one rate."""
        return False


@dataclass(frozen=True)
class Constant(Schedule):
    """One rate for all steps."""

    def after(self, done: int) -> float:
        return self.lr

    @property
    def is_constant(self) -> bool:
        return self.warmup == 0


@dataclass(frozen=True)
class Cosine(Schedule):
    """final + (lr − final) · (1 + cos(π k / (total − warmup))) / 2 (Loshchilov & Hutter, SGDR,
    2017, eq. 5), then final."""

    total: int = 0
    final: float = 0.0

    def after(self, done: int) -> float:
        share = min(done / max(self.total - self.warmup, 1), 1.0)
        return self.final + (self.lr - self.final) * 0.5 * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from lr to final over the steps from warmup to total."""

    total: int = 0
    final: float = 0.0

    def after(self, done: int) -> float:
        share = min(done / max(self.total - self.warmup, 1), 1.0)
        return self.lr + (self.final - self.lr) * share


@dataclass(frozen=True)
class Stepwise(Schedule):
    """lr · factor^⌊k / every⌋."""

    every: int = 1
    factor: float = 0.1

    def after(self, done: int) -> float:
        return self.lr * self.factor ** (done // self.every)


@dataclass(frozen=True)
class Exponential(Schedule):
    """lr · factor^k."""

    factor: float = 0.9

    def after(self, done: int) -> float:
        return self.lr * self.factor**done


@dataclass(frozen=True)
class Listed(Schedule):
    """Rates one by one; the last one stays."""

    rates: tuple[float, ...] = ()

    @classmethod
    def of(cls, rates: Sequence[float]) -> Listed:
        """From the rates of step 1, 2, ...

        Raises:
            InvalidArgument: none.
        """
        if not rates:
            raise InvalidArgument("lr=[]: give at least one learning rate")
        return cls(float(rates[0]), rates=tuple(float(rate) for rate in rates))

    def after(self, done: int) -> float:
        return self.rates[min(done, len(self.rates) - 1)]
