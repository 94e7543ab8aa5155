"""Activation functions in float64, with derivatives, and the parts that ports get wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["FUNCTIONS", "Function", "erf", "sigmoid"]

Map = Callable[[np.ndarray], np.ndarray]

_STEP = 1e-4  # of a central difference: h²/6 and 2⁻⁵³/h are both far below float32 rounding


@dataclass(frozen=True)
class Function:
    """An elementwise function.

    Attributes:
        value: f.
        slope: f', where a central difference would straddle a kink; None: smooth.
        gate: h where f(x) = x · h(x): what remains of the derivative if the gate is detached.
        beyond: up to this input it equals a simpler function of the table.
    """

    value: Map
    slope: Map | None = None
    gate: Map | None = None
    beyond: float = -math.inf

    def shows(self, x: np.ndarray) -> bool:
        """Whether ``x`` tells it apart from the simpler function."""
        return bool(np.max(x, initial=-math.inf) > self.beyond) or self.beyond == -math.inf

    def derivative(self, x: np.ndarray) -> np.ndarray:
        """f'(x); 0 at a kink of ReLU, as the frameworks have it."""
        if self.slope is not None:
            return self.slope(x)
        return (self.value(x + _STEP) - self.value(x - _STEP)) / (2.0 * _STEP)


_GRID = 32  # table entries to a unit; eight Taylor terms around the nearest are exact to 1e-15
_EDGE = 6.0  # where erf is 1 in float64
_TABLE = np.array([math.erf(i / _GRID - _EDGE) for i in range(int(2 * _EDGE * _GRID) + 1)])


def erf(x: np.ndarray) -> np.ndarray:
    """The error function; derivatives by Hermite polynomials, H' = 2 x H − 2 n H₋."""
    x = np.clip(x, -_EDGE, _EDGE)
    index = np.rint(np.nan_to_num((x + _EDGE) * _GRID)).astype(np.intp)
    at = index / _GRID - _EDGE
    step = x - at
    term = 2.0 / math.sqrt(math.pi) * np.exp(-at * at) * step
    total, before, now = _TABLE[index] + term, np.ones_like(at), 2.0 * at
    for n in range(1, 8):
        term = -term * step / (n + 1)
        total += term * now
        before, now = now, 2.0 * at * now - 2.0 * n * before
    return np.asarray(total)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e⁻ˣ), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _normal(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + erf(x / math.sqrt(2.0)))


def _normal_by_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _hard(slope: float) -> Map:
    return lambda x: np.clip(slope * x + 0.5, 0.0, 1.0)


def _hard_slope(slope: float) -> Map:
    return lambda x: np.where(np.abs(slope * x) < 0.5, slope, 0.0)


def _swish_slope(slope: float) -> Map:
    """Of x · clip(s·x + 1/2, 0, 1)."""
    return lambda x: np.where(
        np.abs(slope * x) < 0.5, 2.0 * slope * x + 0.5, np.where(x > 0, 1.0, 0.0)
    )


def _step(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, 1.0, 0.0)


def _gated(gate: Map, slope: Map | None = None) -> Function:
    return Function(lambda x: x * gate(x), slope, gate)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.logaddexp(0.0, x))


def _selu(x: np.ndarray) -> np.ndarray:
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))


FUNCTIONS: dict[str, Function] = {
    "the identity": Function(lambda x: x, np.ones_like),
    "ReLU": Function(lambda x: np.maximum(x, 0.0), _step),
    "ReLU6": Function(
        lambda x: np.clip(x, 0.0, 6.0),
        lambda x: np.where((x > 0) & (x < 6), 1.0, 0.0),
        beyond=6.0,
    ),
    "GELU (erf)": _gated(_normal),
    "GELU (tanh form)": _gated(_normal_by_tanh),
    "x·σ(1.702x)": _gated(lambda x: sigmoid(1.702 * x)),
    "SiLU": _gated(sigmoid),
    "sigmoid": Function(sigmoid),
    "tanh": Function(np.tanh),
    "hard sigmoid (slope 1/6)": Function(_hard(1 / 6), _hard_slope(1 / 6)),
    "hard sigmoid (slope 0.2)": Function(_hard(0.2), _hard_slope(0.2)),
    "hard swish (slope 1/6)": _gated(_hard(1 / 6), _swish_slope(1 / 6)),
    "hard swish (slope 0.2)": _gated(_hard(0.2), _swish_slope(0.2)),
    "softplus": Function(_softplus),
    "softsign": Function(lambda x: x / (1.0 + np.abs(x))),
    "Mish": _gated(lambda x: np.tanh(_softplus(x))),
    "SELU": Function(_selu),
}
