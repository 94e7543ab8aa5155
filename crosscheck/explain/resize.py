"""Hypotheses on resizing: a linear map along each inner axis, and which one the candidate takes.

Output pixel i looks at the input coordinate c(i): half-pixel (i + ½)·s − ½, asymmetric i·s, or
align-corners i·(n − 1)/(m − 1), with s = n/m. A filter (nearest, linear, cubic with parameter a)
weighs the pixels around c. The reference's own combination is the one that reproduces its value.
(Keys 1981 for the cubic; with antialiasing the filter is s times as wide where it shrinks.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.registry import register

__all__ = ["Resize", "resizes"]

_COORDINATES: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "half-pixel": lambda i, n, m: (i + 0.5) * (n / m) - 0.5,
    "asymmetric": lambda i, n, m: i * (n / m),
    "align-corners": lambda i, n, m: i * ((n - 1) / (m - 1)) if m > 1 else 0.0 * i,
}
_ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": lambda c: np.floor(c + 1e-9),
    "half down": lambda c: np.ceil(c - 0.5 - 1e-9),
    "half up": lambda c: np.floor(c + 0.5 + 1e-9),
    "ceil": lambda c: np.ceil(c - 1e-9),
}


@dataclass(frozen=True)
class Resize:
    """One way to resize the inner axes of an image.

    Attributes:
        filter: ``"nearest"``, ``"linear"``, ``"cubic"`` or ``"area"`` (means of adaptive bins).
        coordinates: name of the map c.
        rounding: of a nearest neighbour.
        a: of a cubic.
        antialias: the filter widens where the image shrinks.
        outside: what lies beyond the edge: ``"edge"`` repeats it, ``"left out"`` renormalises.
    """

    filter: str
    coordinates: str = "half-pixel"
    rounding: str = "floor"
    a: float = -0.75
    antialias: bool = False
    outside: str = "edge"

    def __call__(self, e: Evidence) -> np.ndarray:
        """The resized input."""
        assert e.x is not None
        value = e.x
        for axis in inner_axes(e):
            matrix = self.matrix(value.shape[axis], e.reference.shape[axis])
            value = np.moveaxis(np.tensordot(matrix, value, axes=(1, axis)), 0, axis)
        return value

    def back(self, e: Evidence) -> np.ndarray:
        """The cotangent at the output, sent back to the input."""
        assert e.output is not None and e.given is not None
        value = e.given
        for axis in inner_axes(replace(e, reference=e.output)):
            matrix = self.matrix(e.reference.shape[axis], e.output.shape[axis])
            value = np.moveaxis(np.tensordot(matrix.T, value, axes=(1, axis)), 0, axis)
        return value

    def matrix(self, n: int, m: int) -> np.ndarray:
        """Weights (m, n) of the input's pixels along one axis."""
        if self.filter == "area":
            return _bins(n, m)
        centre = _COORDINATES[self.coordinates](np.arange(m, dtype=np.float64), n, m)
        if self.filter == "nearest":
            index = np.clip(_ROUNDINGS[self.rounding](centre), 0, n - 1).astype(np.intp)
            return np.asarray(np.eye(n)[index])
        width = max(n / m, 1.0) if self.antialias else 1.0
        reach = int(np.ceil(2 * width)) + 1
        places = np.floor(centre)[:, None] + np.arange(-reach, reach + 1)
        weights = self._filter((places - centre[:, None]) / width)
        inside = (places >= 0) & (places < n)
        if self.outside == "left out" or self.antialias:
            weights = np.where(inside, weights, 0.0)
        weights = weights / weights.sum(1, keepdims=True)
        matrix = np.zeros((m, n))
        rows = np.repeat(np.arange(m), places.shape[1])
        columns = np.clip(places, 0, n - 1).astype(np.intp).reshape(-1)
        np.add.at(matrix, (rows, columns), weights.reshape(-1))
        return matrix

    def _filter(self, t: np.ndarray) -> np.ndarray:
        t = np.abs(t)
        if self.filter == "linear":
            return np.maximum(1.0 - t, 0.0)
        a = self.a
        near = ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0
        far = ((t - 5.0) * t + 8.0) * t * a - 4.0 * a
        return np.where(t <= 1.0, near, np.where(t < 2.0, far, 0.0))

    def text(self) -> str:
        """For the reader."""
        if self.filter == "area":
            return "the mean of adaptive bins"
        if self.filter == "nearest":
            how = "" if self.rounding == "floor" else f", rounded {self.rounding}"
            return f"nearest neighbour, {self.coordinates} coordinates{how}"
        what = f"cubic (a = {self.a:g})" if self.filter == "cubic" else "linear"
        wide = ", antialiased" if self.antialias else ""
        edge = ", pixels beyond the edge left out" if self.outside == "left out" else ""
        return f"{what}, {self.coordinates} coordinates{wide}{edge}"


def _bins(n: int, m: int) -> np.ndarray:
    matrix = np.zeros((m, n))
    for i in range(m):
        begin, end = (i * n) // m, -((-(i + 1) * n) // m)
        matrix[i, begin:end] = 1.0 / (end - begin)
    return matrix


def resizes() -> list[Resize]:
    """Every combination that some framework has."""
    found = [Resize("area")]
    for coordinates, rounding in itertools.product(_COORDINATES, _ROUNDINGS):
        found.append(Resize("nearest", coordinates, rounding))
    for coordinates in _COORDINATES:
        found.append(Resize("linear", coordinates))
        for a, outside in itertools.product((-0.75, -0.5), ("edge", "left out")):
            found.append(Resize("cubic", coordinates, a=a, outside=outside))
    found.append(Resize("linear", antialias=True))
    found += [Resize("cubic", a=a, antialias=True) for a in (-0.5, -0.75)]
    return found


def inner_axes(e: Evidence) -> tuple[int, ...]:
    """The axes whose lengths differ, and those between them; none where it is no resize."""
    x, y = e.x, e.reference
    if x is None or x.ndim != y.ndim or not 3 <= x.ndim <= 5 or e.parameters:
        return ()
    if x.shape[0] != y.shape[0] or x.shape == y.shape:
        return ()
    if x.shape[1] == y.shape[1]:
        return tuple(range(2, x.ndim))
    return tuple(range(1, x.ndim - 1)) if x.shape[-1] == y.shape[-1] else ()


@register("forward")
def resized(e: Evidence) -> Iterator[Proposal]:
    """Another coordinate map, another rounding, another cubic, antialiasing on or off."""
    if not inner_axes(e):
        return
    known = resizes()
    ours = next((r for r in known if e.fits_reference(r(e))), None)
    if ours is None:
        return
    known.sort(key=lambda r: _differences(r, ours))
    for other in known:
        if other != ours and e.fits_candidate(other(e)) and not e.fits_reference(other(e)):
            yield Proposal("resize", f"{other.text()}; the reference: {ours.text()}", other)


@register("backward")
def resized_backward(e: Evidence) -> Iterator[Proposal]:
    """A way back that belongs to another resize than the one forward."""
    if e.kind != "input_cotangent" or e.output is None or e.given is None:
        return
    forward = replace(e, reference=e.output, candidate=e.output)
    if not inner_axes(forward):
        return
    known = resizes()
    ours = next((r for r in known if e.fits_reference(r.back(e))), None)
    if ours is None:
        return
    for other in sorted(known, key=lambda r: _differences(r, ours)):
        back = other.back(e)
        if other != ours and e.fits_candidate(back) and not e.fits_reference(back):
            text = f"the way back is that of {other.text()}; forward is {ours.text()}"
            yield Proposal("resize", text, other.back)


def _differences(one: Resize, other: Resize) -> int:
    """In how many respects two differ, the filter most of all."""
    fields = ("coordinates", "rounding", "a", "antialias", "outside")
    apart = sum(getattr(one, f) != getattr(other, f) for f in fields)
    return int(apart + 8 * (one.filter != other.filter))
