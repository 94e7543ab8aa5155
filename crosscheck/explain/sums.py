"""Hypotheses on what the code between layers makes of the values at hand: sums, and routing."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.registry import register
from crosscheck.explain.sampling import sampled

__all__: list[str] = []

MOST_TERMS = 8  # values at hand that may be part of a sum


@register("forward", "backward")
def glue(e: Evidence) -> Iterator[Proposal]:
    """A sum that the code between the layers makes, of other terms."""
    same = _terms_at_hand(e)
    right = _plain_sum(e, same)
    for terms in _sums(same) if right else ():
        if set(terms) != set(right) and _near(same, terms, e.candidate):
            yield Proposal(
                "other_terms",
                f"{_terms(terms)} for {_terms(right)}"
                if e.phase == "forward"
                else f"what {_terms(terms)} sends back, for that of {_terms(right)}",
                lambda e, terms=terms: _sum(e.nearby, terms) + np.zeros(e.reference.shape),
            )


def _sums(values: Mapping[str, np.ndarray]) -> Iterator[tuple[str, ...]]:
    for count in (1, 2, 3):
        yield from itertools.combinations(values, count)


def _plain_sum(e: Evidence, values: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The values at hand, at most three, whose sum the reference's value is; none if it is not."""
    for terms in _sums(values):
        if _near(values, terms, e.reference) and e.fits_reference(_sum(values, terms)):
            return terms
    return ()


def _near(values: Mapping[str, np.ndarray], terms: tuple[str, ...], value: np.ndarray) -> bool:
    """Whether a sum is close to a value at a few places, which is cheap to find out."""
    step = max(1, value.size // 512)
    total = np.sum([values[name].reshape(-1)[::step] for name in terms], axis=0)
    return bool(np.allclose(total, value.reshape(-1)[::step], rtol=1e-2, atol=1e-3))


def _sum(values: Mapping[str, np.ndarray], terms: tuple[str, ...]) -> np.ndarray:
    total = values[terms[0]]
    for name in terms[1:]:
        total = total + values[name]
    return total


def _terms(terms: tuple[str, ...]) -> str:
    return " + ".join(f"`{name}`" for name in terms)


@register("forward", "backward")
def one_term(e: Evidence) -> Iterator[Proposal]:
    """One of the values at hand is left out of a sum, added to it, or subtracted."""
    error, same = e.candidate - e.reference, _terms_at_hand(e)
    if not same or not error.size or not np.isfinite(error).all():
        return
    if _plain_sum(e, same):
        return  # `glue` says it
    few = sampled(error)
    close = functools.partial(np.allclose, few, rtol=1e-2, atol=1e-3 * np.max(np.abs(few)))
    for name, value in same.items():
        for factor, (what, text) in _CHANGES.items():
            if close(factor * sampled(value)):
                yield Proposal(
                    what,
                    f"`{name}` {text}",
                    functools.partial(_with_term, name=name, factor=factor),
                )


_CHANGES = {
    -1.0: ("term_missing", "is missing from the sum"),
    1.0: ("term_added", "is added once more"),
    -2.0: ("term_sign", "is subtracted, not added"),
}


def _with_term(e: Evidence, *, name: str, factor: float) -> np.ndarray:
    return np.asarray(e.reference + factor * e.nearby[name])


def _terms_at_hand(e: Evidence) -> dict[str, np.ndarray]:
    """The latest values that may be terms, in the value's shape."""
    fitting = {
        name: np.broadcast_to(value, e.reference.shape)
        for name, value in e.nearby.items()
        if value.ndim and value.shape == e.reference.shape[e.reference.ndim - value.ndim :]
    }
    return {name: fitting[name] for name in list(fitting)[-MOST_TERMS:]}


@register("forward")
def bare_parameter(e: Evidence) -> Iterator[Proposal]:
    """A parameter that the code itself adds (a table of positions): left out, or read elsewhere."""
    for parameter in e.parameters if e.nearby else ():
        value = parameter.value
        if (
            value.ndim < 2
            or np.broadcast_shapes(value.shape, e.reference.shape) != e.reference.shape
        ):
            continue
        name = parameter.name
        yield Proposal(
            "term_missing",
            f"`{name}` is not added",
            functools.partial(_other_rows, name=name, axis=0, step=None),
        )
        for axis, step in itertools.product(range(value.ndim - 1), (1, -1, 2)):
            if value.shape[axis] > 1:
                which = "after" if step > 0 else "before"
                yield Proposal(
                    "embedding_offset",
                    f"`{name}` is read {abs(step)} {which} the right place along its axis {axis}",
                    functools.partial(_other_rows, name=name, axis=axis, step=step),
                )


def _other_rows(e: Evidence, *, name: str, axis: int, step: int | None) -> np.ndarray:
    (value,) = (p.value for p in e.parameters if p.name == name)
    rest = e.reference - value
    return np.asarray(rest if step is None else rest + np.roll(value, -step, axis))


# -- routing ---------------------------------------------------------------------------------------


@register("forward")
def gates_not_normalised(e: Evidence) -> Iterator[Proposal]:
    """The gates of the chosen experts divided by their sum on one side only.

    What experts make of a token is then larger by a factor of its own, the sum of the k largest of
    the router's probabilities.
    """
    if not _is_scaled_by_row(e):
        return
    for name, value in e.nearby.items():
        experts = value.shape[-1] if value.ndim else 0
        if value.shape[:-1] != e.reference.shape[:-1] or not 2 < experts <= 256:
            continue
        for most in range(1, min(experts, 9)):
            for power, text in _POWERS.items():
                yield Proposal(
                    "gates_not_normalised",
                    f"the gates of the {most} chosen of `{name}` are {text}",
                    functools.partial(_by_gates, name=name, most=most, power=power),
                )


def _is_scaled_by_row(e: Evidence) -> bool:
    """Whether a few rows (along the last axis) are the reference's times a number each."""
    if e.reference.ndim < 2 or e.candidate.shape != e.reference.shape:
        return False
    rows = [v.reshape(-1, v.shape[-1])[:8] for v in (e.candidate, e.reference)]
    factors = np.sum(rows[0] * rows[1], axis=1) / np.sum(rows[1] * rows[1], axis=1)
    rest = np.linalg.norm(rows[0] - factors[:, None] * rows[1])
    return bool(rest <= 1e-2 * np.linalg.norm(rows[0]) and np.ptp(factors) > 1e-3)


_POWERS = {1.0: "not divided by their sum", -1.0: "divided by their sum"}


def _by_gates(e: Evidence, *, name: str, most: int, power: float) -> np.ndarray:
    p = e.nearby[name]
    if not np.allclose(p.sum(-1), 1.0, atol=1e-4) or p.min() < 0.0:
        p = np.exp(p - p.max(-1, keepdims=True))
        p = p / p.sum(-1, keepdims=True)
    largest = np.sort(p, axis=-1)[..., -most:].sum(-1, keepdims=True)
    return np.asarray(e.reference * largest**power)
