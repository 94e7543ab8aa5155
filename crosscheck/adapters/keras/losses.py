"""Keras's own losses on its backend, and losses written in Keras or in the backend.

What ``keras.losses`` lacks is composed from ``keras.ops``: class weights that normalise, smoothed
or ignored labels by index, KL on log-probabilities (Keras takes probabilities and clips them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import keras
import numpy as np
from keras import losses, ops

__all__ = ["NAMED", "differentiate", "own"]


def differentiate(
    function: Callable[[Any, Any], Any],
    outputs: Mapping[str, np.ndarray],
    targets: Any,
    *,
    float64: bool,
    device: str,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The scalar ``function(outputs, targets)`` and its gradient, by the backend."""
    module = import_module(f"crosscheck.adapters.{keras.config.backend()}.losses")
    with ExitStack() as stack:
        if float64:
            stack.enter_context(_float64())
        found: tuple[np.ndarray, dict[str, np.ndarray]] = module.differentiate(
            function, outputs, targets, float64=float64, device=device
        )
    return found


@contextmanager
def _float64() -> Iterator[None]:
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before)


def own(loss: Callable[..., Any], *, float64: bool) -> Callable[[Any, Any], Any]:
    """The caller's loss; Keras's own take (y_true, y_pred), and return one for each sample."""
    if isinstance(loss, losses.Loss):
        if float64:
            loss = _widened(loss)
        return lambda outputs, targets: loss(targets, outputs)
    if getattr(loss, "__module__", "").startswith("keras.src.losses"):
        return lambda outputs, targets: ops.mean(loss(targets, outputs))
    return loss


def _widened(loss: losses.Loss) -> Any:
    """The same loss, made anew in float64: an instance keeps the dtype that it was made with."""
    config = {**loss.get_config(), "dtype": "float64"}
    return type(loss).from_config(config)


def _reduced(terms: Any, shape: Any, reduction: str) -> Any:
    """From the means over the last axis that ``keras.losses`` returns, or from the elements."""
    if reduction == "mean":
        return ops.mean(terms)
    share = int(np.prod(shape)) // int(np.prod(terms.shape))
    total = ops.sum(terms) * share
    return total / shape[0] if reduction == "batchmean" else total


def _elementwise(loss: Callable[..., Any]) -> Callable[..., Any]:
    def call(output: Any, target: Any, reduction: str = "mean", **options: Any) -> Any:
        return _reduced(loss(target, output, **options), output.shape, reduction)

    return call


def _is_float(value: Any) -> bool:
    return bool(keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype)))


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
    logits = ops.moveaxis(output, axis, -1)
    classes, dtype = logits.shape[-1], logits.dtype
    dense = _is_float(target)
    if dense:
        kept = ops.ones(logits.shape[:-1], dtype)
        labels = ops.moveaxis(target, axis, -1)
        divisor: Any = ops.sum(kept)
    else:
        kept = ops.cast(ops.not_equal(target, ignore_index), dtype)
        index = ops.where(ops.not_equal(target, ignore_index), target, 0)
        labels = ops.one_hot(index, classes, dtype=dtype)
        divisor = ops.sum(kept)
        if weight is not None:
            divisor = ops.sum(kept * ops.take(ops.convert_to_tensor(weight, dtype), index))
    if weight is not None:
        labels = (1 - label_smoothing) * labels + label_smoothing / classes
        labels = labels * ops.convert_to_tensor(weight, dtype)
        terms = -ops.sum(labels * ops.log_softmax(logits, -1), -1)
    elif dense or label_smoothing:
        terms = losses.categorical_crossentropy(
            labels, logits, from_logits=True, label_smoothing=label_smoothing
        )
    else:
        terms = losses.sparse_categorical_crossentropy(index, logits, from_logits=True)
    total = ops.sum(kept * terms)
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
    logs = ops.moveaxis(output, axis, -1)
    kept = ops.cast(ops.not_equal(target, ignore_index), logs.dtype)
    index = ops.where(ops.not_equal(target, ignore_index), target, 0)
    w = np.ones(logs.shape[-1]) if weight is None else weight
    shares = kept * ops.take(ops.convert_to_tensor(w, logs.dtype), index)
    labels = ops.one_hot(index, logs.shape[-1], dtype=logs.dtype)
    total = -ops.sum(shares * ops.sum(labels * logs, -1))
    return total if reduction == "sum" else total / ops.sum(shares)


def _bce(output: Any, target: Any, pos_weight: Any = None, reduction: str = "mean") -> Any:
    if pos_weight is None:
        terms = losses.binary_crossentropy(target, output, from_logits=True)
        return _reduced(terms, output.shape, reduction)
    p = ops.convert_to_tensor(pos_weight, output.dtype)
    terms = -p * target * ops.log_sigmoid(output) - (1 - target) * ops.log_sigmoid(-output)
    return _reduced(terms, output.shape, reduction)


def _kl_div(
    output: Any, target: Any, reduction: str = "batchmean", log_target: bool = False
) -> Any:
    probable = ops.exp(target) if log_target else target
    log = target if log_target else ops.log(ops.where(target > 0, target, ops.ones_like(target)))
    return _reduced(probable * (log - output), output.shape, reduction)


def _smooth_l1(output: Any, target: Any, beta: float = 1.0, reduction: str = "mean") -> Any:
    if beta == 0.0:
        return _elementwise(losses.mean_absolute_error)(output, target, reduction)
    return _elementwise(losses.huber)(output, target, reduction, delta=beta) / beta


def _ctc(
    output: Any, target: Any, *, batch_axis: int, blank: int = 0, reduction: str = "mean"
) -> Any:
    terms = ops.ctc_loss(
        ops.cast(target["labels"], "int32"),
        ops.moveaxis(output, batch_axis, 0),
        ops.cast(target["lengths"], "int32"),
        ops.cast(target["steps"], "int32"),
        mask_index=blank,
    )
    if reduction == "sum":
        return ops.sum(terms)
    return ops.mean(terms / ops.cast(ops.maximum(target["lengths"], 1), terms.dtype))


def _gaussian_kl(mean: Any, logvar: Any, reduction: str = "batchmean") -> Any:
    terms = 0.5 * (ops.square(mean) + ops.exp(logvar) - 1 - logvar)
    return _reduced(terms, terms.shape, reduction)


NAMED: dict[str, Callable[..., Any]] = {
    "bce_with_logits": _bce,
    "cross_entropy": _cross_entropy,
    "ctc": _ctc,
    "gaussian_kl": _gaussian_kl,
    "huber": _elementwise(losses.huber),
    "kl_div": _kl_div,
    "mae": _elementwise(losses.mean_absolute_error),
    "mse": _elementwise(losses.mean_squared_error),
    "nll": _nll,
    "smooth_l1": _smooth_l1,
}
