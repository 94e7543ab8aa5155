"""Hypotheses on the way back through a recurrent layer: one thing left out, or gates exchanged."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.explain.cells import GATES, Cell, Weights, run
from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.recurrent import (
    NAMES,
    has_rows_last,
    layers_of,
    part,
    place,
    right_cells,
    sequence,
)
from crosscheck.explain.registry import register
from crosscheck.explain.unrolled import MISTAKES, Sent, Slip, sent_back

__all__: list[str] = []

MOST_STEPS = 200_000  # elements of the input times gates


@dataclass(frozen=True)
class _Way:
    """How gradients come back through a stack of recurrent layers that start at zero.

    Attributes:
        batch_first: the input is (B, T, in).
        whole: outputs of every step get a cotangent; else those of the last one alone.
        where: the direction in which ``slip`` is made; None: in all.
    """

    cell: Cell
    batch_first: bool
    whole: bool = True
    slip: Slip = Slip()
    where: int | None = None

    def __call__(self, e: Evidence) -> np.ndarray:
        """The cotangent of the sequence, or the gradient of the parameter that is compared."""
        sent, first = self._sent(e)
        if e.parameter is None:
            return first.swapaxes(0, 1) if self.batch_first else first
        layer, backward = place(e.parameter.name)
        made = getattr(sent[layer][int(backward)].weights, part(e.parameter))
        return np.asarray(made.T if has_rows_last(e.parameter) else made)

    def _sent(self, e: Evidence) -> tuple[list[list[Sent]], np.ndarray]:
        x, layers = sequence(e), layers_of(e)
        x = x.swapaxes(0, 1) if self.batch_first else x
        fed = []
        for layer in layers:
            fed.append(x)
            ways = enumerate(layer)
            made = [run(self.cell, w, x, backwards=bool(i))[0] for i, w in ways]
            x = np.concatenate(made, axis=-1)
        dy = self._cotangent(e, x.shape)
        sent: list[list[Sent]] = []
        for layer, x in zip(layers[::-1], fed[::-1], strict=True):
            parts = np.split(dy, len(layer), axis=-1)
            one = [
                self._back(w, x, d, i) for i, (w, d) in enumerate(zip(layer, parts, strict=True))
            ]
            sent.insert(0, one)
            dy = np.sum([s.x for s in one], axis=0)
        return sent, dy

    def _back(self, weights: Weights, x: np.ndarray, dy: np.ndarray, direction: int) -> Sent:
        slip = self.slip if self.where in (None, direction) else Slip()
        return sent_back(self.cell, weights, x, dy, slip, backwards=bool(direction))

    def _cotangent(self, e: Evidence, shape: tuple[int, ...]) -> np.ndarray:
        assert e.given is not None
        if self.whole:
            return e.given.swapaxes(0, 1) if self.batch_first else e.given
        dy = np.zeros(shape)
        dy[-1] = e.given
        return dy


@register("backward", "parameter_gradient")
def recurrent_backward(e: Evidence) -> Iterator[Proposal]:
    """A step of the backpropagation through time left out or made wrong; gates exchanged."""
    ours = _reference(e)
    if ours is None:
        return
    # A parameter belongs to one direction, and hears of no other.
    apart = e.parameter is None and len(layers_of(e)[-1]) == 2
    for name, text, slip in _slips(ours.cell):
        yield Proposal(name, text, replace(ours, slip=slip))
        for where, direction in enumerate(("forward", "backward") if apart else ()):
            statement = f"{text}, in the {direction} direction alone"
            yield Proposal(name, statement, replace(ours, slip=slip, where=where))


def _slips(cell: Cell) -> Iterator[tuple[str, str, Slip]]:
    """(name, statement, what is wrong)."""
    for name, text in MISTAKES[cell.kind].items():
        yield "recurrent_backward", text, Slip(name)
    names = NAMES[cell.kind]
    for order in itertools.permutations(range(len(names))):
        if order != tuple(range(len(names))):
            text = f"for the gradients of the gates {', '.join(names)} those of "
            text += f"{', '.join(names[i] for i in order)} are taken"
            yield "gate_order_backward", text, Slip(gates=order)


def _reference(e: Evidence) -> _Way | None:
    """How the reference goes back; None if it is no recurrent layer."""
    kinds = {p.kind for p in e.parameters} & set(GATES)
    if len(kinds) != 1 or e.given is None or e.slot or e.kind == "cotangent":
        return None
    if not any(x.dtype.kind == "f" and x.ndim == 3 for x in e.inputs):
        return None
    (kind,) = kinds
    if sequence(e).size * GATES[kind] > MOST_STEPS:
        return None
    whole = e.given.ndim == 3
    ways = (_Way(cell, first, whole) for cell, first in right_cells(e, kind))
    return next((way for way in ways if _fits(e, way)), None)


def _fits(e: Evidence, way: _Way) -> bool:
    try:
        return e.fits_reference(way(e))
    except (ValueError, IndexError):  # other shapes than those of this layout
        return False
