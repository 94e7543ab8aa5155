"""Hypotheses on graph convolutions: how the adjacency of a graph is normalised.

Y = Â X W + b with Â = D^-½ (A + I) D^-½, D the degrees of A + I (Kipf, Welling, 2017). Ports divide
by the degree of the row alone, forget the self-loops, or read edges the other way round.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.registry import register

__all__: list[str] = []

MOST_NODES = 2048
_DIVIDED = {
    "both": "D^-½ {} D^-½",
    "rows": "D^-1 {}",
    "columns": "{} D^-1",
    "none": "{}, not normalised",
}


@dataclass(frozen=True)
class _Hat:
    """One way from edges to weights.

    Attributes:
        divided: a key of `_DIVIDED`.
        loops: every node is its own neighbour.
        bare: degrees are those without the self-loops.
        turned: edges run the other way.
    """

    divided: str
    loops: bool
    bare: bool = False
    turned: bool = False

    def __call__(self, a: np.ndarray) -> np.ndarray:
        """(..., N, N) of an adjacency, a row for each node that receives."""
        a = a.swapaxes(-1, -2) if self.turned else a
        looped = a + np.eye(a.shape[-1]) if self.loops else a
        degrees = a if self.bare else looped
        rows, columns = degrees.sum(-1, keepdims=True), degrees.sum(-2, keepdims=True)
        if self.divided == "both":
            looped = looped * _power(rows, -0.5) * _power(rows.swapaxes(-1, -2), -0.5)
        elif self.divided == "rows":
            looped = looped * _power(rows, -1.0)
        elif self.divided == "columns":
            looped = looped * _power(columns, -1.0)
        return np.asarray(looped)

    def __str__(self) -> str:
        a = "Aᵀ" if self.turned else "A"
        text = _DIVIDED[self.divided].format(f"({a} + I)" if self.loops else a)
        return text + (", D without the self-loops" if self.bare and self.loops else "")


def _power(degrees: np.ndarray, exponent: float) -> np.ndarray:
    """A node without neighbours gets nothing, not infinity."""
    safe = np.where(degrees > 0.0, degrees, 1.0)
    return np.where(degrees > 0.0, safe**exponent, 0.0)


def _hats() -> Iterator[_Hat]:
    for turned, divided, loops in itertools.product((False, True), _DIVIDED, (True, False)):
        yield _Hat(divided, loops, turned=turned)
        if loops and divided != "none":
            yield _Hat(divided, loops, bare=True, turned=turned)


@dataclass(frozen=True)
class _Made:
    """The value at a site, of an adjacency among the values at hand.

    Attributes:
        edges: what is given: (from the evidence) -> the adjacency.
        behind: what is made of the normalised one; None: it is the value itself.
    """

    hat: _Hat
    edges: Callable[[Evidence], np.ndarray]
    behind: Callable[[Evidence, np.ndarray], np.ndarray] | None

    def __call__(self, e: Evidence) -> np.ndarray:
        hat = self.hat(self.edges(e))
        return hat if self.behind is None else self.behind(e, hat)


@register("forward")
def adjacency(e: Evidence) -> Iterator[Proposal]:
    """Another normalisation of an adjacency, self-loops, or the direction of its edges."""
    for edges, behind in itertools.product(_edges(e), _behind(e)):
        ours = _reference(e, edges, behind)
        if ours is None:
            continue
        for hat in _hats():
            if hat != ours.hat:
                name = "self_loops" if _is_loops_alone(hat, ours.hat) else "graph_normalisation"
                text = f"the adjacency is taken as {hat}; in the reference as {ours.hat}"
                yield Proposal(name, text, _Made(hat, edges, behind))
        return


def _is_loops_alone(hat: _Hat, ours: _Hat) -> bool:
    return hat.loops != ours.loops and (hat.divided, hat.turned) == (ours.divided, ours.turned)


def _reference(
    e: Evidence,
    edges: Callable[[Evidence], np.ndarray],
    behind: Callable[[Evidence, np.ndarray], np.ndarray] | None,
) -> _Made | None:
    """How the reference has it; None where it is no such thing."""
    for hat in _hats():
        made = _Made(hat, edges, behind)
        try:
            if e.fits_reference(made(e)):
                return made
        except ValueError:  # shapes that do not go together
            return None
    return None


def _edges(e: Evidence) -> Iterator[Callable[[Evidence], np.ndarray]]:
    """Square values at hand, and lists of edges (2, E) among a layer's inputs."""
    for slot, value in enumerate(e.inputs):
        if _is_square(value):
            yield functools.partial(_given, slot=slot)
        elif value.dtype.kind in "iu" and value.ndim == 2 and value.shape[0] == 2:
            yield functools.partial(_of_pairs, slot=slot)
    for name, value in e.nearby.items():
        if _is_square(value):
            yield functools.partial(_at_hand, name=name)


def _is_square(value: np.ndarray) -> bool:
    square = value.ndim in (2, 3) and value.shape[-1] == value.shape[-2] <= MOST_NODES
    return square and value.size > 1 and bool(np.min(value) >= 0)


def _given(e: Evidence, *, slot: int) -> np.ndarray:
    return e.inputs[slot].astype(np.float64)


def _at_hand(e: Evidence, *, name: str) -> np.ndarray:
    return e.nearby[name]


def _of_pairs(e: Evidence, *, slot: int) -> np.ndarray:
    """The adjacency of (source, target) pairs, with as many nodes as the value has rows."""
    made = np.zeros((e.reference.shape[-2],) * 2)
    source, target = e.inputs[slot]
    np.add.at(made, (target, source), 1.0)
    return made


def _behind(
    e: Evidence,
) -> Iterator[Callable[[Evidence, np.ndarray], np.ndarray] | None]:
    """The value itself, sums over neighbours of a value at hand, and a layer of its own weights."""
    if e.reference.ndim >= 2 and e.reference.shape[-1] == e.reference.shape[-2]:
        yield None
    for name, value in e.nearby.items():
        if value.shape == e.reference.shape:
            yield functools.partial(_sums, name=name)
    for slot, value in enumerate(e.inputs):
        if value.dtype.kind == "f" and value.shape[:-1] == e.reference.shape[:-1]:
            yield functools.partial(_layer, slot=slot)


def _sums(e: Evidence, hat: np.ndarray, *, name: str) -> np.ndarray:
    return np.asarray(hat @ e.nearby[name])


def _layer(e: Evidence, hat: np.ndarray, *, slot: int) -> np.ndarray:
    """Â x W + b, of the parameters that the layer has."""
    x, weight, bias = e.inputs[slot], e.value("weight"), e.value("bias")
    if weight is None:
        weights = [p.value for p in e.parameters if p.value.ndim == 2]
        weight = weights[0] if len(weights) == 1 else None
    if bias is None:
        biases = [p.value for p in e.parameters if p.value.ndim == 1]
        bias = biases[0] if len(biases) == 1 else None
    if weight is not None:
        fits = weight.shape == (x.shape[-1], e.reference.shape[-1])
        x = x @ (weight if fits else weight.T)
    made = hat @ x
    return np.asarray(made if bias is None else made + bias)
