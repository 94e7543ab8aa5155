"""What a named loss is taken for by mistake, as sums of named losses with other options.

A variant is (name, statement, terms): the terms that the candidate computes instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crosscheck.losses.definitions import class_shares
from crosscheck.losses.targets import Outputs, Resolved

__all__ = ["Variant", "parts", "variants"]

Terms = tuple[Resolved, ...]
Variant = tuple[str, str, Terms]
MOST_ROWS = 64
_TELLING = ("all", "kept", "weights", "elements", "sum", "batch", "sample")
"""Divisors, the most telling first: often two of them are the same number."""


def variants(terms: Terms, outputs: Outputs) -> Iterator[Variant]:
    """Every known mistake in one of the terms, the others as they are."""
    for i, term in enumerate(terms):
        for name, statement, changed in _of_term(term, outputs):
            yield name, statement, (*terms[:i], *changed, *terms[i + 1 :])
        if len(terms) > 1:
            rest = (*terms[:i], *terms[i + 1 :])
            yield "loss_term_missing", f"the term `{term.name}` is missing", rest
        if term.factor != 1.0:
            one = (*terms[:i], replace(term, factor=1.0), *terms[i + 1 :])
            yield "loss_term_factor", f"the factor {term.factor:g} of `{term.name}` is missing", one


def parts(terms: Terms, outputs: Outputs) -> Iterator[Variant]:
    """What remains of the gradient if a part of the loss is outside the graph."""
    for i, term in enumerate(terms):
        if len(terms) > 1:
            rest = (*terms[:i], *terms[i + 1 :])
            what = f"the term `{term.name}` is detached: no gradient comes from it"
            yield "loss_detached", what, rest
        smoothing = term.options.get("label_smoothing", 0.0)
        if smoothing:
            plain = _with(replace(term, factor=term.factor * (1 - smoothing)), label_smoothing=0.0)
            rest = (*terms[:i], plain, *terms[i + 1 :])
            yield "loss_detached", "the smoothing term is detached: no gradient comes from it", rest


def _with(term: Resolved, **options: Any) -> Resolved:
    return replace(term, options={**term.options, **options})


def _of_term(term: Resolved, outputs: Outputs) -> Iterator[Variant]:
    output = outputs[term.outputs[0]]
    yield from _divided(term, output)
    if term.name in ("cross_entropy", "nll"):
        yield from _classes(term, output)
    yield from _other_options(term)


# -- reductions ------------------------------------------------------------------------------------


def _divided(term: Resolved, output: np.ndarray) -> Iterator[Variant]:
    """The sum, over another number."""
    divisors = _divisors(term, output)
    if not divisors:
        return
    ours = _divisor(term, divisors)
    summed = _with(term, reduction="sum")
    seen = {ours}
    for name in (n for n in _TELLING if n in divisors):
        number, what = divisors[name]
        if number and number not in seen:
            seen.add(number)
            said = _said(term, name, what, divisors)
            yield (
                "loss_masked_mean" if said.startswith("ignored") else "loss_reduction",
                f"{said}: divided by {number:g} for {ours:g}",
                (replace(summed, factor=term.factor / number),),
            )


def _divisors(term: Resolved, output: np.ndarray) -> dict[str, tuple[float, str]]:
    batch = float(output.shape[0]) if output.ndim else 1.0
    found = {"sum": (1.0, "a sum, not a mean"), "batch": (batch, "a mean over the batch only")}
    if term.name == "ctc":
        return found if term.options.get("reduction", "mean") == "sum" else {}
    if term.name in ("cross_entropy", "nll"):
        axis = term.options["axis"]
        positions = float(output.size // output.shape[axis])
        found["all"] = (positions, "a mean over all positions")
        if term.target.dtype.kind != "f":
            kept = term.target != term.options.get("ignore_index", -100)
            found["kept"] = (float(kept.sum()), "a mean over the positions that count")
            chosen = {k: v for k, v in term.options.items() if k in ("weight", "ignore_index")}
            divisor = class_shares(output, term.target, axis=axis, **chosen)[1]
            found["weights"] = (divisor, "a mean weighted by class")
        found["elements"] = (float(output.size), "a mean over the classes as well")
    else:
        found["elements"] = (float(output.size), "a mean over all elements")
        found["sample"] = (output.size / batch, "a mean over the elements of one sample")
    return found


def _divisor(term: Resolved, divisors: Mapping[str, tuple[float, str]]) -> float:
    """What the term itself divides by."""
    default = "batchmean" if term.name in ("kl_div", "gaussian_kl") else "mean"
    reduction = term.options.get("reduction", default)
    mean = "elements"
    if term.name in ("cross_entropy", "nll"):
        mean = "weights" if "weights" in divisors else "all"
    return divisors[{"sum": "sum", "batchmean": "batch", "mean": mean}[reduction]][0]


def _said(term: Resolved, name: str, what: str, divisors: Mapping[str, tuple[float, str]]) -> str:
    ignoring = "kept" in divisors and divisors["kept"][0] < divisors["all"][0]
    if name == "all" and ignoring:
        return "ignored positions are counted in the mean"
    if name in ("all", "kept") and term.options.get("weight") is not None:
        return "the class weights do not normalise the mean"
    if name == "elements" and term.name == "kl_div":
        return "a mean over all elements, not over the batch alone (mean for batchmean)"
    return what


# -- classes ---------------------------------------------------------------------------------------


def _classes(term: Resolved, output: np.ndarray) -> Iterator[Variant]:
    options = term.options
    classes = output.shape[options["axis"]]
    smoothing = options.get("label_smoothing", 0.0)
    if smoothing:
        for value, what in (
            (smoothing * classes / (classes - 1), "K - 1 = {} classes, not K"),
            (smoothing * (classes - 1) / classes, "K classes, not K - 1 = {}"),
        ):
            text = what.format(classes - 1)
            yield (
                "loss_label_smoothing",
                f"label smoothing is spread over {text}",
                (_with(term, label_smoothing=value),),
            )
        yield (
            "loss_label_smoothing",
            "label smoothing is missing",
            (_without(term, "label_smoothing"),),
        )  # noqa: E501
    if options.get("weight") is not None:
        yield "loss_weight", "the class weights are missing", (_without(term, "weight"),)
    if term.target.dtype.kind != "f":
        yield from _ignoring(term, classes)
        yield from _rows(term)
    if term.name == "cross_entropy" and not smoothing and term.target.dtype.kind != "f":
        said = "the logits are taken for log-probabilities: no log-softmax is applied"
        yield "loss_from_logits", said, (replace(_without(term, "label_smoothing"), name="nll"),)
    if term.name == "nll":
        said = "the log-probabilities are taken for logits: a log-softmax is applied"
        yield "loss_from_logits", said, (replace(term, name="cross_entropy"),)


def _without(term: Resolved, option: str) -> Resolved:
    return replace(term, options={k: v for k, v in term.options.items() if k != option})


def _ignoring(term: Resolved, classes: int) -> Iterator[Variant]:
    index = term.options.get("ignore_index", -100)
    ignored = term.target == index
    if not ignored.any():
        return
    never = -(2**31)
    if 0 <= index < classes:
        said = f"ignore_index {index} is not honoured"
        yield "loss_ignore_index", said, (_with(term, ignore_index=never),)
        return
    for taken in {0, classes - 1}:
        filled = replace(term, target=np.where(ignored, taken, term.target))
        said = f"ignore_index {index} is not honoured: those labels are taken for class {taken}"
        yield "loss_ignore_index", said, (_with(filled, ignore_index=never),)


def _rows(term: Resolved) -> Iterator[Variant]:
    """Each sample's mean, and the mean of those: what accumulating gradients makes of it."""
    target, index = term.target, term.options.get("ignore_index", -100)
    if target.ndim < 2 or len(target) > MOST_ROWS or term.options.get("reduction") == "sum":
        return
    rows = [n for n in range(len(target)) if (target[n] != index).any()]
    found = []
    for n in rows:
        alone = np.full_like(target, index)
        alone[n] = target[n]
        found.append(replace(term, target=alone, factor=term.factor / len(rows)))
    yield (
        "loss_mean_of_means",
        "a mean of every sample's own mean, not of all positions",
        tuple(found),
    )  # noqa: E501


# -- the rest --------------------------------------------------------------------------------------


def _other_options(term: Resolved) -> Iterator[Variant]:
    if term.name == "smooth_l1" and term.options.get("beta", 1.0) not in (0.0, 1.0):
        beta = term.options["beta"]
        plain = {k: v for k, v in term.options.items() if k != "beta"}
        huber = replace(term, name="huber", options={**plain, "delta": beta})
        said = f"the factor 1/beta = {1 / beta:g} is missing: that is Huber's loss"
        yield "loss_beta", said, (huber,)
        yield "loss_beta", f"beta 1 instead of {beta:g}", (_with(term, beta=1.0),)
    if term.name == "huber" and term.options.get("delta", 1.0) != 1.0:
        delta = term.options["delta"]
        plain = {k: v for k, v in term.options.items() if k != "delta"}
        smooth = replace(term, name="smooth_l1", options={**plain, "beta": delta})
        yield "loss_beta", f"divided by delta = {delta:g}: that is the smooth L1 loss", (smooth,)
        yield "loss_beta", f"delta 1 instead of {delta:g}", (_with(term, delta=1.0),)
    if term.options.get("pos_weight") is not None:
        yield "loss_weight", "pos_weight is missing", (_without(term, "pos_weight"),)
    if term.name in ("huber", "smooth_l1"):
        yield "loss_other", "the squared error", (_plain(term, "mse"),)
    if term.name == "mse":
        yield "loss_other", "the absolute error", (_plain(term, "mae"),)
    if term.name == "ctc":
        yield from _sequences(term)


def _plain(term: Resolved, name: str) -> Resolved:
    kept = {k: v for k, v in term.options.items() if k == "reduction"}
    return replace(term, name=name, options=kept)


def _sequences(term: Resolved) -> Iterator[Variant]:
    count = len(term.target["labels"])
    if term.options.get("reduction", "mean") == "mean":
        summed = _with(term, reduction="sum")
        said = "not divided by the number of labels"
        yield "loss_reduction", said, (replace(summed, factor=term.factor / count),)
        yield "loss_reduction", "a sum, not a mean", (summed,)
    full = {**term.target, "steps": np.full_like(term.target["steps"], _most(term.target["steps"]))}
    said = "the lengths of the outputs are not honoured: every step counts"
    yield "loss_lengths", said, (replace(term, target=full),)


def _most(steps: Sequence[int] | np.ndarray) -> int:
    return int(np.max(steps))
