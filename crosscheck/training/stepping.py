"""Both optimizers at work on one step (part of `stage`).

Each is kept twice: as it is, and in float64 where it can be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosscheck.arrays import widest
from crosscheck.errors import CrosscheckError, InvalidArgument, SideFailed
from crosscheck.optimizers.sides import SideOptimizer, Stepper
from crosscheck.training.layout import Layout
from crosscheck.training.updates import Past, Stepped

__all__ = ["Made", "Steppers"]

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Made:
    """One step: the reference's parameters after it, and every compared change."""

    after: dict[str, np.ndarray]
    changes: dict[str, Stepped]


class Steppers:
    """Both optimizers with their states: as they are, and in float64 where they can be."""

    def __init__(self, optimizers: tuple[SideOptimizer, SideOptimizer], layout: Layout) -> None:
        self._layout, self._optimizers = layout, optimizers
        self._narrow = [o.start(False) for o in optimizers]
        self._wide: list[Stepper | None] = [o.start(True) if o.wide else None for o in optimizers]

    def notes(self) -> list[str]:
        """What the optimizers have to say."""
        sides = zip(("reference", "candidate"), self._narrow, strict=True)
        return [f"{side}'s optimizer: {note}" for side, s in sides for note in s.notes]

    def step(self, past: Past, own: Arrays) -> Made:
        """One more step, on the last entry of ``past``.

        Args:
            own: the candidate's own gradients, for what the reference holds frozen.
        """
        values, ours, theirs = past.steps[-1]
        layout = self._layout
        trained = {name: values[name] for name in ours[0]}
        everything = layout.to_candidate(values)
        names = [m.candidate.name for m in layout.trained() if m.candidate.name in everything]
        given = {name: everything[name] for name in names}
        sent = [layout.gradients(g, own) for g in theirs]
        first, second = (o.what for o in self._optimizers)
        after = _made("reference", self._narrow[0], trained, ours, first)
        moved = _made("candidate", self._narrow[1], given, sent, second)
        wide = _made_wide(self._wide, 0, trained, ours)
        moved_wide = _made_wide(self._wide, 1, given, sent)
        changes = {}
        for name, (parameter, held) in {**layout.compared, **layout.frozen}.items():
            zero = np.zeros(parameter.value.shape)
            before = values[name].astype(np.float64)
            narrow = _delta(after, trained, name, zero)
            changes[name] = Stepped(
                before=before,
                reference=narrow,
                candidate=layout.back(parameter, held, _deltas(moved, everything)),
                truth=narrow if wide is None else _delta(wide, trained, name, zero),
                wide=None
                if moved_wide is None or wide is None
                else layout.back(parameter, held, _deltas(moved_wide, everything)),
            )
        return Made(after, changes)


def _made(
    side: Any, stepper: Stepper, values: Arrays, gradients: Sequence[Arrays], framework: str = ""
) -> dict[str, np.ndarray]:
    if not values:
        return {}
    try:
        return stepper.step(values, gradients)
    except InvalidArgument as error:
        raise InvalidArgument(f"the {side}'s {error}") from error.__cause__
    except CrosscheckError:
        raise
    except Exception as error:  # foreign code
        raise SideFailed(side, None, stage="optimizer", framework=framework, cause=error) from error


def _made_wide(
    steppers: list[Stepper | None], side: int, values: Arrays, gradients: Sequence[Arrays]
) -> dict[str, np.ndarray] | None:
    """The step in float64; an optimizer that cannot make it is not asked again."""
    stepper = steppers[side]
    if stepper is None:
        return None
    try:
        made = _made("", stepper, _float64(values), [_float64(g) for g in gradients])
    except SideFailed:
        made = {}
    if values and any(v.dtype != widest(v) for v in made.values()) or len(made) < len(values):
        steppers[side] = None
        return None
    return made


def _float64(values: Arrays) -> dict[str, np.ndarray]:
    return {name: value.astype(widest(value)) for name, value in values.items()}


def _delta(after: Arrays, before: Arrays, name: str, zero: np.ndarray) -> np.ndarray:
    if name not in after:
        return zero
    was = before[name]
    return np.asarray(after[name].astype(widest(was)) - was.astype(widest(was)))


def _deltas(after: Arrays, before: Arrays) -> dict[str, np.ndarray]:
    """Changes of all of the candidate's parameters; those that nobody moves have none."""
    return {n: _delta(after, before, n, np.zeros(v.shape)) for n, v in before.items()}
