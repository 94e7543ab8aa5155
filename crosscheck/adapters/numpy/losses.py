"""Losses of sides that compute on the host: the definitions, and losses written in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from crosscheck.arrays import is_float
from crosscheck.errors import InvalidArgument
from crosscheck.losses.definitions import DEFINITIONS

__all__ = ["NAMED", "differentiate", "own"]

NAMED = DEFINITIONS


def differentiate(
    function: Callable[[Any, Any], Any],
    outputs: Mapping[str, np.ndarray],
    targets: Any,
    *,
    float64: bool,
    device: str,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What ``function(outputs, targets)`` returns: the value, and a gradient for every output.

    Raises:
        InvalidArgument: it returned something else.
    """
    floats = {site: value for site, value in outputs.items() if is_float(value)}
    given = {s: _cast(v, float64) for s, v in outputs.items()}
    returned = function(given, _cast(targets, float64))
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise InvalidArgument(
            f"the loss returned {type(returned).__name__}: on a side without automatic "
            "differentiation it must return (value, gradient), the gradient as an array, or as a "
            "dict {output: array} where there are several outputs"
        )
    value, gradient = returned
    if not isinstance(gradient, Mapping):
        if len(floats) != 1:
            raise InvalidArgument(
                f"the loss returned one gradient for the outputs {', '.join(floats)}: give a dict"
            )
        gradient = {next(iter(floats)): gradient}
    made = {s: np.asarray(gradient.get(s, np.zeros_like(given[s]))) for s in floats}
    return np.asarray(value), made


def _cast(value: Any, float64: bool) -> Any:
    if isinstance(value, Mapping):
        return {name: _cast(array, float64) for name, array in value.items()}
    if value is None:
        return None
    wide = float64 and is_float(value)
    return value.astype(np.float64) if wide else np.array(value)  # a copy: it may be overwritten


def own(loss: Callable[..., Any], *, float64: bool) -> Callable[[Any, Any], Any]:
    """The caller's loss, as it is."""
    return loss
