"""TensorFlow's own losses (``tf.nn``), and losses written in TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from crosscheck.adapters.tensorflow.taps import feed, to_host

__all__ = ["NAMED", "differentiate", "own"]


def differentiate(
    function: Callable[[Any, Any], Any],
    outputs: Mapping[str, np.ndarray],
    targets: Any,
    *,
    float64: bool,
    device: str,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The scalar ``function(outputs, targets)`` and its gradient by every float output."""
    with tf.device("/GPU:0" if device == "cuda" else "/CPU:0"):
        given = {site: feed(value, float64=float64) for site, value in outputs.items()}
        floats = {s: v for s, v in given.items() if v.dtype.is_floating}
        fed = tf.nest.map_structure(
            lambda array: None if array is None else feed(array, float64=float64), targets
        )
        with tf.GradientTape() as tape:
            tape.watch(list(floats.values()))
            value = tf.convert_to_tensor(function(given, fed))
        found: list[Any] = [None] * len(floats)
        if value.shape.num_elements() == 1 and value.dtype.is_floating:
            found = tape.gradient(value, list(floats.values()))
        gradients = {
            site: to_host(tf.zeros_like(floats[site]) if g is None else g)
            for site, g in zip(floats, found, strict=True)
        }
        return np.array(to_host(value)), gradients


def own(loss: Callable[..., Any], *, float64: bool) -> Callable[[Any, Any], Any]:
    """The caller's loss, as it is."""
    return loss


def _reduced(terms: Any, reduction: str) -> Any:
    total = tf.reduce_sum(terms)
    if reduction == "sum":
        return total
    return total / (terms.shape[0] if reduction == "batchmean" else tf.size(terms, terms.dtype))


def _last(value: Any, axis: int) -> Any:
    axes = [a for a in range(len(value.shape)) if a != axis]
    return tf.transpose(value, [*axes, axis])


def _cross_entropy(
    output: Any,
    target: Any,
    *,
    axis: int,
    label_smoothing: float = 0.0,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Any:
    """Smoothing, class weights and ignore_index are composed around ``tf.nn``, which has none."""
    logits = _last(output, axis)
    classes = logits.shape[-1]
    dense = target.dtype.is_floating
    kept = tf.ones(logits.shape[:-1], bool) if dense else target != ignore_index
    index = None if dense else tf.where(kept, target, 0)
    if dense:
        divisor = tf.cast(tf.size(kept), logits.dtype)
        labels = _last(target, axis)
    else:
        w = tf.ones(classes, logits.dtype) if weight is None else tf.constant(weight, logits.dtype)
        divisor = tf.reduce_sum(tf.cast(kept, logits.dtype) * tf.gather(w, index))
        labels = tf.one_hot(index, classes, dtype=logits.dtype)
    if weight is None and not label_smoothing and not dense:
        terms = tf.nn.sparse_softmax_cross_entropy_with_logits(index, logits)
    else:
        labels = (1 - label_smoothing) * labels + label_smoothing / classes
        labels = labels if weight is None else labels * tf.constant(weight, logits.dtype)
        # tf.nn takes labels for a distribution: its gradient is wrong unless they sum to one.
        terms = -tf.reduce_sum(labels * tf.nn.log_softmax(logits), -1)
    total = tf.reduce_sum(tf.where(kept, terms, tf.zeros_like(terms)))
    return total if reduction == "sum" else total / divisor


def _nll(
    output: Any,
    target: Any,
    *,
    axis: int,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Any:
    """``tf.nn`` has none on log-probabilities: from TensorFlow's operations."""
    logs, kept = _last(output, axis), target != ignore_index
    index = tf.where(kept, target, 0)
    w = tf.ones(logs.shape[-1], logs.dtype) if weight is None else tf.constant(weight, logs.dtype)
    shares = tf.cast(kept, logs.dtype) * tf.gather(w, index)
    total = -tf.reduce_sum(shares * tf.gather(logs, index, batch_dims=len(index.shape)))
    return total if reduction == "sum" else total / tf.reduce_sum(shares)


def _bce(output: Any, target: Any, pos_weight: Any = None, reduction: str = "mean") -> Any:
    if pos_weight is None:
        return _reduced(tf.nn.sigmoid_cross_entropy_with_logits(target, output), reduction)
    p = tf.constant(pos_weight, output.dtype)
    return _reduced(tf.nn.weighted_cross_entropy_with_logits(target, output, p), reduction)


def _kl_div(
    output: Any, target: Any, reduction: str = "batchmean", log_target: bool = False
) -> Any:
    """On log-probabilities; ``tf.nn`` has none: from TensorFlow's operations."""
    if log_target:
        return _reduced(tf.exp(target) * (target - output), reduction)
    return _reduced(tf.math.xlogy(target, target) - target * output, reduction)


def _huber(output: Any, target: Any, delta: float = 1.0, reduction: str = "mean") -> Any:
    """``tf.nn`` has none: from TensorFlow's operations."""
    apart = output - target
    size = tf.abs(apart)
    terms = tf.where(size <= delta, 0.5 * apart * apart, delta * (size - 0.5 * delta))
    return _reduced(terms, reduction)


def _smooth_l1(output: Any, target: Any, beta: float = 1.0, reduction: str = "mean") -> Any:
    if beta == 0.0:
        return _reduced(tf.abs(output - target), reduction)
    return _huber(output, target, beta, reduction) / beta


def _ctc(
    output: Any, target: Any, *, batch_axis: int, blank: int = 0, reduction: str = "mean"
) -> Any:
    logits = output if batch_axis == 0 else tf.transpose(output, [1, 0, 2])
    terms = tf.nn.ctc_loss(
        tf.cast(target["labels"], tf.int32),
        logits,
        tf.cast(target["lengths"], tf.int32),
        tf.cast(target["steps"], tf.int32),
        logits_time_major=False,
        blank_index=blank,
    )
    if reduction == "sum":
        return tf.reduce_sum(terms)
    return tf.reduce_mean(terms / tf.cast(tf.maximum(target["lengths"], 1), terms.dtype))


def _gaussian_kl(mean: Any, logvar: Any, reduction: str = "batchmean") -> Any:
    """``tf.nn`` has none: from TensorFlow's operations."""
    return _reduced(0.5 * (mean * mean + tf.exp(logvar) - 1 - logvar), reduction)


NAMED: dict[str, Callable[..., Any]] = {
    "bce_with_logits": _bce,
    "cross_entropy": _cross_entropy,
    "ctc": _ctc,
    "gaussian_kl": _gaussian_kl,
    "huber": _huber,
    "kl_div": _kl_div,
    "mae": lambda o, t, reduction="mean": _reduced(tf.abs(o - t), reduction),
    "mse": lambda o, t, reduction="mean": _reduced(tf.math.squared_difference(o, t), reduction),
    "nll": _nll,
    "smooth_l1": _smooth_l1,
}
