"""Constants solved from data: how many digits do the data support, and is it one of the usual?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

__all__ = ["ratio_of", "slope", "tidy"]

_USUAL = (
    (1 / 6, "1/6"),
    (1 / 3, "1/3"),
    (2 / 3, "2/3"),
    (math.sqrt(0.5), "1/√2"),
    (math.sqrt(2.0), "√2"),
    (math.sqrt(2 / math.pi), "√(2/π)"),
)


def tidy(
    value: float,
    accept: Callable[[float], bool],
    *,
    known: Iterable[tuple[float, str]] = (),
    also: Iterable[tuple[float, str]] = (),
) -> tuple[float, str]:
    """The simplest number near ``value`` that ``accept`` lets through, and how to write it.

    Args:
        value: solved for, so right up to rounding.
        accept: whether a number still reproduces the data.
        known: further (number, its text) that would mean something here: ``(1 / 5, "1/5, the batch
            size")``.
        also: the same, tried only where no short decimal will do.

    Returns:
        ``value`` itself with four digits where nothing is accepted.
    """
    if not math.isfinite(value):
        return value, f"{value:g}"
    for number, text in (*known, *_shortest(value), *also, *_USUAL):
        if abs(value - number) > 0.02 * abs(number):
            continue
        if accept(number):
            return number, text
    text = f"{value:.6g}" if accept(value) else f"{value:.4g}"
    if float(text) == 1.0 != value:
        text = f"1{value - 1.0:+.2g}"  # near one the digits that say something come later
    return value, text


def _shortest(value: float) -> list[tuple[float, str]]:
    """The decimals of one to five digits, where they say nearly the same."""
    found = []
    for digits in (1, 2, 3, 4, 5):
        text = f"{value:.{digits}g}"
        number = float(text)
        if number:
            found.append((number, f"{number:g}"))
    return found


def slope(value: np.ndarray, basis: np.ndarray, where: np.ndarray | None = None) -> float:
    """k of ``value ≈ k · basis`` by least squares, over finite elements (chosen by ``where``)."""
    keep = np.isfinite(value) & np.isfinite(basis)
    if where is not None:
        keep &= where
    b, v = basis[keep], value[keep]
    size = float(b @ b)
    return float(v @ b) / size if size > 0.0 else math.nan


def ratio_of(value: np.ndarray, basis: np.ndarray) -> list[tuple[float, str]]:
    """Numbers that a scale factor may well be: lengths of axes, their inverses and roots."""
    found: list[tuple[float, str]] = []
    for length in dict.fromkeys((*value.shape, *basis.shape)):
        if length > 1:
            root = math.sqrt(length)
            found += [(float(length), f"{length}"), (1.0 / length, f"1/{length}")]
            found += [(root, f"√{length}"), (1.0 / root, f"1/√{length}")]
    return found
