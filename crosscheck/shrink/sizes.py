"""Smaller inputs: each size cut to one, or else in halves, as long as the same thing diverges.

The idea is that of delta debugging (Zeller & Hildebrandt, "Simplifying and isolating
failure-inducing input", IEEE TSE 2002), on the axes of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from crosscheck.probes.inputs import axis_groups

__all__ = ["MOST_CHECKS", "smaller"]

MOST_CHECKS = 40

Arrays = Mapping[str, np.ndarray]
Axes = list[tuple[str, int]]


def smaller(
    inputs: Arrays, still: Callable[[dict[str, np.ndarray]], bool]
) -> tuple[dict[str, np.ndarray], bool]:
    """The inputs cut down as far as ``still`` holds; axes of one length are cut together.

    Args:
        still: whether these inputs show the same divergence; False too where a model refuses them.

    Returns:
        The arrays, and whether `MOST_CHECKS` ended the search before it was through.
    """
    made = {name: np.array(value) for name, value in inputs.items()}
    checks = 0
    for axes, _, length in axis_groups(inputs):
        now = length
        for wanted in _lengths(length):
            if wanted >= now:
                continue
            found = None
            for trial in _cut(made, axes, wanted):
                if checks >= MOST_CHECKS:
                    return made, True
                checks += 1
                if still(trial):
                    found = trial
                    break
            if found is not None:
                made, now = found, wanted
            elif wanted > 1:
                break  # what half of it does not show, a smaller part will not
    return made, False


def _lengths(length: int) -> Iterator[int]:
    """One, and if that is too small: halves, as long as they do."""
    if length > 1:
        yield 1
    while length > 3:
        length = (length + 1) // 2
        yield length
    if length == 3:
        yield 2


def _cut(inputs: Arrays, axes: Axes, length: int) -> Iterator[dict[str, np.ndarray]]:
    """The first ``length`` places of every one of ``axes``, then the last."""
    for tail in (False, True):
        made = dict(inputs)
        for name, axis in axes:
            whole = made[name].shape[axis]
            chosen = np.arange(whole - length, whole) if tail else np.arange(length)
            made[name] = np.take(made[name], chosen, axis=axis)
        yield made
