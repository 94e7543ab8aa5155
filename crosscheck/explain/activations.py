"""Hypotheses on activation functions and softmax, forward and backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

from crosscheck.explain.elementwise import FUNCTIONS, Function
from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.numbers import slope, tidy
from crosscheck.explain.registry import register
from crosscheck.explain.sampling import is_promising, sampled

__all__ = ["named"]

CLOSE = 3e-6  # the nearest two functions of the table are 1e-4 apart


def _input(e: Evidence) -> np.ndarray:
    assert e.x is not None
    return e.x


def named(x: np.ndarray, y: np.ndarray) -> str | None:
    """The function of the table that makes ``y`` of ``x``, up to float32 rounding."""
    for name, function in FUNCTIONS.items():
        few = sampled(x), sampled(y)
        if all(
            np.linalg.norm(function.value(a) - b) <= CLOSE * np.linalg.norm(b)
            for a, b in (few, (x, y))
        ):
            return name
    return None


def _is_elementwise(e: Evidence) -> bool:
    return e.x is not None and e.x.shape == e.reference.shape and not e.parameters


@register("forward")
def another_function(e: Evidence) -> Iterator[Proposal]:
    """Another activation function than the reference's, or none."""
    if not _is_elementwise(e):
        return
    ours = named(_input(e), e.reference)
    instead = "" if ours is None else f" instead of {ours}"
    for name, function in FUNCTIONS.items():
        shown = function.shows(_input(e))
        if name != ours and shown and is_promising(e, function.value, _input(e)):
            yield Proposal(
                "activation",
                f"the candidate computes {name}{instead}",
                lambda e, f=function: f.value(_input(e)),
            )


@register("forward")
def leaky_slope(e: Evidence) -> Iterator[Proposal]:
    """Another slope of the negative half of a (leaky) ReLU."""
    if not _is_elementwise(e):
        return
    x = _input(e)
    ours, theirs = slope(e.reference, x, x < 0), slope(e.candidate, x, x < 0)
    if not e.fits_reference(_leaky(x, ours)):
        return
    yield from _instead(e, "leaky_slope", "negative slope", ours, theirs, _leaky)


def _leaky(x: np.ndarray, k: float) -> np.ndarray:
    return np.where(x > 0, x, k * x)


@register("forward")
def elu_alpha(e: Evidence) -> Iterator[Proposal]:
    """Another alpha of an ELU."""
    if not _is_elementwise(e):
        return
    x = _input(e)
    base = np.expm1(np.minimum(x, 0.0))
    ours, theirs = slope(e.reference, base, x < 0), slope(e.candidate, base, x < 0)
    if e.fits_reference(_elu(x, ours)):
        yield from _instead(e, "elu_alpha", "alpha", ours, theirs, _elu)


def _elu(x: np.ndarray, alpha: float) -> np.ndarray:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))


@register("forward")
def sharper(e: Evidence) -> Iterator[Proposal]:
    """A function of the table, of the input times a constant: x·σ(βx), tanh(kx)."""
    if not _is_elementwise(e) or named(_input(e), e.reference) != "SiLU":
        return
    x = _input(e)
    share = e.candidate / x  # σ(βx)
    inside = (np.abs(x) > 0.1) & (share > 0.01) & (share < 0.99)
    beta = slope(np.log(share / (1.0 - share)), x, inside)
    beta, text = tidy(beta, lambda b: e.fits_candidate(_swish(x, b)))
    yield Proposal(
        "swish_beta",
        f"beta {text} instead of 1",
        lambda e: _swish(_input(e), beta),
        constants=1,
    )


def _swish(x: np.ndarray, beta: float) -> np.ndarray:
    return x * 0.5 * (1.0 + np.tanh(0.5 * beta * x))


def _instead(
    e: Evidence,
    name: str,
    what: str,
    ours: float,
    theirs: float,
    f: Callable[[np.ndarray, float], np.ndarray],
) -> Iterator[Proposal]:
    if not np.isfinite(theirs):
        return
    _, before = tidy(ours, lambda k: e.fits_reference(f(_input(e), k)))
    number, text = tidy(theirs, lambda k: e.fits_candidate(f(_input(e), k)))
    yield Proposal(
        name, f"{what} {text} instead of {before}", lambda e: f(_input(e), number), constants=1
    )


@register("forward")
def softmax_axis(e: Evidence) -> Iterator[Proposal]:
    """Softmax along another axis, or with its logarithm."""
    if not _is_elementwise(e):
        return
    x = _input(e)
    ours = next((a for a in range(x.ndim) if e.fits_reference(_softmax(x, a))), None)
    if ours is None:
        yield from _of_log_softmax(e)
        return
    for axis in range(x.ndim):
        if axis != ours:
            yield Proposal(
                "softmax_axis",
                f"softmax over axis {axis} instead of axis {ours}",
                lambda e, axis=axis: _softmax(_input(e), axis),
            )
    yield Proposal(
        "log_softmax", "the logarithm of the softmax", lambda e: np.log(_softmax(_input(e), ours))
    )


def _of_log_softmax(e: Evidence) -> Iterator[Proposal]:
    """Where the reference takes the logarithm: the same over another axis, or without it."""
    x = _input(e)
    ours = next((a for a in range(x.ndim) if e.fits_reference(_log_softmax(x, a))), None)
    for axis in range(x.ndim) if ours is not None else ():
        if axis != ours:
            yield Proposal(
                "softmax_axis",
                f"log-softmax over axis {axis} instead of axis {ours}",
                lambda e, axis=axis: _log_softmax(_input(e), axis),
            )
        else:
            yield Proposal(
                "log_softmax",
                "the softmax without its logarithm",
                lambda e, axis=axis: _softmax(_input(e), axis),
            )


@register("forward")
def softmax_added(e: Evidence) -> Iterator[Proposal]:
    """Probabilities, or their logarithms, where the reference has what the softmax is taken of."""
    if e.kind == "input" or e.reference.size == 0:
        return
    for function, text in ((_softmax, "softmax"), (_log_softmax, "log-softmax")):
        for axis in range(e.reference.ndim):
            known = _is_log_of_shares(e.reference, axis)  # then it merely takes the logarithm back
            if not known and e.fits_candidate(function(e.reference, axis)):
                yield Proposal(
                    "activation_extra",
                    f"{text} over axis {axis} is applied to the output",
                    lambda e, function=function, axis=axis: function(e.reference, axis),
                )


def _is_log_of_shares(x: np.ndarray, axis: int) -> bool:
    """Whether ``x`` holds the logarithms of numbers that add up to 1 along an axis."""
    return bool(np.allclose(np.exp(x).sum(axis=axis), 1.0, rtol=1e-3))


def _log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    shifted = x - np.max(x, axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    shifted = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=axis, keepdims=True))


# -- backward --------------------------------------------------------------------------------------


def _given(e: Evidence) -> np.ndarray:
    assert e.given is not None
    return e.given


def _is_elementwise_backward(e: Evidence) -> bool:
    return (
        e.kind == "input_cotangent"
        and _is_elementwise(e)
        and e.given is not None
        and e.given.shape == e.reference.shape
    )


@register("backward")
def another_derivative(e: Evidence) -> Iterator[Proposal]:
    """The derivative of another function, or of a gate that was detached."""
    if not _is_elementwise_backward(e) or e.output is None:
        return
    ours = named(_input(e), e.output)
    for name, function in FUNCTIONS.items():
        vjp = functools.partial(_vjp, function)
        shown = function.shows(_input(e))
        if name != ours and shown and is_promising(e, vjp, _input(e), _given(e)):
            yield Proposal(
                "derivative",
                f"the derivative is that of {name}" + ("" if ours is None else f", not of {ours}"),
                lambda e, vjp=vjp: vjp(_input(e), _given(e)),
            )
        if name == ours and function.gate is not None:
            yield Proposal(
                "gate_detached",
                f"the gate of {name} is taken for a constant: its derivative is missing",
                lambda e, gate=function.gate: _given(e) * gate(_input(e)),
            )


def _vjp(function: Function, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    return np.asarray(dy * function.derivative(x))


@register("backward")
def leaky_backward(e: Evidence) -> Iterator[Proposal]:
    """Another slope in the derivative of a (leaky) ReLU."""
    if not _is_elementwise_backward(e):
        return
    x, g = _input(e), _given(e)
    ours, theirs = slope(e.reference, g, x < 0), slope(e.candidate, g, x < 0)
    if not np.isfinite(theirs) or not e.fits_reference(_leaky_backward(e, ours)):
        return
    _, before = tidy(ours, lambda k: e.fits_reference(_leaky_backward(e, k)))
    number, text = tidy(theirs, lambda k: e.fits_candidate(_leaky_backward(e, k)))
    yield Proposal(
        "leaky_slope",
        f"the derivative's negative slope is {text} instead of {before}",
        lambda e: _leaky_backward(e, number),
        constants=1,
    )


def _leaky_backward(e: Evidence, k: float) -> np.ndarray:
    return _given(e) * np.where(_input(e) > 0, 1.0, k)


@register("backward")
def at_the_kink(e: Evidence) -> Iterator[Proposal]:
    """Another derivative of ReLU at exactly 0."""
    if not _is_elementwise_backward(e) or not (_input(e) == 0.0).any():
        return
    for value in (0.5, 1.0, 0.0):
        yield Proposal(
            "derivative_at_zero",
            f"the derivative at 0 is {value:g}",
            lambda e, v=value: np.where(_input(e) == 0.0, v * _given(e), e.reference),
        )


@register("backward")
def masked_nan(e: Evidence) -> Iterator[Proposal]:
    """The branch that is not taken has an infinite derivative, and 0 · ∞ is NaN."""
    if not _is_elementwise_backward(e) or not np.isnan(e.candidate).any():
        return
    for sign, text in ((1.0, "positive"), (-1.0, "negative")):
        yield Proposal(
            "masked_nan",
            f"NaN wherever the input is {text}: 0 · ∞ from the branch that is not taken",
            lambda e, s=sign: np.where(s * _input(e) > 0, np.nan, e.reference),
        )


@register("backward")
def log_softmax_backward(e: Evidence) -> Iterator[Proposal]:
    """g for g − softmax · Σ g."""
    if not _is_elementwise_backward(e) or e.output is None:
        return
    if any(e.fits_reference(_log_softmax_vjp(e, a)) for a in range(e.reference.ndim)):
        text = "the backward of log-softmax lacks its sum term: g for g − s·Σ g"
        yield Proposal("softmax_sum", text, _given)


def _log_softmax_vjp(e: Evidence, axis: int) -> np.ndarray:
    s, g = np.exp(_output(e)), _given(e)
    return np.asarray(g - s * np.sum(g, axis=axis, keepdims=True))


@register("backward")
def softmax_backward(e: Evidence) -> Iterator[Proposal]:
    """s·g without − s·Σ s·g, or the sum along another axis."""
    if not _is_elementwise_backward(e) or e.output is None:
        return
    axes = [a for a in range(e.reference.ndim) if e.fits_reference(_softmax_vjp(e, a))]
    if not axes:
        return
    yield Proposal(
        "softmax_sum",
        "the backward of softmax lacks its sum term: s·g for s·(g − Σ s·g)",
        lambda e: _output(e) * _given(e),
    )
    for axis in range(e.reference.ndim):
        if axis not in axes:
            yield Proposal(
                "softmax_axis",
                f"the backward of softmax sums over axis {axis} instead of axis {axes[0]}",
                functools.partial(_softmax_vjp, axis=axis),
            )


def _output(e: Evidence) -> np.ndarray:
    assert e.output is not None
    return e.output


def _softmax_vjp(e: Evidence, axis: int) -> np.ndarray:
    s, g = _output(e), _given(e)
    return np.asarray(s * (g - np.sum(s * g, axis=axis, keepdims=True)))
