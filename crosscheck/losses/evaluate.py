"""Named losses by their definitions: the value, and the gradient with respect to every output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crosscheck.losses.definitions import DEFINITIONS
from crosscheck.losses.targets import Resolved

__all__ = ["LossValue", "arguments", "evaluate"]


@dataclass(frozen=True)
class LossValue:
    """A loss at one point: its value (a scalar) and its gradient by output."""

    value: np.ndarray
    gradients: Mapping[str, np.ndarray]


def arguments(term: Resolved, outputs: Mapping[str, object], target: object) -> list[object]:
    """What a term's function is called with, beside its options."""
    given = [outputs[site] for site in term.outputs]
    return given if target is None else [*given, target]


def evaluate(terms: Sequence[Resolved], outputs: Mapping[str, np.ndarray]) -> LossValue:
    """The weighted sum of ``terms`` by their definitions, in the outputs' dtype."""
    total = None
    gradients = {site: np.zeros_like(outputs[site]) for t in terms for site in t.outputs}
    for term in terms:
        target = _cast(term.target, outputs[term.outputs[0]].dtype)
        found = DEFINITIONS[term.name](*arguments(term, outputs, target), **term.options)
        factor = found.value.dtype.type(term.factor)
        total = found.value * factor if total is None else total + found.value * factor
        for site, gradient in zip(term.outputs, found.gradients, strict=True):
            gradients[site] = gradients[site] + gradient * factor
    return LossValue(np.asarray(total), gradients)


def _cast(target: object, dtype: np.dtype) -> object:
    """Targets in the outputs' precision: what is mixed is computed in the wider one."""
    is_real = isinstance(target, np.ndarray) and target.dtype.kind == "f"
    return target.astype(dtype) if is_real else target  # type: ignore[attr-defined]
