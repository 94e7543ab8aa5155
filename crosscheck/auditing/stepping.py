"""Training without touching the model: the caller's own step undone, and Adam on overrides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crosscheck.adapters.base import Adapter, Parameter
from crosscheck.arrays import is_float
from crosscheck.auditing.keeping import state_kept
from crosscheck.auditing.subject import Arrays, Stepped, Subject
from crosscheck.errors import CrosscheckError, SideFailed
from crosscheck.losses.targets import Targets
from crosscheck.optimizers.definition import Definition
from crosscheck.optimizers.parse import parse

__all__ = ["Learnt", "floor_of", "learn", "learning", "model_of", "snapshot"]

WATCHED = 5
LEARNT = 0.02  # of the first loss: there is nothing more to see


def snapshot(subject: Subject) -> Stepped:
    """All parameters and buffers before and after the caller's training step, which is undone.

    Made once for a subject: a step may be slow.

    Raises:
        SideFailed: the step raised.
        InvalidArgument: the model holds no parameters, and the step did not return new ones.
    """
    if subject.stepped is None:
        subject.stepped = _taken(subject)
    return subject.stepped


def _taken(subject: Subject) -> Stepped:
    assert subject.step is not None
    before = _values(subject.parameters())
    with state_kept(model_of(subject.adapter), subject.step):
        try:
            returned = subject.step()
            after = _values(_parameters_after(subject, returned))
        except CrosscheckError:
            raise
        except Exception as error:  # the step is foreign code: anything may come out of it
            raise SideFailed(
                "model",
                None,
                stage="training step",
                framework=subject.adapter.framework,
                cause=error,
            ) from error
        finally:
            _write_back(subject, before)
    return before, after


def _write_back(subject: Subject, before: Arrays) -> None:
    """What the step changed in the model, wherever the model keeps it."""
    now = _values(subject.parameters())
    changed = [n for n, v in before.items() if n in now and _moved(now, n, v)]
    subject.adapter.load({name: before[name] for name in changed})


def _moved(before: Arrays, name: str, value: np.ndarray) -> bool:
    return not np.array_equal(before[name], value, equal_nan=is_float(value))


def _values(parameters: Sequence[Parameter]) -> dict[str, np.ndarray]:
    return {p.name: np.array(p.value) for p in parameters}


def model_of(adapter: Adapter) -> Any:
    """The caller's model, None where the adapter does not hold it."""
    held = getattr(adapter, "program", adapter)
    return getattr(held, "model", None)


def _parameters_after(subject: Subject, returned: Any) -> Sequence[Parameter]:
    """Those of the model; of a functional JAX model (a function with params, Linen, Equinox) those
    that the step returned: they cannot change in place."""
    program = getattr(subject.adapter, "program", None)
    if program is None or not hasattr(program, "tree"):
        return subject.parameters()
    found: Sequence[Parameter] = program.after_step(returned).parameters()
    return found


@dataclass
class Learnt:
    """How learning went: the loss before every step and after the last; some predictions."""

    losses: list[float] = field(default_factory=list)
    watched: list[list[float]] = field(default_factory=list)
    lr: float = 0.0

    @property
    def lowest(self) -> float:
        """The lowest loss; NaN if one was."""
        return float(np.min(self.losses))


def learn(
    subject: Subject, inputs: Arrays, targets: Targets, *, steps: int, lr: float = 0.01
) -> Learnt:
    """Train so many steps, fewer where there is nothing more to learn; see `learning`."""
    *_, last = learning(subject, inputs, targets, steps=steps, lr=lr)
    return last


def learning(
    subject: Subject, inputs: Arrays, targets: Targets, *, steps: int, lr: float = 0.01
) -> Iterator[Learnt]:
    """Train with Adam (Kingma, Ba, 2015) on overrides, in eval mode: without dropout, and with
    norms that do not depend on the batch. Gives the same `Learnt`, longer by every step."""
    trainable = [p for p in subject.trainable() if is_float(p.value)]
    values: dict[str, np.ndarray] = {p.name: np.array(p.value) for p in trainable}
    rule = Definition(parse(f"adam(lr={lr})"))
    found = Learnt(lr=lr)
    for i in range(steps + 1):
        step = subject.evaluate(values, inputs=inputs, targets=targets)
        assert step.loss is not None
        found.losses.append(step.loss)
        done = not np.isfinite(step.loss) or step.loss <= LEARNT * found.losses[0]
        if done or i % max(1, steps // WATCHED) == 0:
            found.watched.append(_first_values(step.outputs))
        yield found
        if done or i == steps:
            return
        gradients = {n: step.gradients.get(n, np.zeros_like(v)) for n, v in values.items()}
        made = rule.step(values, [gradients])
        values = {n: made[n].astype(v.dtype) for n, v in values.items()}


def floor_of(subject: Subject, inputs: Arrays, targets: Targets, *, steps: int = 300) -> float:
    """About the lowest value that the loss has for any outputs: of smoothed or soft labels it is
    not zero. The outputs themselves are trained, without the model."""
    outputs = subject.outputs_at({}, inputs=inputs)
    free = {k: v.astype(np.float64) for k, v in outputs.items() if is_float(v)}
    rule = Definition(parse("adam(lr=0.1)"))
    lowest = np.inf
    for _ in range(steps):
        found = subject.loss_of({**outputs, **free}, targets, defined=True)
        lowest = min(lowest, float(found.value))
        zeros = {k: np.zeros_like(v) for k, v in free.items()}
        free = dict(rule.step(free, [{**zeros, **found.gradients}]))
    return float(lowest)


def _first_values(outputs: Arrays) -> list[float]:
    """A few predictions to watch: of the first floating-point output."""
    first = next((v for v in outputs.values() if is_float(v)), np.zeros(0))
    return [float(v) for v in np.ravel(first)[:WATCHED]]
