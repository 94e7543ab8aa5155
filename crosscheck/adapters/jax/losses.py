"""JAX's losses (optax, which Flax brings along), and losses written in JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crosscheck.adapters.jax.state import computing
from crosscheck.errors import MissingFramework

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
    with computing(float64=float64, device=device):
        given = {site: _array(value, float64) for site, value in outputs.items()}
        floats = {s: v for s, v in given.items() if jnp.issubdtype(v.dtype, jnp.floating)}
        rest = {s: v for s, v in given.items() if s not in floats}
        fed = jax.tree.map(lambda array: _array(array, float64), targets)

        def scalar(some: dict[str, Any]) -> Any:
            return function({s: some[s] if s in some else rest[s] for s in given}, fed)

        value, pull = jax.vjp(scalar, floats)
        gradients: dict[str, Any] = {}
        if value.size == 1:
            (gradients,) = pull(jnp.ones_like(value))
        return np.array(value), {s: np.array(g) for s, g in gradients.items()}


def _array(value: np.ndarray, float64: bool) -> Any:
    array = jnp.array(np.asarray(value))
    wide = float64 and jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(jnp.float64) if wide else array


def own(loss: Callable[..., Any], *, float64: bool) -> Callable[[Any, Any], Any]:
    """The caller's loss, as it is."""
    return loss


def _optax() -> Any:
    """optax, which a loss in plain JAX does without."""
    try:
        from optax import losses
    except ModuleNotFoundError as error:
        raise MissingFramework("optax", needed_for="a named loss on a JAX side") from error
    return losses


def _reduced(terms: Any, reduction: str) -> Any:
    total = jnp.sum(terms)
    if reduction == "sum":
        return total
    return total / (terms.shape[0] if reduction == "batchmean" else terms.size)


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
    """Class weights and ignore_index are composed around optax, which has neither."""
    logits = jnp.moveaxis(output, axis, -1)
    classes = logits.shape[-1]
    if jnp.issubdtype(target.dtype, jnp.floating):
        kept = jnp.ones(logits.shape[:-1], bool)
        labels = jnp.moveaxis(target, axis, -1)
        divisor: Any = kept.size
    else:
        kept = target != ignore_index
        index = jnp.where(kept, target, 0)
        labels = jax.nn.one_hot(index, classes, dtype=logits.dtype)
        divisor = jnp.sum(
            kept if weight is None else kept * jnp.asarray(weight, logits.dtype)[index]
        )
    if weight is None and not label_smoothing and not jnp.issubdtype(target.dtype, jnp.floating):
        terms = _optax().softmax_cross_entropy_with_integer_labels(logits, index)
    else:
        labels = _optax().smooth_labels(labels, label_smoothing)
        if weight is not None:
            labels = labels * jnp.asarray(weight, logits.dtype)
        terms = _optax().softmax_cross_entropy(logits, labels)
    total = jnp.sum(jnp.where(kept, terms, 0))
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
    """optax has none on log-probabilities: from JAX's operations."""
    logs, kept = jnp.moveaxis(output, axis, -1), target != ignore_index
    index = jnp.where(kept, target, 0)
    w = jnp.ones(logs.shape[-1], logs.dtype) if weight is None else jnp.asarray(weight, logs.dtype)
    shares = kept * w[index]
    picked = jnp.take_along_axis(logs, index[..., None], axis=-1)[..., 0]
    total = -jnp.sum(shares * picked)
    return total if reduction == "sum" else total / jnp.sum(shares)


def _bce(output: Any, target: Any, pos_weight: Any = None, reduction: str = "mean") -> Any:
    """pos_weight is composed: the loss of the positive and of the negative part."""
    if pos_weight is None:
        terms = _optax().sigmoid_binary_cross_entropy(output, target)
    else:
        p = jnp.asarray(pos_weight, output.dtype)
        terms = -p * target * jax.nn.log_sigmoid(output)
        terms = terms - (1 - target) * jax.nn.log_sigmoid(-output)
    return _reduced(terms, reduction)


def _kl_div(
    output: Any, target: Any, reduction: str = "batchmean", log_target: bool = False
) -> Any:
    named = _optax()
    loss = named.kl_divergence_with_log_targets if log_target else named.kl_divergence
    terms = loss(output, target)  # already summed over the last axis
    total = jnp.sum(terms)
    if reduction == "sum":
        return total
    return total / (output.shape[0] if reduction == "batchmean" else output.size)


def _ctc(
    output: Any, target: Any, *, batch_axis: int, blank: int = 0, reduction: str = "mean"
) -> Any:
    logits = jnp.moveaxis(output, batch_axis, 0)  # (N, T, K)
    labels = target["labels"]
    unused = jnp.arange(logits.shape[1])[None, :] >= target["steps"][:, None]
    beyond = jnp.arange(labels.shape[1])[None, :] >= target["lengths"][:, None]
    terms = _optax().ctc_loss(
        logits, unused.astype(logits.dtype), labels, beyond.astype(logits.dtype), blank_id=blank
    )
    if reduction == "sum":
        return jnp.sum(terms)
    return jnp.mean(terms / jnp.maximum(target["lengths"], 1))


def _gaussian_kl(mean: Any, logvar: Any, reduction: str = "batchmean") -> Any:
    """optax has none: from JAX's operations."""
    return _reduced(0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar), reduction)


NAMED: dict[str, Callable[..., Any]] = {
    "bce_with_logits": _bce,
    "cross_entropy": _cross_entropy,
    "ctc": _ctc,
    "gaussian_kl": _gaussian_kl,
    "huber": lambda o, t, delta=1.0, reduction="mean": _reduced(
        _optax().huber_loss(o, t, delta=delta), reduction
    ),
    "kl_div": _kl_div,
    "mae": lambda o, t, reduction="mean": _reduced(jnp.abs(o - t), reduction),
    "mse": lambda o, t, reduction="mean": _reduced(_optax().squared_error(o, t), reduction),
    "nll": _nll,
    "smooth_l1": lambda o, t, beta=1.0, reduction="mean": _reduced(
        _optax().huber_loss(o, t, delta=beta) / beta if beta else jnp.abs(o - t), reduction
    ),
}
