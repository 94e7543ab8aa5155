"""Hypotheses on gated units: one half of a projection, through a function, times the other half.

GLU takes σ(a) · b, GEGLU and SwiGLU other functions (Dauphin et al. 2017; Shazeer 2020). Which half
is the gate is a convention, and ports mistake it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.explain.elementwise import FUNCTIONS
from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.registry import register
from crosscheck.explain.sampling import sampled

__all__: list[str] = []

MOST_VALUES = 6  # at hand, the latest


@dataclass(frozen=True)
class _Gated:
    """f(a) · b.

    Attributes:
        gate, other: names of the two values; one name: its halves, the gate's first.
        function: a key of `FUNCTIONS`.
        turned: of two halves, the second is the gate.
    """

    gate: str
    other: str
    function: str
    turned: bool = False

    def parts(self, e: Evidence) -> tuple[np.ndarray, np.ndarray]:
        """The gate before its function, and what it multiplies."""
        if self.gate != self.other:
            return e.nearby[self.gate], e.nearby[self.other]
        first, second = np.split(e.nearby[self.gate], 2, axis=-1)
        return (second, first) if self.turned else (first, second)

    def __call__(self, e: Evidence) -> np.ndarray:
        a, b = self.parts(e)
        return self.of(a, b)

    def of(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The product of two values, or of a few elements of both."""
        return np.asarray(FUNCTIONS[self.function].value(a) * b)

    def exchanged(self) -> _Gated:
        """With the other one as the gate."""
        return replace(self, gate=self.other, other=self.gate, turned=not self.turned)


@register("forward")
def gated_unit(e: Evidence) -> Iterator[Proposal]:
    """The other half as the gate, or another function of it."""
    # Several hold where the function is a layer: it applied, and the identity of what it returns.
    for ours in [one for one in _options(e) if _is_it(e, one)]:
        yield Proposal(
            "gate_exchanged",
            f"{ours.function} is applied to the other factor of the product",
            ours.exchanged(),
        )
        for function in FUNCTIONS:
            if function != ours.function:
                gate = "the gate" if ours.gate == ours.other else f"`{ours.gate}`"
                text = f"{gate} goes through {function}, not {ours.function}, in the product"
                yield Proposal("gate_function", text, replace(ours, function=function))


def _options(e: Evidence) -> Iterator[_Gated]:
    shape = e.reference.shape
    latest = {name: e.nearby[name] for name in list(e.nearby)[-MOST_VALUES:]}
    whole = [name for name, value in latest.items() if value.shape == shape]
    double = (*shape[:-1], 2 * shape[-1]) if shape else ()
    packed = [name for name, value in latest.items() if value.shape == double]
    for function in FUNCTIONS:
        for gate, other in itertools.permutations(whole, 2):
            yield _Gated(gate, other, function)
        for name, turned in itertools.product(packed, (False, True)):
            yield _Gated(name, name, function, turned)


def _is_it(e: Evidence, one: _Gated) -> bool:
    """Whether the reference is such a product; a few elements tell nearly always."""
    few = one.of(*map(sampled, (np.ascontiguousarray(part) for part in one.parts(e))))
    right = sampled(e.reference)
    if not np.allclose(few, right, rtol=1e-3, atol=1e-4 * np.max(np.abs(right), initial=0.0)):
        return False
    return e.fits_reference(one(e))
