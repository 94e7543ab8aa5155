"""Hypotheses on parameters: what a conversion does to an array on the way."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.numbers import slope, tidy
from crosscheck.explain.readings import readings
from crosscheck.explain.rearranged import is_order
from crosscheck.explain.registry import register
from crosscheck.explain.rounding import FORMATS

__all__: list[str] = []

MOST_HEADS = 32
MOST_BLOCKS = 4  # gates of an LSTM; q, k, v


@register("weights")
def permuted_axes(e: Evidence) -> Iterator[Proposal]:
    """Transposed, or its axes in another order of the same shape."""
    shape = e.reference.shape
    for axes in itertools.permutations(range(len(shape))):
        if axes == tuple(range(len(shape))) or tuple(shape[a] for a in axes) != shape:
            continue
        if len(shape) == 2:
            statement = "the matrix is the transpose of the reference's"
        else:
            statement = f"the axes are the reference's in the order {axes}"
        yield Proposal("permuted_axes", statement, lambda e, axes=axes: e.reference.transpose(axes))


@register("weights")
def flipped(e: Evidence) -> Iterator[Proposal]:
    """A kernel that is read backwards along some of its axes."""
    known = e.parameter.axes if e.parameter is not None else None
    longer = [a for a, n in enumerate(e.reference.shape) if n > 1][:5]
    for count in range(1, len(longer) + 1):
        for axes in itertools.combinations(longer, count):
            if known is not None and len(known) == e.reference.ndim:
                where = "the kernel is flipped in " + " and ".join(known[a] for a in axes)
            else:
                where = f"the elements are in reverse order along axis {_listed(axes)}"
            yield Proposal("flipped", where, lambda e, axes=axes: np.flip(e.reference, axes))


@register("weights")
def permuted_blocks(e: Evidence) -> Iterator[Proposal]:
    """Gates, heads or packed parts in another order."""
    for axis, count in itertools.product(range(e.reference.ndim), range(2, MOST_BLOCKS + 1)):
        length = e.reference.shape[axis]
        if length % count or length == count == 1:
            continue
        for order in itertools.permutations(range(count)):
            if order == tuple(range(count)):
                continue
            yield Proposal(
                "permuted_blocks",
                f"the {count} blocks along axis {axis} are the reference's in the order {order}",
                functools.partial(_blocks, axis=axis, order=order),
            )


def _blocks(e: Evidence, *, axis: int, order: tuple[int, ...]) -> np.ndarray:
    parts = np.split(e.reference, len(order), axis=axis)
    return np.concatenate([parts[i] for i in order], axis=axis)


@register("weights")
def interleaved(e: Evidence) -> Iterator[Proposal]:
    """Packed parts whose rows were read in turn for one after the other, or the reverse."""
    for axis, count in itertools.product(range(e.reference.ndim), range(2, MOST_BLOCKS + 1)):
        length = e.reference.shape[axis]
        if length % count or length == count:
            continue
        for rows in ((count, length // count), (length // count, count)):
            order = np.arange(length).reshape(rows).T.reshape(-1)
            yield Proposal(
                "interleaved",
                f"axis {axis} is read as {rows[0]} x {rows[1]} with the two exchanged",
                lambda e, axis=axis, order=order: np.take(e.reference, order, axis=axis),
            )


@register("weights")
def packed_heads(e: Evidence) -> Iterator[Proposal]:
    """Packed q, k, v whose rows run (head, part, size) for (part, head, size), or the reverse."""
    for axis, parts in itertools.product(range(min(e.reference.ndim, 2)), (3, 2)):
        length = e.reference.shape[axis]
        for heads in range(2, MOST_HEADS + 1):
            if length % (parts * heads) or length == parts * heads:
                continue
            for shape, text in (
                ((parts, heads, -1), f"split by head first: {heads} heads of {parts} parts each"),
                ((heads, parts, -1), f"split by part first: {parts} parts of {heads} heads each"),
            ):
                order = np.arange(length).reshape(shape).swapaxes(0, 1).reshape(-1)
                if is_order(e, axis, order):
                    yield Proposal(
                        "packed_layout",
                        f"axis {axis} is {text}",
                        lambda e, axis=axis, order=order: np.take(e.reference, order, axis=axis),
                    )


@register("weights")
def misread(e: Evidence) -> Iterator[Proposal]:
    """Read in another layout than it was written in: the right shape, the wrong order."""
    if e.reference.ndim > 4 or not e.reference.size:
        return
    axes = None if e.parameter is None else e.parameter.axes
    for text, reading in readings(e.reference.shape, axes):
        yield Proposal("misread", f"the array {text}", lambda e, r=reading: r(e.reference))


@register("weights")
def one_part_raised(e: Evidence) -> Iterator[Proposal]:
    """One of the gates of a recurrent bias with a constant added, as frameworks initialise it."""
    gates = (e.parameter.axes or ("",))[0] if e.parameter is not None else ""
    names = gates.partition("gates:")[2]
    for index, step in itertools.product(range(len(names)), (1.0, -1.0)):
        yield Proposal(
            "forget_bias",
            f"{step:+g} is added to the part of gate {names[index]}",
            functools.partial(_raised, index=index, count=len(names), step=step),
        )


def _raised(e: Evidence, *, index: int, count: int, step: float) -> np.ndarray:
    part = np.arange(count).repeat(len(e.reference) // count) == index
    raised = step * part.reshape(-1, *(1 for _ in e.reference.shape[1:]))
    return np.asarray(e.reference + raised)


@register("weights")
def truncated(e: Evidence) -> Iterator[Proposal]:
    """Rounded to a narrower type while it was converted."""
    for name, to in FORMATS.items():
        yield Proposal("truncated", f"the values are rounded to {name}", _of_reference(to))


@register("weights")
def scaled(e: Evidence) -> Iterator[Proposal]:
    """Multiplied by a constant; -1 is a wrong sign."""
    k = slope(e.candidate, e.reference)
    k, text = tidy(k, lambda k: e.fits_candidate(k * e.reference))
    if k == -1.0:
        yield Proposal("sign", "the sign is the opposite", lambda e: -e.reference)
    elif k:
        statement = f"the values are those of the reference times {text}"
        yield Proposal("scaled", statement, lambda e: k * e.reference, constants=1)


@register("weights")
def not_loaded(e: Evidence) -> Iterator[Proposal]:
    """One value everywhere, as a layer is initialised."""
    value = float(e.candidate.flat[0]) if e.candidate.size else 0.0
    if value in (0.0, 1.0) and e.reference.size > 1 and np.all(e.candidate == value):
        yield Proposal(
            "not_loaded",
            f"every element is {value:g}, as before anything was loaded",
            lambda e: np.full(e.reference.shape, value),
        )


@register("weights")
def another_parameter(e: Evidence) -> Iterator[Proposal]:
    """Holds what another parameter should hold."""
    for name, other in e.others.items():
        yield Proposal(
            "another_parameter",
            f"the values are those of the reference's `{name}`",
            lambda e, name=name: e.others[name],
        )
        if other.ndim == 2 and other.shape[0] == other.shape[1]:
            yield Proposal(
                "another_parameter",
                f"the values are those of the reference's `{name}`, transposed",
                lambda e, name=name: e.others[name].T,
            )


@register("weights")
def one_more_or_less(e: Evidence) -> Iterator[Proposal]:
    """A norm whose weight is stored as w for 1 + w."""
    for shift, text in ((1.0, "1 + w for w"), (-1.0, "w - 1 for w")):
        yield Proposal("shifted", text, lambda e, shift=shift: e.reference + shift)


@register("weights")
def folded_variance(e: Evidence) -> Iterator[Proposal]:
    """A variance kept as a deviation, or the reverse."""
    if e.parameter is None or e.parameter.role != "variance":
        return
    yield Proposal("root", "the deviation for the variance", lambda e: np.sqrt(e.reference))
    yield Proposal("square", "the square of the reference's", lambda e: e.reference**2)


def _of_reference(f: Callable[[np.ndarray], np.ndarray]) -> Callable[[Evidence], np.ndarray]:
    return lambda e: f(e.reference)


def _listed(axes: tuple[int, ...]) -> str:
    return " and ".join(map(str, axes))
