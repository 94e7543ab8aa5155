"""Other weights for a check: each parameter moved by a seeded amount that suits its scale.

Freshly initialised norms (gamma 1, beta 0, mean 0, variance 1) and zero biases hide a port that
leaves them out, swaps them or does not load them. Trained weights keep most of their value, so
that the model still works in its range.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from crosscheck.adapters.base import Adapter, Parameter
from crosscheck.arrays import is_float
from crosscheck.inputs import normal
from crosscheck.weights import Match

__all__ = ["moved", "restored", "with_values"]

SIGNED = 0.25  # relative change of what has one sign throughout (gamma, a variance, a slope)
MIXED = 0.1  # of the standard deviation, of everything else
FROM_ZERO = 0.1  # standard deviation of what was zero


def moved(parameters: Sequence[Parameter], *, seed: int) -> dict[str, np.ndarray]:
    """name -> another value of every float parameter, in its shape and dtype.

    What has one sign keeps it (a variance stays positive); zeros become small numbers, the weights
    of a dense or convolutional layer numbers that keep the scale of their inputs. Two parameters
    with the same elements get the same values: they may stand for one that the other side shares.
    """
    return {
        p.name: _moved(p, seed)
        for p in parameters
        if is_float(p.value) and p.value.size and np.isfinite(p.value.astype(np.float64)).all()
    }


def _moved(parameter: Parameter, seed: int) -> np.ndarray:
    value = parameter.value.astype(np.float64)
    noise = normal(seed, f"randomise {_key(parameter)}", value.shape)
    if (value > 0).all() or (value < 0).all():
        made = value * (1.0 + SIGNED * np.clip(noise, -2.0, 2.0))
    elif value.any():
        made = value + MIXED * max(float(value.std()), 1e-3 * float(np.abs(value).max())) * noise
    else:
        made = _scale_of_zeros(parameter) * noise
    return np.asarray(made, parameter.value.dtype)


def _key(parameter: Parameter) -> str:
    """Names the noise: equal elements, equal noise, unless they are one number all over."""
    value = parameter.value
    if (value == value.flat[0]).all():
        return parameter.name
    return hashlib.sha256(value.tobytes() + str(value.shape).encode()).hexdigest()


def _scale_of_zeros(parameter: Parameter) -> float:
    value = parameter.value
    if parameter.role == "weight" and value.ndim > 1:
        return 1.0 / math.sqrt(value.size / max(value.shape))
    return FROM_ZERO


def with_values(match: Match, values: Mapping[str, np.ndarray]) -> Match:
    """``match`` over other values of the reference's parameters."""

    def now(p: Parameter) -> Parameter:
        return replace(p, value=values[p.name]) if p.name in values else p

    pairs = tuple(
        replace(
            m,
            reference=now(m.reference),
            more=tuple(map(now, m.more)),
            tied=tuple(map(now, m.tied)),
        )
        for m in match.pairs
    )
    return replace(match, pairs=pairs)


@contextmanager
def restored(*sides: Adapter) -> Iterator[tuple[dict[str, np.ndarray], ...]]:
    """Put the parameters of ``sides`` back afterwards, whatever happens in between.

    Gives copies of their values, {name: value} for each side; what the caller changes in these is
    what they are put back to.
    """
    found = tuple({p.name: np.array(p.value) for p in side.parameters()} for side in sides)
    try:
        yield found
    finally:
        for side, values in zip(sides, found, strict=True):
            side.load(values)
