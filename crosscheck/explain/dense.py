"""Hypotheses on layers that multiply by a matrix, and on embedding tables."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.registry import register
from crosscheck.explain.rounding import FORMATS

__all__: list[str] = []

Map = Callable[[np.ndarray], np.ndarray]


def _matrix(e: Evidence, *, fed: Map | None = None, kernel: Map | None = None) -> np.ndarray:
    """x · W + b with W as (in, out), whichever way it is kept."""
    weight, x = e.value("weight"), e.x
    assert weight is not None and x is not None
    w = weight if _is_in_out(e) else weight.T
    x, w = (fed(x) if fed else x), (kernel(w) if kernel else w)
    bias = e.value("bias")
    return np.asarray(x @ w + (0.0 if bias is None else bias))


def _is_in_out(e: Evidence) -> bool:
    parameter = next(p for p in e.parameters if p.role == "weight")
    if parameter.axes is not None:
        return bool(parameter.axes[0] == "in")
    assert e.x is not None
    if parameter.value.shape[0] != parameter.value.shape[1]:
        return bool(parameter.value.shape[0] == e.x.shape[-1])
    bias = e.value("bias")
    product = e.x @ parameter.value + (0.0 if bias is None else bias)
    return e.fits_reference(product)


@register("forward")
def dense(e: Evidence) -> Iterator[Proposal]:
    """A matrix not transposed, operands in a narrower type."""
    weight = e.value("weight")
    if e.x is None or weight is None or weight.ndim != 2 or not e.x.ndim:
        return
    if e.x.shape[-1] not in weight.shape or not e.fits_reference(_matrix(e)):
        return
    if weight.shape[0] == weight.shape[1]:
        yield Proposal(
            "dense_transposed",
            "multiplies by the transpose of the matrix",
            functools.partial(_matrix, kernel=np.transpose),
        )
    for name, to in FORMATS.items():
        yield Proposal(
            "dense_precision",
            f"input and weight are rounded to {name} before the product",
            functools.partial(_matrix, fed=to, kernel=to),
        )
        yield Proposal(
            "weight_precision",
            f"the weight is rounded to {name}",
            functools.partial(_matrix, kernel=to),
        )
        yield Proposal(
            "input_precision",
            f"the input is rounded to {name} before the product",
            functools.partial(_matrix, fed=to),
        )


@register("forward")
def flatten_order(e: Evidence) -> Iterator[Proposal]:
    """A matrix behind a flatten whose rows are in the order of the other layout."""
    weight = e.value("weight")
    if e.x is None or e.x.ndim != 2 or weight is None or weight.ndim != 2:
        return
    if e.x.shape[-1] not in weight.shape or not e.fits_reference(_matrix(e)):
        return
    length = e.x.shape[1]
    for first in range(2, min(length, 1024)):
        if length % first == 0:
            order = np.arange(length).reshape(first, -1).T.reshape(-1)
            yield Proposal(
                "flatten_order",
                f"the rows of the matrix are in another order: flattened {length // first} x "
                f"{first} for {first} x {length // first}",
                lambda e, order=order: _matrix(e, kernel=lambda w: w[order]),
            )


@register("forward")
def embedding(e: Evidence) -> Iterator[Proposal]:
    """Rows counted from another start; a table scaled or not."""
    table = e.value("weight")
    if len(e.inputs) != 1 or e.inputs[0].dtype.kind not in "iu" or table is None:
        return
    if not e.fits_reference(_rows(e, 0)):
        return
    for step in (1, -1, 2, -2, 3):
        yield Proposal(
            "embedding_offset",
            f"reads the row {abs(step)} {'after' if step > 0 else 'before'} the right one",
            functools.partial(_rows, step=step),
        )
    root = math.sqrt(table.shape[1])
    for factor, text in (
        (root, "times the root of their length"),
        (1.0 / root, "divided by the root of their length"),
        *(
            (float(to(np.array(root))), f"times the root of their length, rounded to {name}")
            for name, to in FORMATS.items()
        ),
    ):
        yield Proposal(
            "embedding_scale", f"the rows are {text}", lambda e, k=factor: k * _rows(e, 0)
        )


def _rows(e: Evidence, step: int) -> np.ndarray:
    table = e.value("weight")
    assert table is not None
    index = e.inputs[0] + step
    return np.asarray(table[index % len(table)])
