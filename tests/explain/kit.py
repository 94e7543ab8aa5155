"""Evidence by hand: a layer as it should be and as the candidate has it, and what explains that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.compare import compare
from crosscheck.explain import Evidence, causes
from crosscheck.judging.judge import without_fill
from crosscheck.judging.noise import Floor
from crosscheck.results import Cause

Array = np.ndarray


def evidence(phase: Any, reference: Array, candidate: Array, **more: Any) -> Evidence:
    """Evidence in which the reference ran in float32 and the candidate is honest but for its
    mistake: both rounded to float32, from values in float64."""
    rounded = reference.astype(np.float32)
    made = candidate.astype(np.float32)
    seen = (rounded, reference)
    if made.shape == rounded.shape:
        seen = without_fill(made, rounded, reference)[1:]
    return Evidence(
        phase=phase,
        reference=reference.astype(np.float64),
        candidate=made.astype(np.float64),
        floor=Floor(unit=2.0**-24),
        own=compare(*seen),
        **more,
    )


def parameter(
    role: str, value: Array, kind: str = "other", axes: tuple[str, ...] | None = None
) -> Parameter:
    return Parameter(role, value.astype(np.float64), "layer", role, kind, axes)


def normal(shape: tuple[int, ...], seed: int = 0) -> Array:
    value: Array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return value.astype(np.float64)


def forward(
    reference: Callable[..., Array],
    candidate: Callable[..., Array],
    shape: tuple[int, ...] = (4, 12),
    *,
    draw: Callable[[tuple[int, ...], int], Array] = normal,
    **more: Any,
) -> tuple[Cause, ...]:
    """The causes of a layer that is ``candidate`` of its input for ``reference``."""

    def at(seed: int) -> Evidence:
        x = draw(shape, seed)
        return evidence("forward", reference(x), candidate(x), inputs=(x,), **more)

    return causes(at(0), lambda: at(1))


def backward(
    function: Callable[[Array], Array],
    reference: Callable[[Array, Array], Array],
    candidate: Callable[[Array, Array], Array],
    shape: tuple[int, ...] = (4, 12),
    *,
    draw: Callable[[tuple[int, ...], int], Array] = normal,
    **more: Any,
) -> tuple[Cause, ...]:
    """The causes of a VJP that is ``candidate(x, dy)`` for ``reference(x, dy)``."""

    def at(seed: int) -> Evidence:
        x = draw(shape, seed)
        y = function(x)
        dy = normal(y.shape, seed + 10)
        return evidence(
            "backward",
            reference(x, dy),
            candidate(x, dy),
            kind="input_cotangent",
            inputs=(x,),
            output=y,
            given=dy,
            **more,
        )

    return causes(at(0), lambda: at(1))


def weights(reference: Array, candidate: Array, **more: Any) -> tuple[Cause, ...]:
    """The causes of a parameter that holds ``candidate`` for ``reference``."""
    one = evidence("weights", reference, candidate, kind="parameter", **more)
    return causes(one, lambda: one)


def told(found: tuple[Cause, ...]) -> list[str]:
    """The statements of the verified causes."""
    return [cause.statement for cause in found if cause.verified]
