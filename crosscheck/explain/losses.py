"""Hypotheses on the loss and on the gradient that it sends back."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from crosscheck.explain.elementwise import sigmoid
from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.loss_evidence import LossEvidence
from crosscheck.explain.loss_variants import parts, variants
from crosscheck.explain.numbers import slope, tidy
from crosscheck.explain.registry import register
from crosscheck.losses.definitions import class_shares
from crosscheck.losses.evaluate import LossValue, evaluate
from crosscheck.losses.targets import Outputs, Resolved

__all__: list[str] = []

Other = Callable[[Outputs], LossValue]
_STEP = 1e-3  # of a five-point difference: h⁴ and 2⁻⁵³/h are both far below float32 rounding
MOST_DIFFERENCES = 2048  # elements of a gradient that is made of them


def _predicted(e: LossEvidence, *, other: Other) -> np.ndarray:
    """What the candidate has if its loss is ``other``."""
    if e.phase == "loss":
        return np.array([float(other(point).value) for point in e.points])
    return other(e.points[0]).gradients[e.wrt]


def _proposed(
    e: LossEvidence, name: str, statement: str, other: Other, constants: int = 0
) -> Iterator[Proposal]:
    """A loss that the candidate may compute instead: its gradient counts only with its value."""
    if e.phase == "backward":
        value = float(other(e.points[0]).value)
        if not math.isclose(value, e.candidate_value, rel_tol=1e-3):
            return
    yield Proposal(name, statement, functools.partial(_predicted, other=other), constants)


def _graph(name: str, statement: str, other: Other) -> Proposal:
    """The right value, with a part of it outside the graph."""
    return Proposal(name, statement, functools.partial(_predicted, other=other))


def _terms_at(terms: tuple[Resolved, ...], point: Outputs) -> LossValue:
    return evaluate(terms, point)


@register("loss", "backward")
def loss_variant(e: Evidence) -> Iterator[Proposal]:
    """Another reduction, other weights, other labels, another member of the family."""
    if not isinstance(e, LossEvidence):
        return
    for name, statement, terms in variants(e.terms, e.points[0]):
        yield from _proposed(e, name, statement, functools.partial(_all_sites, e.terms, terms))


def _all_sites(
    ours: tuple[Resolved, ...], terms: tuple[Resolved, ...], point: Outputs
) -> LossValue:
    """A term that is left out sends zeros."""
    found = evaluate(terms, point)
    sites = {site for term in ours for site in term.outputs}
    zeros = {s: np.zeros_like(point[s]) for s in sites}
    return LossValue(found.value, {**zeros, **found.gradients})


@register("loss")
def loss_factor(e: Evidence) -> Iterator[Proposal]:
    """A constant factor."""
    if not isinstance(e, LossEvidence):
        return
    k = slope(e.candidate, e.reference)
    if not np.any(e.candidate):
        yield Proposal("loss_zero", "the loss is zero", lambda e: np.zeros(e.reference.shape))
        return
    k, text = tidy(k, lambda k: e.fits_candidate(k * e.reference), also=_lengths(e))
    yield Proposal(
        "loss_factor", f"the loss is scaled by {text}", lambda e: k * e.reference, constants=1
    )


def _lengths(e: LossEvidence) -> list[tuple[float, str]]:
    """Factors that come of summing for averaging, or the reverse."""
    found: dict[float, str] = {}
    for value in e.points[0].values():
        for number in (*value.shape, value.size):
            found.setdefault(float(number), f"{number}")
            found.setdefault(1.0 / max(number, 1), f"1/{number}")
    return list(found.items())


@register("backward")
def loss_scaled(e: Evidence) -> Iterator[Proposal]:
    """A gradient that is averaged over the batch once more, or not at all."""
    if not isinstance(e, LossEvidence) or not e.reference.ndim:
        return
    n = e.reference.shape[0]
    for factor, what in ((1.0 / n, "divided"), (float(n), "multiplied")):
        yield Proposal(
            "loss_scaled",
            f"the gradient is {what} by {n}, the batch size",
            lambda e, factor=factor: factor * e.reference,
        )


@register("loss", "backward")
def loss_smoothing(e: Evidence) -> Iterator[Proposal]:
    """Another label smoothing: a loss is linear in it."""
    if not isinstance(e, LossEvidence) or len(e.terms) != 1 or e.terms[0].name != "cross_entropy":
        return
    (term,) = e.terms
    ends = [replace(term, options={**term.options, "label_smoothing": s}) for s in (0.0, 1.0)]
    none, whole = (_predicted(e, other=functools.partial(_terms_at, (end,))) for end in ends)
    share = slope(e.candidate - none, whole - none)
    share, text = tidy(share, lambda s: e.fits_candidate(none + s * (whole - none)))
    ours = term.options.get("label_smoothing", 0.0)
    if 1e-6 < share < 1.0 and abs(share - ours) > 1e-6:
        changed = replace(term, options={**term.options, "label_smoothing": share})
        yield from _proposed(
            e,
            "loss_label_smoothing",
            f"label smoothing {text} instead of {ours:g}",
            functools.partial(_terms_at, (changed,)),
            constants=1,
        )


# -- activations that are taken twice, or for granted ----------------------------------------------


@register("loss", "backward")
def loss_from_logits(e: Evidence) -> Iterator[Proposal]:
    """Probabilities where logits are meant, or the reverse."""
    if not isinstance(e, LossEvidence) or len(e.terms) != 1:
        return
    (term,) = e.terms
    if term.name == "cross_entropy":
        twice = "softmax is applied to the outputs, and again in the loss"
        yield from _proposed(e, "loss_from_logits", twice, functools.partial(_softmax_twice, term))
        said = "the logits are taken for probabilities: clipped, and no softmax is applied"
        yield from _proposed(e, "loss_from_logits", said, functools.partial(_clipped, term))
    if term.name == "bce_with_logits":
        twice = "a sigmoid is applied to the outputs, and again in the loss"
        yield from _proposed(e, "loss_from_logits", twice, functools.partial(_sigmoid_twice, term))
    if term.name == "kl_div" and not term.options.get("log_target"):
        yield from _proposed(
            e,
            "loss_arguments",
            "the two distributions are exchanged",
            functools.partial(_exchanged, term),
        )
        yield from _proposed(
            e,
            "loss_arguments",
            "the entropy of the targets is missing: that is a cross-entropy",
            functools.partial(_without_entropy, term),
        )


def _softmax_twice(term: Resolved, point: Outputs) -> LossValue:
    (site,), axis = term.outputs, term.options["axis"]
    shifted = np.exp(point[site] - point[site].max(axis, keepdims=True))
    p = shifted / shifted.sum(axis, keepdims=True)
    found = evaluate((term,), {**point, site: p})
    g = found.gradients[site]
    return LossValue(found.value, {site: p * (g - (g * p).sum(axis, keepdims=True))})


def _clipped(term: Resolved, point: Outputs) -> LossValue:
    """As Keras does it: divided by their sum, clipped to [1e-7, 1 − 1e-7]."""
    (site,), axis = term.outputs, term.options["axis"]
    names = ("label_smoothing", "weight", "ignore_index")
    options = {k: v for k, v in term.options.items() if k in names}
    wanted, divisor = class_shares(point[site], term.target, axis=axis, **options)
    divisor = 1.0 if term.options.get("reduction") == "sum" else divisor
    z = np.moveaxis(point[site], axis, -1)
    total = z.sum(-1, keepdims=True)
    p = z / total
    inside = (p > 1e-7) & (p < 1 - 1e-7)
    kept = np.clip(p, 1e-7, 1 - 1e-7)
    g = np.where(inside, -wanted / kept, 0.0) * term.factor / divisor
    g = (g - (g * p).sum(-1, keepdims=True)) / total
    value = -(wanted * np.log(kept)).sum() * term.factor / divisor
    return LossValue(np.asarray(value), {site: np.moveaxis(g, -1, axis)})


def _sigmoid_twice(term: Resolved, point: Outputs) -> LossValue:
    (site,) = term.outputs
    p = sigmoid(point[site])
    found = evaluate((term,), {**point, site: p})
    return LossValue(found.value, {site: found.gradients[site] * p * (1 - p)})


def _divisor(term: Resolved, output: np.ndarray) -> float:
    reduction = term.options.get("reduction", "batchmean")
    return float({"sum": 1, "mean": output.size, "batchmean": output.shape[0]}[reduction])


def _exchanged(term: Resolved, point: Outputs) -> LossValue:
    (site,) = term.outputs
    logs, k = point[site], term.factor / _divisor(term, point[site])
    apart = logs - np.log(term.target.astype(np.float64))
    terms = np.exp(logs) * apart
    return LossValue(np.asarray(k * terms.sum()), {site: k * (terms + np.exp(logs))})


def _without_entropy(term: Resolved, point: Outputs) -> LossValue:
    (site,) = term.outputs
    k = term.factor / _divisor(term, point[site])
    found = evaluate((term,), point)
    value = -k * (term.target.astype(np.float64) * point[site]).sum()
    return LossValue(np.asarray(value), found.gradients)


# -- the graph of the loss -------------------------------------------------------------------------


@register("backward")
def loss_detached(e: Evidence) -> Iterator[Proposal]:
    """A loss, or a part of it, that is outside the graph."""
    if not isinstance(e, LossEvidence):
        return
    if not np.any(e.candidate):
        what = "the loss is detached (`detach`, `stop_gradient`, `.item()`): no gradient leaves it"
        yield Proposal("loss_detached", what, lambda e: np.zeros(e.reference.shape))
    for name, statement, terms in parts(e.terms, e.points[0]):
        yield _graph(name, statement, functools.partial(_all_sites, e.terms, terms))
    if len(e.terms) == 1 and e.terms[0].name == "cross_entropy":
        for which, what in ((True, "the target's logit"), (False, "the normaliser (log-sum-exp)")):
            yield _graph(
                "loss_detached",
                f"{what} is detached: no gradient comes from it",
                functools.partial(_one_part, e.terms[0], which),
            )


def _one_part(term: Resolved, normaliser: bool, point: Outputs) -> LossValue:
    """The gradient of the normaliser alone, or of the targets' logits alone."""
    (site,), axis = term.outputs, term.options["axis"]
    names = ("label_smoothing", "weight", "ignore_index")
    options = {k: v for k, v in term.options.items() if k in names}
    wanted, divisor = class_shares(point[site], term.target, axis=axis, **options)
    divisor = 1.0 if term.options.get("reduction") == "sum" else divisor
    targets = np.moveaxis(-wanted, -1, axis) * term.factor / divisor
    found = evaluate((term,), point)
    made = found.gradients[site] - targets if normaliser else targets
    return LossValue(found.value, {site: made})


@register("backward")
def loss_stop_gradient(e: Evidence) -> Iterator[Proposal]:
    """A constant of the reference's loss through which the candidate differentiates."""
    if not isinstance(e, LossEvidence) or e.reference.size > MOST_DIFFERENCES or e.terms:
        return
    whole = _whole(e)
    if e.fits_reference(whole):
        return  # the reference has nothing that is outside the graph
    yield Proposal(
        "loss_stop_gradient",
        "stop_gradient (detach) is missing: the gradient also flows through what the reference "
        "treats as a constant",
        _whole,
    )


def _whole(e: Any) -> np.ndarray:
    """The derivative of the value, whatever is outside the graph: by five-point differences."""
    point = e.points[0]
    flat = point[e.wrt].reshape(-1)
    found = np.zeros(flat.size)
    for i in range(flat.size):
        ends = []
        for step in (1, -1, 2, -2):
            moved = flat.copy()
            moved[i] += step * _STEP
            ends.append(e.value_at({**point, e.wrt: moved.reshape(point[e.wrt].shape)}))
        found[i] = (8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / (12 * _STEP)
    return found.reshape(point[e.wrt].shape)
