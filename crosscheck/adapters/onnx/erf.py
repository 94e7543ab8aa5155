"""The error function in float64, for which ONNX Runtime has no kernel, by operators that have one.

erf(x) = sign(x) · (1 - exp(-z²) · s(z)) with z = |x| up to 6, where erf is 1 in float64. s is the
scaled complement exp(z²)·erfc(z), a Chebyshev series in u = a + b / (z + 2.5), which maps [0, 6]
onto [-1, 1]. The error is at most 3e-15.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import onnx
from numpy.polynomial import chebyshev

__all__ = ["in_float64"]

_END, _SHIFT, _DEGREE = 6.0, 2.5, 18
_B = 2.0 / (1.0 / _SHIFT - 1.0 / (_END + _SHIFT))
_A = 1.0 - _B / _SHIFT


def in_float64(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """What takes the place of a node: of ``Erf``, and of ``Gelu`` that is made of it; of any other
    itself."""
    if node.op_type == "Erf":
        return _Nodes(node).erf(node.input[0], node.output[0])
    tanh = any(attribute.s == b"tanh" for attribute in node.attribute)
    if node.op_type == "Gelu" and node.domain in ("", "ai.onnx") and not tanh:
        return _Nodes(node).gelu(node.input[0], node.output[0])
    return [node]


@cache
def _coefficients() -> tuple[float, ...]:
    def scaled(u: np.ndarray) -> np.ndarray:
        z = np.clip(_B / (u - _A) - _SHIFT, 0.0, _END)
        return np.array([math.erfc(v) * math.exp(v * v) for v in z])

    return tuple(chebyshev.chebinterpolate(scaled, _DEGREE))


class _Nodes:
    """Nodes in the place of one, all of whose values are named after its output."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self._made: list[onnx.NodeProto] = []
        self._names = (f"crosscheck.erf.{node.output[0]}.{i}" for i in itertools.count())

    def _do(self, operator: str, *inputs: str | float, output: str | None = None) -> str:
        """Append a node; numbers become constants."""
        names = [self._constant(one) if isinstance(one, float) else one for one in inputs]
        made = next(self._names) if output is None else output
        self._made.append(onnx.helper.make_node(operator, names, [made]))
        return made

    def _constant(self, number: float) -> str:
        value = onnx.numpy_helper.from_array(np.array(number, np.float64))
        made = next(self._names)
        self._made.append(onnx.helper.make_node("Constant", [], [made], value=value))
        return made

    def erf(self, x: str, output: str | None = None) -> list[onnx.NodeProto]:
        z = self._do("Min", self._do("Abs", x), _END)
        u = self._do("Add", self._do("Div", _B, self._do("Add", z, _SHIFT)), _A)
        faded = self._do("Exp", self._do("Neg", self._do("Mul", z, z)))
        tail = self._do("Mul", faded, self._series(u))
        found = self._do("Mul", self._do("Sign", x), self._do("Sub", 1.0, tail))
        self._do("Where", self._do("IsNaN", x), x, found, output=output)
        return self._made

    def gelu(self, x: str, output: str) -> list[onnx.NodeProto]:
        self.erf(self._do("Mul", x, math.sqrt(0.5)))
        share = self._do("Add", self._made[-1].output[0], 1.0)
        self._do("Mul", self._do("Mul", x, 0.5), share, output=output)
        return self._made

    def _series(self, u: str) -> str:
        """Clenshaw's recurrence."""
        first, *rest, last = (float(c) for c in _coefficients())
        twice = self._do("Add", u, u)
        before, now = self._constant(0.0), self._constant(last)
        for coefficient in reversed(rest):
            step = self._do("Sub", self._do("Mul", twice, now), before)
            before, now = now, self._do("Add", step, coefficient)
        return self._do("Add", self._do("Sub", self._do("Mul", u, now), before), first)
