"""Hypotheses on what comes out of any layer, whatever it computes."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from crosscheck.explain.elementwise import FUNCTIONS
from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.numbers import ratio_of, slope, tidy
from crosscheck.explain.registry import register
from crosscheck.explain.rounding import FORMATS, either
from crosscheck.explain.sampling import is_promising

__all__: list[str] = []


@register("forward", "backward", "parameter_gradient")
def scaled(e: Evidence) -> Iterator[Proposal]:
    """A constant factor; -1 is a wrong sign, 0 a value that never arrives."""
    k = slope(e.candidate, e.reference)
    if not math.isfinite(k):  # nothing finite to compare, or a reference that is zero
        return
    k, text = tidy(
        k,
        lambda k: e.fits_candidate(_times(k, e.reference)),
        known=_batches(e) if e.phase == "parameter_gradient" else (),
        also=ratio_of(e.reference, e.reference),
    )
    if not np.any(e.candidate):
        what = "the gradient is zero: it never arrives" if e.phase != "forward" else "it is zero"
        yield Proposal("zero", what, lambda e: np.zeros(e.reference.shape))
    elif k == -1.0:
        yield Proposal("sign", "the sign is the opposite", lambda e: -e.reference)
    else:
        statement = f"the {_what(e)} is scaled by {text}"
        yield Proposal(
            "scaled", statement, lambda e: _times(k, e.reference), constants=1, descriptive=True
        )


def _what(e: Evidence) -> str:
    if e.kind == "input":
        return "value"
    return "output" if e.phase == "forward" else "gradient"


def _times(k: float, value: np.ndarray) -> np.ndarray:
    """The product, where an infinite mask stays one."""
    return np.where(np.isfinite(value), k * value, value)


def _batches(e: Evidence) -> list[tuple[float, str]]:
    """Factors that come of averaging over what should be summed."""
    lengths = {n: "" for x in e.inputs for n in x.shape[:-1]}
    if e.inputs:
        first = e.inputs[0].shape[0] if e.inputs[0].ndim else 1
        lengths[first] = ", the batch size"
    return [(1.0 / n, f"1/{n}{what}") for n, what in lengths.items() if n > 1]


@register("forward", "backward", "parameter_gradient")
def rounded_root(e: Evidence) -> Iterator[Proposal]:
    """A factor √d that was rounded to a narrower type, where the reference has it right."""
    solved = slope(e.candidate, e.reference)
    for length in dict.fromkeys(e.reference.shape):
        root = math.sqrt(length)
        for name, to in FORMATS.items():
            k = float(to(np.array(root))) / root
            if k != 1.0 and abs(solved - k) < 1e-6:
                yield Proposal(
                    "scale_rounded",
                    f"the factor √{length} is rounded to {name}",
                    lambda e, k=k: k * e.reference,
                )


@register("forward")
def reciprocal(e: Evidence) -> Iterator[Proposal]:
    """The operands of a division exchanged."""
    if is_promising(e, _inverse, e.reference):
        statement = "it is one over the value: a division with its operands exchanged"
        yield Proposal("reciprocal", statement, lambda e: _inverse(e.reference))


def _inverse(value: np.ndarray) -> np.ndarray:
    """One over everything that is no mask."""
    masked = ~np.isfinite(value) | (value < -1e4)
    return np.where(masked, value, 1.0 / value)


@register("forward")
def averaged(e: Evidence) -> Iterator[Proposal]:
    """The mean over one axis more (the examples of a batch mixed), or its sum."""
    for axis, length in enumerate(e.reference.shape):
        first, second = (e.candidate.take(min(i, length - 1), axis) for i in (0, 1))
        if length < 2 or not np.allclose(first, second, rtol=1e-5):
            continue
        for times, what in ((1.0, "mean"), (float(length), "sum")):
            yield Proposal(
                "averaged",
                f"every index along axis {axis} holds the {what} over that axis",
                functools.partial(_averaged, axis=axis, times=times),
            )


def _averaged(e: Evidence, *, axis: int, times: float) -> np.ndarray:
    mean = times * e.reference.mean(axis, keepdims=True)
    return np.broadcast_to(mean, e.reference.shape)


@register("forward")
def dropout(e: Evidence) -> Iterator[Proposal]:
    """Elements that are zero and others scaled up: dropout in evaluation mode.

    Which ones is seen in the candidate's value; that it drops the same ones on other inputs (both
    runs have one seed) is what confirms it.
    """
    kept = e.candidate != 0.0
    share = float(np.mean(kept)) if kept.size else 1.0
    if e.kind == "input" or not 0.2 < share < 0.99 or np.mean(e.reference != 0.0) < share + 0.01:
        return
    k = slope(e.candidate, e.reference, kept)
    if k < 1.01:
        return  # what is kept is scaled up by dropout
    k, text = tidy(k, lambda k: e.fits_candidate(np.where(kept, k * e.reference, 0.0)))
    yield Proposal(
        "dropout",
        f"dropout is on: {1.0 - share:.0%} of the elements are zero, the others times {text}",
        lambda e: np.where(kept, k * e.reference, 0.0),
        constants=1 + kept.size // 24,  # a bit of each float is what the pattern takes
    )


@register("forward", "backward")
def scaled_parts(e: Evidence) -> Iterator[Proposal]:
    """Two or three equal parts of the last axis (q, k, v) with a factor each."""
    for count in (2, 3):
        if not e.reference.ndim or e.reference.shape[-1] % count or e.reference.shape[-1] == count:
            continue
        factors = []
        for got, want in zip(_parts(e.candidate, count), _parts(e.reference, count), strict=True):
            k = slope(got, want)
            close = functools.partial(_is_close, got, want)
            found = tidy(k, close, also=ratio_of(got, want)) if np.any(got) else (0.0, "0")
            factors.append(found)
        numbers = [k for k, _ in factors]
        if not np.all(np.isfinite(numbers)) or np.allclose(numbers, numbers[0], rtol=1e-4):
            continue  # one factor for all: see `scaled`
        texts = ", ".join(text for _, text in factors)
        yield Proposal(
            "scaled_parts",
            f"the {count} parts of the last axis are scaled by {texts}",
            functools.partial(_scaled_parts, factors=numbers),
            constants=count,
            descriptive=True,
        )


def _is_close(got: np.ndarray, want: np.ndarray, k: float) -> bool:
    return bool(np.max(np.abs(got - k * want), initial=0.0) <= 1e-5 * np.max(np.abs(got)))


def _parts(value: np.ndarray, count: int) -> list[np.ndarray]:
    return list(np.split(value, count, axis=-1))


def _scaled_parts(e: Evidence, *, factors: list[float]) -> np.ndarray:
    parts = _parts(e.reference, len(factors))
    return np.concatenate([k * p for k, p in zip(factors, parts, strict=True)], axis=-1)


@register("forward")
def shifted(e: Evidence) -> Iterator[Proposal]:
    """A constant added."""
    difference = e.candidate - e.reference
    finite = np.isfinite(difference)
    if not finite.any():
        return
    shift = float(np.mean(difference[finite]))
    shift, text = tidy(shift, lambda s: e.fits_candidate(e.reference + s))
    yield Proposal(
        "shifted",
        f"{text} is added to the {_what(e)}",
        lambda e: e.reference + shift,
        constants=1,
        descriptive=True,
    )


@register("forward", "backward", "parameter_gradient")
def rearranged(e: Evidence) -> Iterator[Proposal]:
    """The right numbers in another order: axes exchanged, reversed, or moved on by one."""
    shape = e.reference.shape
    for axes in itertools.permutations(range(len(shape))):
        if axes != tuple(range(len(shape))) and tuple(shape[a] for a in axes) == shape:
            yield Proposal(
                "permuted_axes",
                f"the axes are the reference's in the order {axes}",
                lambda e, axes=axes: e.reference.transpose(axes),
            )
    longer = [a for a, n in enumerate(shape) if n > 1]
    for axes in [*((a,) for a in longer), tuple(longer[-2:])]:
        if len(axes) and not (len(axes) == 2 and len(longer) < 2):
            yield Proposal(
                "flipped",
                f"the elements are in reverse order along axis {' and '.join(map(str, axes))}",
                lambda e, axes=axes: np.flip(e.reference, axes),
            )
    for axis, step in itertools.product(longer, (1, -1)):
        yield Proposal(
            "rolled",
            f"the elements are moved by {step} along axis {axis}, around the end",
            lambda e, axis=axis, step=step: np.roll(e.reference, step, axis),
        )


@register("forward")
def rounded(e: Evidence) -> Iterator[Proposal]:
    """Computed right, kept in a narrower type (that can hold it: -1e9 for a mask is no cast)."""
    for name, to in FORMATS.items():
        if np.isfinite(to(e.reference)).sum() < np.isfinite(e.reference).sum():
            continue
        yield Proposal(
            "cast",
            f"the value is rounded to {name}",
            lambda e, to=to: either(e.reference, to, e.floor.unit, at_least=e.own.maximum),
        )


@register("forward")
def residual(e: Evidence) -> Iterator[Proposal]:
    """The input added or not."""
    if e.x is None or e.x.shape != e.reference.shape:
        return
    yield Proposal(
        "residual_missing", "the residual is missing: the input is not added", _minus_input
    )
    yield Proposal(
        "residual_extra", "the input is added to the output", lambda e: e.reference + _input(e)
    )


def _minus_input(e: Evidence) -> np.ndarray:
    return np.asarray(e.reference - _input(e))


def _input(e: Evidence) -> np.ndarray:
    assert e.x is not None
    return e.x


@register("forward")
def activation_added(e: Evidence) -> Iterator[Proposal]:
    """A layer with an activation too many."""
    if e.reference.size == 0 or e.kind == "input":
        return
    for name, function in FUNCTIONS.items():
        shown = name != "the identity" and function.shows(e.reference)
        if shown and is_promising(e, function.value, e.reference):
            yield Proposal(
                "activation_extra",
                f"{name} is applied to the output",
                _of_reference(function.value),
            )


@register("forward")
def biased(e: Evidence) -> Iterator[Proposal]:
    """A bias left out, or counted twice."""
    bias = e.value("bias")
    axis = None if bias is None else _channel_axis(e.reference, bias)
    if bias is None or axis is None:
        return
    for factor, text in ((-1.0, "the bias is missing"), (1.0, "the bias is counted twice")):
        yield Proposal("bias", text, functools.partial(_with_bias, factor=factor, axis=axis))


def _with_bias(e: Evidence, *, factor: float, axis: int) -> np.ndarray:
    bias = e.value("bias")
    assert bias is not None
    shape = [1] * e.reference.ndim
    shape[axis] = bias.size
    return e.reference + factor * bias.reshape(shape)


def _channel_axis(value: np.ndarray, bias: np.ndarray) -> int | None:
    """The axis that a bias runs along: the last, or the one of channels first."""
    if bias.ndim != 1:
        return None
    axes = (value.ndim - 1, 1) if value.ndim < 3 else (1, value.ndim - 1)
    return next((a for a in axes if a < value.ndim and value.shape[a] == bias.size), None)


@register("forward", "backward", "parameter_gradient")
def one_slice(e: Evidence) -> Iterator[Proposal]:
    """The first or the last index along an axis is zero, or holds what its neighbour should."""
    for axis, length in enumerate(e.reference.shape):
        if length < 2:
            continue
        for index, neighbour in ((0, 1), (length - 1, length - 2)):
            place = f"index {index} of {length} along axis {axis}"
            for source, what, text in (
                (None, "zero_slice", "is zero"),
                (neighbour, "repeated_slice", f"holds what index {neighbour} should"),
            ):
                if (length == 2 and source is not None) or not _is_slice(e, axis, index, source):
                    continue
                yield Proposal(
                    what,
                    f"{place} {text}",
                    functools.partial(_with_slice, axis=axis, index=index, source=source),
                )


def _is_slice(e: Evidence, axis: int, index: int, source: int | None) -> bool:
    seen = e.candidate.take(index, axis)
    if source is None:
        return not seen.any()
    expected = e.reference.take(source, axis)  # of one that is zero itself, this is the other case
    return bool(expected.any() and np.allclose(seen, expected, rtol=1e-3, atol=1e-6))


def _with_slice(e: Evidence, *, axis: int, index: int, source: int | None) -> np.ndarray:
    made = e.reference.copy()
    target = np.moveaxis(made, axis, 0)
    target[index] = 0.0 if source is None else e.reference.take(source, axis)
    return made


@register("forward", "backward", "parameter_gradient")
def localised(e: Evidence) -> Iterator[Proposal]:
    """Where the error is, if it is not everywhere. Reproduces nothing, so it is never verified."""
    size = np.abs(e.candidate - e.reference)
    wrong = size > 1e-3 * np.max(size, initial=0.0)
    share = float(np.mean(wrong)) if wrong.size else 1.0
    if not 0.0 < share < 0.5:
        return
    for axis, length in enumerate(e.reference.shape):
        places = np.flatnonzero(wrong.any(axis=tuple(a for a in range(wrong.ndim) if a != axis)))
        if length > 2 and len(places) == 1:
            yield _described(f"only index {places[0]} of {length} along axis {axis} is wrong")
        elif length > 2 and set(places) == {0, length - 1}:
            yield _described(f"only the first and the last index along axis {axis} are wrong")
    inner = tuple(slice(1, -1) if n > 2 else slice(None) for n in e.reference.shape)
    if e.reference.ndim >= 3 and not wrong[(slice(None), slice(None), *inner[2:])].any():
        yield _described("only the border is wrong")
    yield _described(f"{int(wrong.sum())} of {wrong.size} elements are wrong")


def _described(statement: str) -> Proposal:
    return Proposal("localised", statement, None)


def _of_reference(f: Callable[[np.ndarray], np.ndarray]) -> Callable[[Evidence], np.ndarray]:
    return lambda e: f(e.reference)
