"""Hypotheses on recurrent layers: the sequence is run again, with one thing done otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.explain.cells import GATES, Cell, Weights, run
from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.registry import register

__all__ = [
    "NAMES",
    "Network",
    "has_rows_last",
    "layers_of",
    "part",
    "place",
    "right_cells",
    "sequence",
]

NAMES = {"lstm": "ifgo", "gru": "rzn", "rnn": "h"}
MOST_STEPS = 200_000  # elements of the input times gates; a run costs a few passes over them


@dataclass(frozen=True)
class Network:
    """A stack of recurrent layers, as one layer of a model.

    Attributes:
        cell: of every layer.
        batch_first: the input is (B, T, in).
        view: which of the results the value is; see `_VIEWS`.
        flipped: outputs of the backward direction stand in the order in which they were made.
        sums: directions are added, not put side by side.
        given: the initial states among the inputs are used.
        reversed_input: the sequence runs from its end.
        exchanged: the directions stand in the other order.
        other: the cell of one direction alone, ``where``.
    """

    cell: Cell
    batch_first: bool
    view: str
    flipped: bool = False
    sums: bool = False
    given: bool = True
    reversed_input: bool = False
    exchanged: bool = False
    other: Cell | None = None
    where: int = 0

    def __call__(self, e: Evidence) -> np.ndarray:
        """The value at the site."""
        x = sequence(e)
        x = x.swapaxes(0, 1) if self.batch_first else x
        x = x[::-1] if self.reversed_input else x
        hidden: list[np.ndarray] = []
        memory: list[np.ndarray] = []
        first = _states(e) if self.given else []
        for layer in layers_of(e):
            outputs = []
            for direction, weights in enumerate(layer):
                start = tuple(s[len(hidden)] for s in first)
                cell = self.cell if self.other is None or direction != self.where else self.other
                y, state = run(cell, weights, x, start, backwards=bool(direction))
                outputs.append(y[::-1] if direction and self.flipped else y)
                hidden.append(state[0])
                memory.append(state[-1])
            outputs = outputs[::-1] if self.exchanged else outputs
            x = np.sum(outputs, axis=0) if self.sums else np.concatenate(outputs, axis=-1)
        return _viewed(self.view, x, hidden, memory, self.batch_first, len(layers_of(e)[-1]))


def _viewed(
    view: str,
    y: np.ndarray,
    hidden: list[np.ndarray],
    memory: list[np.ndarray],
    batch_first: bool,
    directions: int,
) -> np.ndarray:
    if view == "sequence":
        return y.swapaxes(0, 1) if batch_first else y
    if view == "states":
        return np.stack(hidden)
    if view == "memories":
        return np.stack(memory)
    if view == "final":
        return np.concatenate(hidden[-directions:], axis=-1)
    return np.asarray(y[-1] if view == "last" else y[0])


_VIEWS = {
    "sequence": "the outputs of every step",
    "final": "the final state of each direction",
    "last": "the outputs at the last step",
    "start": "the outputs at the first step",
    "states": "the final states",
    "memories": "the final memories",
}


def sequence(e: Evidence) -> np.ndarray:
    """The input (three axes); a state may be given beside it."""
    return next(x for x in e.inputs if x.dtype.kind == "f" and x.ndim == 3)


def _states(e: Evidence) -> list[np.ndarray]:
    """The initial states given beside the sequence, (layers · directions, B, H) each."""
    floats = [x for x in e.inputs if x.dtype.kind == "f"]
    return [x for x in floats[1:] if x.ndim == 3]


def layers_of(e: Evidence) -> list[list[Weights]]:
    """Weights by layer and direction, from the names and axes of the parameters."""
    groups: dict[tuple[int, bool], dict[str, np.ndarray]] = {}
    for parameter in e.parameters:
        if parameter.kind not in GATES:
            continue
        key = place(parameter.name)
        groups.setdefault(key, {})[part(parameter)] = _rows_first(parameter)
    layers: dict[int, list[Weights]] = {}
    for (layer, _), found in sorted(groups.items()):
        zeros = np.zeros(len(found["back"]))
        weights = Weights(
            found["into"], found["back"], found.get("bias", zeros), found.get("back_bias", zeros)
        )
        layers.setdefault(layer, []).append(weights)
    return list(layers.values())


def place(name: str) -> tuple[int, bool]:
    """(layer, backward?) of ``weight_ih_l1_reverse`` and its like."""
    leaf = name.rpartition(".")[2]
    digits = leaf.partition("_l")[2].partition("_")[0]
    return (int(digits) if digits.isdigit() else 0), "reverse" in leaf or "backward" in name


def part(parameter: Parameter) -> str:
    leaf = parameter.name.replace("/", ".").rpartition(".")[2]
    back = "_hh" in leaf or "recurrent" in leaf
    if parameter.value.ndim == 1:
        return "back_bias" if back else "bias"
    return "back" if back else "into"


def has_rows_last(parameter: Parameter) -> bool:
    """Whether the gates run along the last axis of a matrix."""
    axes = parameter.axes or ()
    return parameter.value.ndim == 2 and len(axes) == 2 and axes[1].startswith("gates")


def _rows_first(parameter: Parameter) -> np.ndarray:
    """The gates along the first axis."""
    return parameter.value.T if has_rows_last(parameter) else parameter.value


@register("forward")
def recurrent(e: Evidence) -> Iterator[Proposal]:
    """Gates, biases, resets, directions and states in another way."""
    ours = _reference(e)
    if ours is None:
        return
    for name, text, cell in (*_orders_of(ours.cell), *_cells(ours.cell)):
        yield Proposal(name, text, replace(ours, cell=cell))
    if len(layers_of(e)[-1]) == 2:
        yield from _of_one_direction(ours)
        text = "the outputs of the backward direction are not turned back"
        yield Proposal("direction_flipped", text, replace(ours, flipped=not ours.flipped))
        text = "the directions are added up, not put side by side"
        yield Proposal("direction_sum", text, replace(ours, sums=True))
        text = "the directions stand in the other order"
        yield Proposal("direction_order", text, replace(ours, exchanged=True))
    text = "the sequence is run from its end"
    yield Proposal("sequence_reversed", text, replace(ours, reversed_input=True))
    text = "the first two axes are taken for each other: time for batch"
    yield Proposal("time_axis", text, replace(ours, batch_first=not ours.batch_first))
    if _states(e):
        text = "the initial state that is given is not used"
        yield Proposal("initial_state", text, replace(ours, given=False))
    for view, what in _VIEWS.items():
        if view != ours.view:
            text = f"{what}, for {_VIEWS[ours.view]}"
            yield Proposal("recurrent_state", text, replace(ours, view=view))


def _of_one_direction(ours: Network) -> Iterator[Proposal]:
    for name, text, cell in (*_orders_of(ours.cell), *_cells(ours.cell)):
        for where, direction in enumerate(("forward", "backward")):
            statement = f"{text}, in the {direction} direction alone"
            yield Proposal(name, statement, replace(ours, other=cell, where=where))


def _orders_of(cell: Cell) -> Iterator[tuple[str, str, Cell]]:
    """(name, statement, cell with its gates in another order)."""
    names = NAMES[cell.kind]
    for order in itertools.permutations(range(len(names))):
        if order != cell.gates:
            given = ", ".join(names[cell.gates.index(block)] for block in order)
            text = f"for the gates {', '.join(names)} those of {given} are taken"
            yield "gate_order", text, replace(cell, gates=order)


def _cells(cell: Cell) -> Iterator[tuple[str, str, Cell]]:
    """(name, statement, changed cell)."""
    if cell.kind == "gru":
        where = ("before", "after") if cell.reset_after else ("after", "before")
        text = f"the reset gate is applied {where[0]} the matrix product, not {where[1]} it"
        yield "reset_gate", text, replace(cell, reset_after=not cell.reset_after)
        text = "the reset gate leaves the recurrent bias out"
        yield "recurrent_bias", text, replace(cell, free_bias=True)
        yield "update_gate", "z is taken for 1 - z", replace(cell, keep=not cell.keep)
    if cell.kind == "lstm":
        for extra in (1.0, -1.0):
            text = f"{extra:+g} is added to the forget gate"
            yield "forget_bias", text, replace(cell, forget=extra)
        text = "the memory reaches the output gate without its tanh"
        yield "memory_tanh", text, replace(cell, squash=False)
    for field, what in (("bias", "bias"), ("back_bias", "recurrent bias")):
        for times, text in ((0.0, "missing"), (2.0, "counted twice")):
            yield "recurrent_bias", f"the {what} is {text}", replace(cell, **{field: times})  # type: ignore[arg-type]
    if cell.kind == "rnn":
        ours, theirs = ("ReLU", "tanh") if cell.relu else ("tanh", "ReLU")
        yield "activation", f"{theirs} for {ours} in the cell", replace(cell, relu=not cell.relu)
    else:
        for hard, name in ((0.2, "0.2"), (1 / 6, "1/6")):
            text = f"the gates are hard sigmoids of slope {name}"
            yield "hard_gates", text, replace(cell, hard=hard)


def _reference(e: Evidence) -> Network | None:
    """How the reference's layer runs; None if it is no recurrent layer."""
    kinds = {p.kind for p in e.parameters} & set(GATES)
    if len(kinds) != 1 or not any(x.dtype.kind == "f" and x.ndim == 3 for x in e.inputs):
        return None
    if sequence(e).size * 4 > MOST_STEPS:
        return None
    (kind,) = kinds
    for cell, batch_first in right_cells(e, kind):
        for view in _VIEWS:
            network = Network(cell, batch_first, view)
            if e.fits_reference(network(e)):
                return network
    return None


def right_cells(e: Evidence, kind: str) -> Iterator[tuple[Cell, bool]]:
    """Right cells of a kind that the reference may have, and whether its batch comes first."""
    for order in orders(e, kind):
        for batch_first, after, relu in itertools.product(
            (True, False),
            (True, False) if kind == "gru" else (True,),
            (False, True) if kind == "rnn" else (False,),
        ):
            yield Cell(kind, order, reset_after=after, relu=relu), batch_first


def orders(e: Evidence, kind: str) -> list[tuple[int, ...]]:
    """Where i, f, g, o (r, z, n) stand in the reference's weights: as its axes say, or as usual."""
    names = NAMES[kind]
    found = [tuple(range(len(names)))]
    for parameter in e.parameters:
        for axis in parameter.axes or ():
            said = axis.partition("gates:")[2]
            if sorted(said) == sorted(names):
                found.insert(0, tuple(said.index(gate) for gate in names))
    return list(dict.fromkeys(found))
