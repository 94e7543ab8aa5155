"""What the candidate is fed: the reference's inputs, in the layout that the candidate takes.

Images and sequences lie channels first in PyTorch and ONNX and channels last in Keras, TensorFlow
and JAX. Three things say what a candidate takes, in this order: the caller's ``candidate_inputs=``;
the shapes that the model itself declares (a Keras `Input`, an ONNX graph), where the reference's
arrays fit them in exactly one of the two other layouts; else it takes them as they are. An array
that fits as it is is never turned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from crosscheck.errors import InvalidArgument, capped
from crosscheck.inputs import make_inputs

if TYPE_CHECKING:
    from crosscheck.adapters.base import Adapter

__all__ = ["LAYOUTS", "Turned", "inputs_of_candidate", "understood"]

LAYOUTS: Mapping[str, tuple[int, int]] = {"channels_last": (1, -1), "channels_first": (-1, 1)}
"""Layout -> the axis that moves, and where to; the reference has the other one."""

_LEAST = 3
"""Axes of an array that has a layout: a batch, channels and at least one place."""


@dataclass(frozen=True)
class Turned:
    """A ``candidate_inputs`` made of layouts: hands on the reference's inputs, turned.

    Attributes:
        layouts: input -> one of `LAYOUTS`; inputs that are not named stay as they are.
        every: the layout of all others of three axes or more; "" for none.
    """

    layouts: Mapping[str, str]
    every: str = ""

    def __call__(self, ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """
        Raises:
            InvalidArgument: no such input, or one that has no channels to move.
        """
        unknown = [name for name in self.layouts if name not in ours]
        if unknown:
            raise InvalidArgument(
                f"candidate_inputs: no input is called {capped(unknown)}; the reference's are "
                f"{capped(ours)}"
            )
        return {name: self._one(name, array) for name, array in ours.items()}

    def _one(self, name: str, array: np.ndarray) -> np.ndarray:
        layout = self.layouts.get(name) or (self.every if array.ndim >= _LEAST else "")
        if layout and array.ndim < _LEAST:
            raise InvalidArgument(
                f"candidate_inputs: {layout} of input `{name}` {array.shape}: a layout takes a "
                "batch, channels and at least one axis more"
            )
        return _turned(array, layout) if layout else array


def understood(given: Any) -> Any:
    """``candidate_inputs`` as the stages take it: layouts become a function, like any other.

    Raises:
        InvalidArgument: a layout beside an array of its own.
    """
    if isinstance(given, str) and given in LAYOUTS:
        return Turned({}, given)
    if not isinstance(given, Mapping):
        return given
    layouts = {n: v for n, v in given.items() if isinstance(v, str) and v in LAYOUTS}
    others = [str(name) for name in given if name not in layouts]
    if layouts and others:
        raise InvalidArgument(
            f"candidate_inputs names layouts ({capped(layouts)}) and arrays ({capped(others)}).\n"
            "  Fix: leave out the inputs that are the reference's as they are, or give a function "
            "from the reference's inputs to the candidate's"
        )
    return Turned(layouts) if layouts else given


def inputs_of_candidate(
    given: Mapping[str, Any] | Callable[..., Any] | str | None,
    ours: Mapping[str, np.ndarray],
    seed: int,
    adapter: Adapter,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The candidate's inputs, and notes on those that were turned because the model declares so.

    Args:
        given: the caller's ``candidate_inputs``, as it is or `understood`.
        ours: the reference's inputs.
        seed: of specs in ``given``.
        adapter: the candidate's, which may declare what it takes.

    Raises:
        InvalidArgument: ``given`` is no inputs.
    """
    given = understood(given)
    if given is None:
        return _as_declared(ours, adapter)
    if callable(given):
        made = given({name: array.copy() for name, array in ours.items()})
        if not isinstance(made, Mapping) and len(ours) == 1:
            made = {next(iter(ours)): made}
        given = made
    try:
        return make_inputs(given, seed=seed), ()
    except InvalidArgument as error:
        layouts = f"; or a layout, {' or '.join(LAYOUTS)}" if "spec" in str(error) else ""
        raise InvalidArgument(f"candidate_inputs: {error}{layouts}") from error.__cause__


def _as_declared(
    ours: Mapping[str, np.ndarray], adapter: Adapter
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Turn what does not fit the declared shape and fits it in one other layout."""
    theirs, notes = dict(ours), []
    for name, shape in adapter.declared(ours).items():
        array = ours[name]
        if array.ndim < _LEAST or _fits(array.shape, shape):
            continue
        made = {what: _turned(array, layout) for what, layout in _ways(array.ndim).items()}
        fitting = [what for what, turned in made.items() if _fits(turned.shape, shape)]
        if len(fitting) != 1:
            continue
        (what,), theirs[name] = fitting, made[fitting[0]]
        sizes = ", ".join("any" if n is None else str(n) for n in shape)
        notes.append(
            f"the candidate's input `{name}` is the reference's, {what}: {theirs[name].shape} for "
            f"{array.shape}; its model declares ({sizes})"
        )
    return theirs, tuple(notes)


def _ways(axes: int) -> dict[str, str]:
    """What is tried, in words -> layout."""
    if axes == _LEAST:  # one exchange, whichever of the two axes the channels are
        return {"its last two axes exchanged": "channels_last"}
    return {layout.replace("_", " "): layout for layout in LAYOUTS}


def _fits(shape: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    """Whether a declared shape, None for any size, admits this one."""
    return len(shape) == len(declared) and all(
        d is None or d == n for n, d in zip(shape, declared, strict=True)
    )


def _turned(array: np.ndarray, layout: str) -> np.ndarray:
    """The array in a layout, in one piece, as if it had been made so."""
    return np.ascontiguousarray(np.moveaxis(array, *LAYOUTS[layout]))
