"""Part of stage 10, report: says in a sentence where a difference is concentrated, if it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Plane", "sentences"]

MOST = 0.9  # of the squared difference: "nearly all"
EXCESS = 0.6  # of what even shares leave over
SHORT = 4  # below so many indices, ends and stretches say nothing
FEW = 20  # of so many elements one may hold all the difference without a reason


@dataclass(frozen=True)
class Plane:
    """Two axes together.

    Attributes:
        axes: which.
        ring: the share on their border; None where they are too short to have an inside.
        cells: the share of each cell of the map.
    """

    axes: tuple[int, int]
    ring: float | None
    cells: np.ndarray

    def sentences(self, what: str) -> list[str]:
        """What stands out in the map though no index of an axis does."""
        both = f"axes {self.axes[0]} and {self.axes[1]}"
        if self.ring is not None and self.ring >= MOST:
            return [f"{_percent(self.ring)} of the {what} is on the border of {both}"]
        largest = np.cumsum(np.sort(self.cells, axis=None)[::-1])
        few = int(np.searchsorted(largest, MOST)) + 1
        if few * 8 > self.cells.size or self.cells.size < SHORT * SHORT:
            return []
        return [
            f"{_percent(float(largest[few - 1]))} of the {what} is in {few} of the "
            f"{self.cells.size} cells of the map of {both}"
        ]


def sentences(
    shares: Mapping[int, np.ndarray],
    top: Sequence[tuple[float, tuple[int, ...]]],
    shape: tuple[int, ...],
    plane: Plane | None,
    mismatches: int,
) -> tuple[str, ...]:
    """What a reader would say who looks at the profiles.

    Args:
        shares: axis -> share of the squared difference at each index, sums to 1.
        top: (share, index) of the largest elements.
        plane: the two axes along which it is least even.
        mismatches: elements that are NaN or Inf on one side only; shares are of those then.
    """
    if not top:
        return ("both sides are equal, element by element",)
    if not shares:
        return ()
    what = "NaN or Inf that only one side has" if mismatches else "squared difference"
    size = math.prod(shape)
    if top[0][0] >= MOST and size > FEW:
        return (f"{_percent(top[0][0])} of the {what} is in one element of {size}: {top[0][1]}",)
    found = [text for axis, share in shares.items() if (text := _along(axis, share, what))]
    if not found and not mismatches:
        found = _few([share for share, _ in top], size, what)
    if not found and plane is not None:
        found = plane.sentences(what)
    return tuple(found) or (f"no one index or stretch of an axis has most of the {what}",)


def _few(top: Sequence[float], size: int, what: str) -> list[str]:
    """Whether the few largest elements are nearly all of it."""
    reached = np.cumsum(top)
    count = int(np.searchsorted(reached, MOST)) + 1
    if count > len(top) or count * FEW > size:
        return []
    return [f"{_percent(float(reached[count - 1]))} of the {what} is in {count} of {size} elements"]


def _along(axis: int, share: np.ndarray, what: str) -> str:
    n = len(share)
    for part, width, place in (_one(share), _ends(share), _parity(share), _stretch(share)):
        if 2 * width <= n + 1 and (part - width / n) >= EXCESS * (1 - width / n):
            return f"{_percent(part)} of the {what} is at {place} of axis {axis} (length {n})"
    return ""


def _one(share: np.ndarray) -> tuple[float, int, str]:
    i = int(share.argmax())
    last = ", the last," if i == len(share) - 1 else ""
    return float(share[i]), 1, f"index {i}{last}"


def _ends(share: np.ndarray) -> tuple[float, int, str]:
    n = len(share)
    if n <= SHORT:
        return 0.0, 0, ""
    return float(share[0] + share[-1]), 2, f"the two ends (indices 0 and {n - 1})"


def _parity(share: np.ndarray) -> tuple[float, int, str]:
    n = len(share)
    if n <= SHORT:
        return 0.0, 0, ""
    even, odd = float(share[::2].sum()), float(share[1::2].sum())
    name = "even" if even > odd else "odd"
    return max(even, odd), (n + 1) // 2 if even > odd else n // 2, f"the {name} indices"


def _stretch(share: np.ndarray) -> tuple[float, int, str]:
    """The shortest run of indices with nearly all of it."""
    n = len(share)
    if n <= SHORT:
        return 0.0, 0, ""
    sums = np.concatenate([[0.0], np.cumsum(share)])
    stops = np.searchsorted(sums, sums[:-1] + MOST - 1e-12)
    widths = np.where(stops <= n, stops - np.arange(n), n)
    start = int(widths.argmin())
    stop = start + int(widths[start])
    return float(sums[stop] - sums[start]), stop - start, f"indices {start} to {stop - 1}"


def _percent(share: float) -> str:
    """Never 100 where something is left."""
    whole = round(100 * share)
    return f"{share:.1%}".replace("%", " %") if whole == 100 and share < 0.9995 else f"{whole} %"
