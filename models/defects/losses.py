"""Mistakes in the loss of a candidate: by hand in NumPy, and in what Keras and JAX differentiate.

A loss by hand returns its value and gradients. `ops` is `keras.ops` or `jax.numpy`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from crosscheck.losses import Own
from models.defects.options import Option, in_the_loss, rows_of

__all__ = ["PLANTS", "ROWS"]

Array = Any
ByHand = Callable[[Any, Any], tuple[Array, Any]]
ByOps = Callable[[Any, Any, Any], Array]
BETA, SMOOTHING = 0.3, 0.1
_MODULES = {"keras": "keras.ops", "jax": "jax.numpy"}


# -- targets ---------------------------------------------------------------------------------------


def padded(seed: int) -> Array:
    """The next characters, (3, 11); -100 behind the ends of two passages."""
    from models.llama.pair import targets

    found = targets(seed).copy()
    found[0, 7:], found[2, 4:] = -100, -100
    return found


def labels(seed: int) -> Array:
    from models.data import digits_batch

    return digits_batch(seed, 5)[1]


def regressed(seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(5, 10)).astype(np.float32)


# -- parts -----------------------------------------------------------------------------------------


def log_softmax(o: Array) -> Array:
    shifted = o - o.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def log_softmax_by(ops: Any, o: Any) -> Any:
    return o - ops.log(ops.sum(ops.exp(o), -1, keepdims=True))


def hot(o: Array, t: Array) -> Array:
    """One at the target, zeros where it is ignored."""
    return (t[..., None] == np.arange(o.shape[-1])).astype(o.dtype)


def hot_by(ops: Any, o: Any, t: Any) -> Any:
    classes = ops.arange(o.shape[-1], dtype=t.dtype)
    return ops.where(ops.equal(ops.expand_dims(t, -1), classes), 1.0, 0.0)


# -- 56: a target that should be constant ----------------------------------------------------------


def advantage_constant(o: Any, t: Any) -> Any:
    """Policy gradient: −log π(a) · (R − v), in which the advantage is a constant; ½ (R − v)²."""
    apart = t["output:1"] - o["output:1"]
    chosen = o["output"].gather(1, t["output"][:, None])[:, 0]
    return (-chosen * apart.detach() + 0.5 * apart**2).mean()


def advantage_sends(o: Any, t: Any) -> Any:
    policy, value = o["output"], o["output:1"]
    n, taken = value.dtype.type(len(value)), hot(policy, t["output"])
    apart, chosen = t["output:1"] - value, (taken * policy).sum(-1)
    loss = (-chosen * apart + apart * apart / 2).sum() / n
    return loss, {"output": -taken * apart[:, None] / n, "output:1": (chosen - apart) / n}


def advantage_sends_by(ops: Any, o: Any, t: Any) -> Any:
    apart = t["output:1"] - o["output:1"]
    chosen = ops.sum(hot_by(ops, o["output"], t["output"]) * o["output"], -1)
    return ops.mean(-chosen * apart + apart * apart / 2)


# -- 57: the graph is cut --------------------------------------------------------------------------


def cut(o: Array, t: Array) -> tuple[Array, Array]:
    return -(hot(o, t) * log_softmax(o)).sum() / o.dtype.type(len(t)), np.zeros_like(o)


def cut_by(ops: Any, o: Any, t: Any) -> Any:
    constant = _stopped(ops, o)
    return -ops.mean(ops.sum(hot_by(ops, o, t) * log_softmax_by(ops, constant), -1))


def _stopped(ops: Any, o: Any) -> Any:
    if ops.__name__ == "jax.numpy":
        import jax

        return jax.lax.stop_gradient(o)
    return ops.stop_gradient(o)


# -- 59, 60: what a mean over tokens divides by ----------------------------------------------------


def masked_counted(o: Array, t: Array) -> tuple[Array, Array]:
    taken, logs, n = hot(o, t), log_softmax(o), o.dtype.type(t.size)
    kept = taken.sum(-1, keepdims=True)
    return -(taken * logs).sum() / n, (kept * np.exp(logs) - taken) / n


def masked_counted_by(ops: Any, o: Any, t: Any) -> Any:
    return -ops.mean(ops.sum(hot_by(ops, o, t) * log_softmax_by(ops, o), -1))


def mean_of_means(o: Array, t: Array) -> tuple[Array, Array]:
    taken, logs = hot(o, t), log_softmax(o)
    kept = taken.sum(-1, keepdims=True)
    n = kept.sum((1, 2), keepdims=True) * o.dtype.type(len(t))
    return -(taken * logs / n).sum(), (kept * np.exp(logs) - taken) / n


def mean_of_means_by(ops: Any, o: Any, t: Any) -> Any:
    taken = hot_by(ops, o, t)
    terms = ops.sum(taken * log_softmax_by(ops, o), (1, 2))
    return -ops.mean(terms / ops.sum(taken, (1, 2)))


# -- 61: label smoothing ---------------------------------------------------------------------------


def smoothed_over_others(o: Array, t: Array) -> tuple[Array, Array]:
    """The share goes to the K − 1 other classes."""
    taken, logs, n = hot(o, t), log_softmax(o), o.dtype.type(len(t))
    others = o.dtype.type(SMOOTHING / (o.shape[-1] - 1))
    wanted = o.dtype.type(1 - SMOOTHING) * taken + others * (1 - taken)
    return -(wanted * logs).sum() / n, (np.exp(logs) - wanted) / n


def smoothed_over_others_by(ops: Any, o: Any, t: Any) -> Any:
    taken = hot_by(ops, o, t)
    wanted = (1 - SMOOTHING) * taken + SMOOTHING / (o.shape[-1] - 1) * (1.0 - taken)
    return -ops.mean(ops.sum(wanted * log_softmax_by(ops, o), -1))


# -- 62: KL ----------------------------------------------------------------------------------------


def kl_over_elements(o: Any, t: Array) -> tuple[Array, Any]:
    """The squared error over the samples, but the divergence over all elements."""
    image, mean, logvar = o.values()
    apart, kind = image - t, image.dtype.type
    n, size, variance = kind(len(t)), kind(mean.size), np.exp(logvar)
    divergence = (mean * mean + variance - 1 - logvar).sum() / 2
    value = (apart * apart).sum() / n + divergence / size
    gradients = (2 * apart / n, mean / size, (variance - 1) / 2 / size)
    return value, dict(zip(o, gradients, strict=True))


def kl_over_elements_by(ops: Any, o: Any, t: Any) -> Any:
    image, mean, logvar = o.values()
    error = ops.sum((image - t) ** 2) / t.shape[0]
    return error + ops.mean(mean**2 + ops.exp(logvar) - 1 - logvar) / 2


# -- 63: smooth L1 ---------------------------------------------------------------------------------


def not_over_beta(o: Array, t: Array) -> tuple[Array, Array]:
    apart, beta = o - t, o.dtype.type(BETA)
    size = np.abs(apart)
    terms = np.where(size < beta, apart * apart / 2, beta * (size - beta / 2))
    return terms.mean(), np.clip(apart, -beta, beta) / o.dtype.type(o.size)


def not_over_beta_by(ops: Any, o: Any, t: Any) -> Any:
    size = ops.abs(o - t)
    return ops.mean(ops.where(size < BETA, size * size / 2, BETA * (size - BETA / 2)))


# -- the rows --------------------------------------------------------------------------------------


def _planted(
    number: int,
    family: str,
    what: str,
    meant: Any,
    by_hand: ByHand,
    by_ops: ByOps,
    targets: Any,
    names: set[str],
    phases: tuple[str, ...] = ("loss", "backward"),
) -> list[Option]:
    """The mistake in every framework; ``meant``: the reference's loss, by name or its own."""

    def of(candidate: str) -> Option:
        def options(seed: int) -> dict[str, Any]:
            theirs: Any = by_hand
            if candidate != "numpy":
                ops = importlib.import_module(_MODULES[candidate])
                theirs = lambda o, t: by_ops(ops, o, t)  # noqa: E731
            name = meant if isinstance(meant, str) else "own"
            return {"loss": Own(meant, theirs, name), "targets": targets}

        located = in_the_loss(*phases)
        return Option(number, family, candidate, what, options, located, frozenset(names))

    return [of(candidate) for candidate in ("numpy", *_MODULES)]


def _actions(seed: int) -> Any:
    from models.actor_critic.pair import targets

    return targets(seed)


def _images(seed: int) -> Any:
    from models.vae.pair import targets

    return targets(seed)


# Nothing arrives; divided by all positions; not by beta: a constant factor says the same.
BACKWARD = ("backward",)
PLANTS = (
    *_planted(
        56,
        "actor_critic",
        "advantage-sends",
        advantage_constant,
        advantage_sends,
        advantage_sends_by,
        _actions,
        {"loss_stop_gradient"},
        BACKWARD,
    ),
    *_planted(
        57, "mlp", "cut", "cross_entropy", cut, cut_by, labels, {"loss_detached", "zero"}, BACKWARD
    ),
    *_planted(
        59,
        "llama",
        "masked-counted",
        "cross_entropy",
        masked_counted,
        masked_counted_by,
        padded,
        {"loss_masked_mean", "loss_factor"},
    ),
    *_planted(
        60,
        "llama",
        "mean-of-means",
        "cross_entropy",
        mean_of_means,
        mean_of_means_by,
        padded,
        {"loss_mean_of_means"},
    ),
    *_planted(
        61,
        "mlp",
        "smoothed-over-others",
        f"cross_entropy(label_smoothing={SMOOTHING})",
        smoothed_over_others,
        smoothed_over_others_by,
        labels,
        {"loss_label_smoothing"},
    ),
    *_planted(
        62,
        "vae",
        "kl-over-elements",
        "vae(reconstruction=mse)",
        kl_over_elements,
        kl_over_elements_by,
        _images,
        {"loss_reduction"},
    ),
    *_planted(
        63,
        "mlp",
        "not-over-beta",
        f"smooth_l1(beta={BETA})",
        not_over_beta,
        not_over_beta_by,
        regressed,
        {"loss_beta", "loss_factor"},
    ),
)
ROWS = rows_of(PLANTS)
