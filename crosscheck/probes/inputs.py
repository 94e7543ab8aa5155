"""Part of stage 3, feed: other inputs of the same model, which show what one random batch hides.

Each probe is a function from the inputs of a check to other inputs that the model may be fed:
integers stay in their range (that of the spec, or what was seen), masks stay masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosscheck.arrays import is_float
from crosscheck.inputs import Spec, draw, parse_spec

__all__ = [
    "BUILT_IN",
    "Given",
    "NotApplicable",
    "axis_groups",
    "given_of",
    "is_mask",
    "odd",
    "row_axis",
]

SMALL = 0.02  # standard deviation: beside an eps of 1e-5 the variance is no longer large
LARGE = 100.0


class NotApplicable(Exception):
    """A probe that has nothing to change in these inputs; says why."""


@dataclass(frozen=True)
class Given:
    """One input of the check.

    Attributes:
        value: as the check feeds it.
        spec: what it was drawn from; None for an array.
    """

    value: np.ndarray
    spec: Spec | None = None

    @property
    def limits(self) -> tuple[Any, Any] | None:
        """The least and the greatest value that the input may take; None for any float."""
        if self.spec is not None and self.spec.low is not None and self.spec.high is not None:
            if not is_float(self.value):
                return int(self.spec.low), int(self.spec.high) - 1
            below = np.nextafter(self.value.dtype.type(self.spec.high), self.value.dtype.type(0))
            return self.spec.low, min(float(below), float(self.spec.high))
        if is_float(self.value) or not self.value.size:
            return None
        return int(self.value.min()), int(self.value.max())

    def within(self, value: float) -> float:
        """The number nearest to ``value`` that the input may take."""
        if self.limits is None:
            return value
        least, most = self.limits
        return float(min(max(value, least), most))

    def filled(self, value: float) -> np.ndarray:
        """An array of one value, moved into the range."""
        return np.full_like(self.value, self.within(value))


Inputs = Mapping[str, Given]


def given_of(raw: Any, made: Mapping[str, np.ndarray]) -> dict[str, Given]:
    """The inputs of a check, with the specs that the caller wrote for them."""
    named = raw if isinstance(raw, Mapping) else {"x": raw}
    return {name: Given(value, _spec(named.get(name), name)) for name, value in made.items()}


def _spec(value: Any, name: str) -> Spec | None:
    if isinstance(value, str):
        return parse_spec(value, name=name)
    return value if isinstance(value, Spec) else None


def is_mask(value: np.ndarray) -> bool:
    """Whether an input says yes or no: booleans, or integers that are 0 and 1 only."""
    if value.dtype.kind == "b":
        return True
    return value.dtype.kind in "iu" and value.size > 1 and bool(np.isin(value, (0, 1)).all())


def _is_switch(value: np.ndarray) -> bool:
    """A mask, or floats of two values, which stand for one."""
    return is_mask(value) or (is_float(value) and value.size > 2 and np.unique(value).size <= 2)


def row_axis(inputs: Mapping[str, np.ndarray]) -> int:
    """The length of the batch: that of the first axis of the first input that has one."""
    return next((v.shape[0] for v in inputs.values() if v.ndim), 0)


# -- the probes ------------------------------------------------------------------------------------


def _changed(
    inputs: Inputs, change: Callable[[Given], np.ndarray | None], otherwise: str
) -> dict[str, np.ndarray]:
    """Every input through ``change`` (None: as it is).

    Raises:
        NotApplicable: nothing changes; ``otherwise`` says why.
    """
    made = {}
    for name, one in inputs.items():
        value = change(one)
        made[name] = one.value if value is None else value.astype(one.value.dtype)
    if all(np.array_equal(made[name], one.value) for name, one in inputs.items()):
        raise NotApplicable(otherwise)
    return made


def _small(inputs: Inputs) -> dict[str, np.ndarray]:
    def shrink(one: Given) -> np.ndarray | None:
        if not is_float(one.value) or _is_switch(one.value):
            return None
        wide = one.value.astype(np.float64)
        spread = float(wide.std())
        centre = 0.0 if one.limits is None else (one.limits[0] + one.limits[1]) / 2
        return None if spread <= SMALL else np.asarray(centre + (wide - centre) * (SMALL / spread))

    return _changed(inputs, shrink, "no float input varies by more than that")


def _large(inputs: Inputs) -> dict[str, np.ndarray]:
    def grow(one: Given) -> np.ndarray | None:
        if not is_float(one.value) or _is_switch(one.value):
            return None
        if one.limits is None:
            return np.asarray(one.value.astype(np.float64) * LARGE)
        low, high = one.limits
        return np.asarray(np.where(one.value > (low + high) / 2, high, low))

    return _changed(inputs, grow, "no float input")


def _padded(inputs: Inputs) -> dict[str, np.ndarray]:
    def pad(one: Given) -> np.ndarray | None:
        value = one.value
        if is_float(value) or not value.ndim or value.shape[-1] < 2:
            return None
        length = value.shape[-1]
        rows = value.reshape(-1, length).copy()
        if is_mask(value):
            rows[...] = True
        for i, row in enumerate(rows):
            padding = max(1, length // 3) + i % 2  # rows of different lengths
            row[max(1, length - padding) :] = 0 if is_mask(value) else one.within(0)
        return rows.reshape(value.shape)

    return _changed(inputs, pad, "no input of tokens, nor a mask")


def _repeated(inputs: Inputs) -> dict[str, np.ndarray]:
    rows = row_axis({name: one.value for name, one in inputs.items()})

    def repeat(one: Given) -> np.ndarray | None:
        if not one.value.ndim or one.value.shape[0] != rows:
            return None
        return np.repeat(one.value[:1], rows, axis=0)

    return _changed(inputs, repeat, "a batch of one row, or of equal rows")


def _constant(inputs: Inputs) -> dict[str, np.ndarray]:
    def level(one: Given) -> np.ndarray | None:
        if _is_switch(one.value) or not one.value.size:
            return None
        if is_float(one.value):
            return one.filled(0.5 if one.limits is None else sum(one.limits) / 2)
        low, high = one.limits or (0, 0)
        return one.filled((low + high) // 2)

    return _changed(inputs, level, "no input but masks")


def _zeros(inputs: Inputs) -> dict[str, np.ndarray]:
    def clear(one: Given) -> np.ndarray | None:
        return None if _is_switch(one.value) else one.filled(0)

    return _changed(inputs, clear, "the inputs are zero already, or masks")


BUILT_IN: dict[str, tuple[str, Callable[[Inputs], dict[str, np.ndarray]] | None]] = {
    "small": (f"floats of standard deviation {SMALL:g}", _small),
    "large": (f"floats {LARGE:g} times as large, or at the ends of their range", _large),
    "padded": ("padding in the tail of every row, masks accordingly", _padded),
    "odd": ("another batch, and sizes of the other parity", None),  # needs the reference: `odd`
    "repeated": ("every row the same", _repeated),
    "constant": ("every number the same", _constant),
    "zeros": ("zeros", _zeros),
}
"""Name of each probe -> (what it feeds, how it is made)."""


# -- other sizes -----------------------------------------------------------------------------------


def odd(
    inputs: Inputs, *, seed: int, refusal: Callable[[Mapping[str, np.ndarray]], str]
) -> dict[str, np.ndarray]:
    """Another batch, and another parity of every other size that the reference lets one change.

    Axes of one length change together (the tokens and their mask). Which of them may change only
    the model knows: it is asked, one length at a time.

    Args:
        refusal: why the reference does not take some inputs; empty where it does.

    Raises:
        NotApplicable: the reference takes no other size at all.
    """
    shapes = {name: list(one.value.shape) for name, one in inputs.items()}
    made: dict[str, np.ndarray] = {}
    said = "its inputs have no axes"
    for axes, rows, length in axis_groups({name: one.value for name, one in inputs.items()}):
        for other in [length + 1] if rows else _other_parity(length):
            changed = {name: list(shape) for name, shape in shapes.items()}
            for name, axis in axes:
                changed[name][axis] = other
            trial = {n: _of_shape(inputs[n], tuple(s), seed, n) for n, s in changed.items()}
            said = refusal(trial)
            if not said:
                made, shapes = trial, changed
                break
    if not made:
        raise NotApplicable(f"the reference takes no other size: {said}")
    return made


def axis_groups(
    inputs: Mapping[str, np.ndarray],
) -> list[tuple[list[tuple[str, int]], bool, int]]:
    """((input, axis) that change together, whether they are the batch, length): the batch first,
    then every other length above one."""
    batch = row_axis(inputs)
    groups: dict[tuple[bool, int], list[tuple[str, int]]] = {(True, batch): []}
    for name, value in inputs.items():
        for axis, length in enumerate(value.shape):
            groups.setdefault((axis == 0 and length == batch, length), []).append((name, axis))
    return [
        (axes, rows, length)
        for (rows, length), axes in groups.items()
        if axes and (rows or length > 1)
    ]


def _other_parity(length: int) -> list[int]:
    return [length - 1, length + 1] if length > 2 else [length + 1]


def _of_shape(one: Given, shape: tuple[int, ...], seed: int, name: str) -> np.ndarray:
    """The input in another shape: drawn again, or its values around and around."""
    if shape == one.value.shape:
        return one.value
    if one.spec is not None:
        return draw(Spec(one.spec.dtype, shape, one.spec.low, one.spec.high), seed=seed, name=name)
    value = one.value
    for axis, length in enumerate(shape):
        value = np.take(value, np.arange(length) % max(value.shape[axis], 1), axis=axis)
    return value
