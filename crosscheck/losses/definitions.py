"""The losses themselves: value and gradient of each, in NumPy, in the dtype of what they are given.

One definition each. It is what NumPy, CuPy and ONNX sides compute (in their own dtype), what the
tests hold every framework's own loss to, and, in float64, what an explanation starts from.

Every definition takes its output (or outputs), its target and its options, and returns an
`Evaluation`. Shapes are free: reductions run over all axes. N is the first axis, K the number of
classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["DEFINITIONS", "Evaluation", "class_shares", "divided", "reduced"]


@dataclass(frozen=True)
class Evaluation:
    """What a loss is at one point.

    Attributes:
        value: the loss, a scalar of the outputs' dtype.
        gradients: with respect to each output, in its shape and dtype.
    """

    value: np.ndarray
    gradients: tuple[np.ndarray, ...]


def reduced(terms: np.ndarray, gradients: tuple[np.ndarray, ...], reduction: str) -> Evaluation:
    """Sum up elementwise losses: ``sum``, ``mean`` (over the elements), ``batchmean`` (over N)."""
    divisor = {"sum": 1, "mean": terms.size, "batchmean": len(terms) if terms.ndim else 1}
    return divided(terms, gradients, divisor[reduction])


def divided(terms: np.ndarray, gradients: tuple[np.ndarray, ...], by: float) -> Evaluation:
    """The sum of ``terms`` over a divisor, and its gradients."""
    kind = terms.dtype.type
    return Evaluation(
        np.asarray(terms.sum(dtype=terms.dtype) / kind(by)),
        tuple(np.asarray(g / kind(by), g.dtype) for g in gradients),
    )


def mse(output: np.ndarray, target: np.ndarray, *, reduction: str = "mean") -> Evaluation:
    """Squared error (o − t)²; its gradient 2 (o − t)."""
    apart = output - target
    return reduced(apart * apart, (2 * apart,), reduction)


def mae(output: np.ndarray, target: np.ndarray, *, reduction: str = "mean") -> Evaluation:
    """Absolute error |o − t|; its gradient sign(o − t), 0 at 0."""
    apart = output - target
    return reduced(np.abs(apart), (np.sign(apart),), reduction)


def huber(
    output: np.ndarray, target: np.ndarray, *, delta: float = 1.0, reduction: str = "mean"
) -> Evaluation:
    """½ d² for |d| ≤ δ, else δ (|d| − ½ δ), with d = o − t (Huber 1964); gradient clip(d, ±δ)."""
    apart = output - target
    size, delta = np.abs(apart), apart.dtype.type(delta)
    half = apart.dtype.type(0.5)
    terms = np.where(size <= delta, half * apart * apart, delta * (size - half * delta))
    return reduced(terms, (np.clip(apart, -delta, delta),), reduction)


def smooth_l1(
    output: np.ndarray, target: np.ndarray, *, beta: float = 1.0, reduction: str = "mean"
) -> Evaluation:
    """½ d²/β for |d| < β, else |d| − ½ β (Girshick 2015, eq. 3; with β): Huber's loss over β."""
    if beta == 0.0:
        return mae(output, target, reduction=reduction)
    whole = huber(output, target, delta=beta, reduction=reduction)
    kind = output.dtype.type(beta)
    return Evaluation(
        np.asarray(whole.value / kind), tuple(np.asarray(g / kind) for g in whole.gradients)
    )


def bce_with_logits(
    output: np.ndarray,
    target: np.ndarray,
    *,
    pos_weight: Any = None,
    reduction: str = "mean",
) -> Evaluation:
    """Binary cross-entropy on logits: −p t log σ(o) − (1 − t) log(1 − σ(o)).

    p is ``pos_weight``, broadcast over the last axes. With l = 1 + (p − 1) t it is
    (1 − t) o + l · log(1 + e⁻ᵒ), its gradient (1 − t) − l σ(−o).
    """
    kind = output.dtype
    p = np.asarray(1.0 if pos_weight is None else pos_weight, kind)
    share = 1 + (p - 1) * target
    soft = np.logaddexp(np.zeros((), kind), -output)  # log(1 + e⁻ᵒ)
    sigmoid = np.exp(-np.logaddexp(np.zeros((), kind), output))  # σ(−o)
    terms = (1 - target) * output + share * soft
    return reduced(terms, ((1 - target) - share * sigmoid,), reduction)


def kl_div(
    output: np.ndarray,
    target: np.ndarray,
    *,
    log_target: bool = False,
    reduction: str = "batchmean",
) -> Evaluation:
    """Kullback-Leibler divergence Σ t (log t − o) of *log*-probabilities o from probabilities t.

    0 log 0 is 0. The divergence of a distribution is the sum over its classes: ``batchmean``
    averages it over N; ``mean`` divides by the classes as well, as ``torch.nn.KLDivLoss`` does.
    """
    probable = np.exp(target) if log_target else target
    with np.errstate(divide="ignore"):
        log = target if log_target else np.log(np.where(target > 0, target, 1))
    return reduced(probable * (log - output), (-probable + np.zeros_like(output),), reduction)


def gaussian_kl(
    mean: np.ndarray, logvar: np.ndarray, *, reduction: str = "batchmean"
) -> Evaluation:
    """−½ Σ (1 + v − μ² − eᵛ): KL of N(μ, eᵛ) from N(0, 1) (Kingma & Welling 2014, appendix B)."""
    half, variance = mean.dtype.type(0.5), np.exp(logvar)
    terms = half * (mean * mean + variance - 1 - logvar)
    return reduced(terms, (mean, half * (variance - 1)), reduction)


def cross_entropy(
    output: np.ndarray,
    target: np.ndarray,
    *,
    axis: int = 1,
    label_smoothing: float = 0.0,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Evaluation:
    """Softmax cross-entropy −Σₖ wₖ qₖ log softmax(o)ₖ over the classes on ``axis``.

    Args:
        target: class indices (the output's shape without ``axis``), or probabilities (its shape).
        label_smoothing: ε; q = (1 − ε)·target + ε/K (Szegedy et al. 2016, section 7).
        weight: w, one for each class.
        ignore_index: positions with this index count for nothing.
        reduction: ``mean`` is a weighted mean for indices, Σ over Σ w_target of what is not
            ignored, as in ``torch.nn.CrossEntropyLoss``; for probabilities over the positions.
    """
    wanted, divisor = class_shares(
        output,
        target,
        axis=axis,
        label_smoothing=label_smoothing,
        weight=weight,
        ignore_index=ignore_index,
    )
    logs = _log_softmax(np.moveaxis(output, axis, -1))
    total = wanted.sum(-1, keepdims=True)
    gradient = np.moveaxis(total * np.exp(logs) - wanted, -1, axis)
    return divided(-(wanted * logs).sum(-1), (gradient,), 1.0 if reduction == "sum" else divisor)


def class_shares(
    output: np.ndarray,
    target: np.ndarray,
    *,
    axis: int,
    label_smoothing: float = 0.0,
    weight: Any = None,
    ignore_index: int = -100,
) -> tuple[np.ndarray, float]:
    """w·q of every position, classes last, zero where it is ignored; and what a mean divides by."""
    kind, classes = output.dtype.type, output.shape[axis]
    w = np.ones(classes, kind) if weight is None else np.asarray(weight, kind)
    if target.dtype.kind == "f":
        hot = np.moveaxis(target, axis, -1).astype(kind)
        kept = np.ones(hot.shape[:-1], bool)
        divisor = float(kept.size)
    else:
        kept = target != ignore_index
        index = np.where(kept, target, 0)
        hot = np.eye(classes, dtype=kind)[index]
        divisor = float((w[index] * kept).sum(dtype=np.float64))
    smoothed = (1 - kind(label_smoothing)) * hot + kind(label_smoothing / classes)
    return w * smoothed * kept[..., None], divisor


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def nll(
    output: np.ndarray,
    target: np.ndarray,
    *,
    axis: int = 1,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Evaluation:
    """−w_y o_y for log-probabilities o and class indices y; ``mean`` as in `cross_entropy`."""
    wanted, divisor = class_shares(
        output, target, axis=axis, weight=weight, ignore_index=ignore_index
    )
    terms = -(wanted * np.moveaxis(output, axis, -1)).sum(-1)
    gradient = np.moveaxis(-wanted, -1, axis)
    return divided(terms, (gradient,), 1.0 if reduction == "sum" else divisor)


def ctc(
    output: np.ndarray,
    target: dict[str, np.ndarray],
    *,
    batch_axis: int = 0,
    blank: int = 0,
    reduction: str = "mean",
) -> Evaluation:
    """Connectionist temporal classification on logits (Graves et al. 2006, sections 4.1 and 4.2).

    Args:
        output: (N, T, K), or (T, N, K) with ``batch_axis`` 1. Log-probabilities are logits, too.
        target: ``labels`` (N, S), ``lengths`` (N,) of them and ``steps`` (N,) of the output.
        reduction: ``sum``; ``mean`` divides each sequence by its number of labels and then by N,
            as ``torch.nn.CTCLoss`` does.
    """
    from crosscheck.losses.alignments import negative_log_likelihood

    logits = np.moveaxis(output, batch_axis, 0)
    found = [
        negative_log_likelihood(logits[n, :steps], target["labels"][n, :length], blank)
        for n, (length, steps) in enumerate(zip(target["lengths"], target["steps"], strict=True))
    ]
    values = np.array([value for value, _ in found], output.dtype)
    gradients = np.zeros_like(logits)
    shares = np.ones(len(found), output.dtype)
    if reduction == "mean":
        shares = (1.0 / (np.maximum(target["lengths"], 1) * len(found))).astype(output.dtype)
    for n, (_, gradient) in enumerate(found):
        gradients[n, : len(gradient)] = gradient * shares[n]
    value = np.asarray((values * shares).sum(dtype=output.dtype))
    return Evaluation(value, (np.moveaxis(gradients, 0, batch_axis),))


DEFINITIONS: dict[str, Callable[..., Evaluation]] = {
    "bce_with_logits": bce_with_logits,
    "cross_entropy": cross_entropy,
    "ctc": ctc,
    "gaussian_kl": gaussian_kl,
    "huber": huber,
    "kl_div": kl_div,
    "mae": mae,
    "mse": mse,
    "nll": nll,
    "smooth_l1": smooth_l1,
}
