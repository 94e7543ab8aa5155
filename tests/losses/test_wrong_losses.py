"""A wrong loss, or a wrong gradient of a right one, is found, located and explained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crosscheck.losses import Own
from tests.losses.kit import (
    CANDIDATES,
    IDS,
    LABELS,
    TOKENS,
    X,
    check,
    divergences,
    only_the_loss,
    verified,
)

torch = pytest.importorskip("torch")
F = torch.nn.functional
Array = Any


# -- planted: (row, text, candidate's own in NumPy, what is said) ----------------------------------


def softmax(o: Array) -> Array:
    e = np.exp(o - o.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def masked_tokens_in_the_mean(o: Array, t: Array) -> tuple[Array, Array]:
    kept = (t != 0)[..., None]
    hot = np.eye(4, dtype=o.dtype)[t] * kept
    p = softmax(o)
    n = o.dtype.type(t.size)  # for kept.sum()
    return -(hot * np.log(p)).sum() / n, (p * kept - hot) / n


def smoothing_over_k_minus_1(o: Array, t: Array) -> tuple[Array, Array]:
    hot = np.eye(4, dtype=o.dtype)[t]
    q = np.float32(0.9) * hot + np.float32(0.1 / 3) * (1 - hot)
    p, n = softmax(o), o.dtype.type(len(t))
    return -(q * np.log(p)).sum() / n, (p - q) / n


def kl_mean(o: Array, t: Array) -> tuple[Array, Array]:
    return np.mean(t * (np.log(t) - o)), -t / o.dtype.type(o.size)


def smooth_l1_without_beta(o: Array, t: Array) -> tuple[Array, Array]:
    d, b = o - t, np.float32(0.3)
    terms = np.where(np.abs(d) < b, d * d / 2, b * (np.abs(d) - b / 2))
    return terms.mean(), np.clip(d, -b, b) / o.dtype.type(o.size)


def weights_that_do_not_normalise(o: Array, t: Array) -> tuple[Array, Array]:
    w = np.array([1, 2, 0.5, 3], o.dtype)[t][:, None]
    hot, p, n = np.eye(4, dtype=o.dtype)[t], softmax(o), o.dtype.type(len(t))
    return -(w * hot * np.log(p)).sum() / n, w * (p - hot) / n


def ignored_class_counted(o: Array, t: Array) -> tuple[Array, Array]:
    hot, p, n = np.eye(4, dtype=o.dtype)[t], softmax(o), o.dtype.type(t.size)
    return -(hot * np.log(p)).sum() / n, (p - hot) / n


def softmax_twice(o: Array, t: Array) -> tuple[Array, Array]:
    p = softmax(o)
    hot, q, n = np.eye(4, dtype=o.dtype)[t], softmax(softmax(o)), o.dtype.type(len(t))
    g = (q - hot) / n
    return -(hot * np.log(q)).sum() / n, p * (g - (g * p).sum(-1, keepdims=True))


def no_pos_weight(o: Array, t: Array) -> tuple[Array, Array]:
    s = 1 / (1 + np.exp(-o))
    terms = np.logaddexp(np.float32(0), o) - t * o
    return terms.mean(), (s - t) / o.dtype.type(o.size)


def thrice(o: Array, t: Array) -> tuple[Array, Array]:
    return np.float32(3) * np.mean((o - t) ** 2), 6 * (o - t) / o.dtype.type(o.size)


def mean_of_means(o: Array, t: Array) -> tuple[Array, Array]:
    kept = (t != 0)[..., None]
    hot, p = np.eye(4, dtype=o.dtype)[t] * kept, softmax(o)
    n = kept.sum((1, 2), keepdims=True).astype(o.dtype) * len(t)
    return -(hot * np.log(p) / n).sum(), (p * kept - hot) / n


IDS_UNEVEN = np.where(np.arange(15).reshape(3, 5) % 7 == 3, 0, IDS + (IDS == 0))
PROBABLE = softmax(np.random.default_rng(0).normal(size=(7, 4))).astype(np.float32)
IN_01 = np.random.default_rng(0).uniform(0, 1, (7, 4)).astype(np.float32)
WRONG = {
    "59 masked tokens": (
        "cross_entropy(ignore_index=0)",
        masked_tokens_in_the_mean,
        IDS,
        TOKENS,
        "ignored positions are counted in the mean: divided by 15 for 11",
    ),
    "60 mean of means": (
        "cross_entropy(ignore_index=0)",
        mean_of_means,
        IDS_UNEVEN,
        TOKENS,
        "a mean of every sample's own mean, not of all positions",
    ),
    "61 smoothing": (
        "cross_entropy(label_smoothing=0.1)",
        smoothing_over_k_minus_1,
        LABELS,
        X,
        "label smoothing is spread over K - 1 = 3 classes, not K",
    ),
    "62 KL mean": (
        "kl_div",
        kl_mean,
        PROBABLE,
        X,
        "a mean over all elements, not over the batch alone (mean for batchmean): "
        "divided by 28 for 7",
    ),
    "63 smooth L1": (
        "smooth_l1(beta=0.3)",
        smooth_l1_without_beta,
        "float32[7,4]",
        X,
        "the factor 1/beta = 3.33333 is missing: that is Huber's loss",
    ),
    "weights": (
        "cross_entropy(weight=[1, 2, 0.5, 3])",
        weights_that_do_not_normalise,
        LABELS,
        X,
        "the class weights do not normalise the mean: divided by 7 for 11",
    ),
    "ignore_index": (
        "cross_entropy(ignore_index=0)",
        ignored_class_counted,
        IDS,
        TOKENS,
        "ignore_index 0 is not honoured",
    ),
    "softmax twice": (
        "cross_entropy",
        softmax_twice,
        LABELS,
        X,
        "softmax is applied to the outputs, and again in the loss",
    ),
    "pos_weight": (
        "bce_with_logits(pos_weight=3)",
        no_pos_weight,
        IN_01,
        X,
        "pos_weight is missing",
    ),
    "factor": ("mse", thrice, "float32[7,4]", X, "the loss is scaled by 3"),
}


@pytest.mark.parametrize("row", WRONG)
def test_a_wrong_loss_is_found_located_and_explained(row: str) -> None:
    text, candidate, targets, inputs, said = WRONG[row]
    report = check(Own(text, candidate), targets, inputs=inputs)
    assert divergences(report) == [("loss", "loss"), ("backward", "loss")]
    assert only_the_loss(report)
    assert said in verified(report, "loss"), [d.causes for d in report.divergences]
    if row != "factor":
        assert said in verified(report, "backward"), [d.causes for d in report.divergences]
    assert {s.verdict for s in report.sites if s.reference != "loss"} == {"agree"}


# The same in the candidate's framework; `ops` is jax.numpy or keras.ops.


def one_hot(ops: Any, t: Any) -> Any:
    return ops.where(ops.equal(ops.expand_dims(t, -1), ops.arange(4, dtype=t.dtype)), 1.0, 0.0)


def log_softmax(ops: Any, o: Any) -> Any:
    return o - ops.log(ops.sum(ops.exp(o), -1, keepdims=True))


def masked_tokens_by_ops(ops: Any, o: Any, t: Any) -> Any:
    terms = -ops.sum(one_hot(ops, t) * log_softmax(ops, o), -1)
    return ops.mean(ops.where(ops.equal(t, 0), 0.0, terms))


def smoothing_by_ops(ops: Any, o: Any, t: Any) -> Any:
    hot = one_hot(ops, t)
    target = 0.9 * hot + 0.1 / 3 * (1.0 - hot)
    return -ops.mean(ops.sum(target * log_softmax(ops, o), -1))


def kl_by_ops(ops: Any, o: Any, t: Any) -> Any:
    return ops.mean(t * (ops.log(t) - o))


def smooth_l1_by_ops(ops: Any, o: Any, t: Any) -> Any:
    size = ops.abs(o - t)
    return ops.mean(ops.where(size < 0.3, size * size / 2, 0.3 * (size - 0.15)))


BY_OPS = {
    "59 masked tokens": masked_tokens_by_ops,
    "61 smoothing": smoothing_by_ops,
    "62 KL mean": kl_by_ops,
    "63 smooth L1": smooth_l1_by_ops,
}


@pytest.mark.parametrize("framework", ["keras", "jax"])
@pytest.mark.parametrize("row", BY_OPS)
def test_a_wrong_loss_in_another_framework(row: str, framework: str) -> None:
    module = {"keras": "keras.ops", "jax": "jax.numpy"}[framework]
    ops = pytest.importorskip(module)
    text, _, targets, inputs, said = WRONG[row]
    own = Own(text, lambda o, t: BY_OPS[row](ops, o, t))
    shape = (5, 6) if inputs == TOKENS else (6,)
    report = check(own, targets, CANDIDATES[framework](shape=shape), inputs)
    assert divergences(report) == [("loss", "loss"), ("backward", "loss")], str(report)
    assert said in verified(report, "loss") and said in verified(report, "backward")


def test_a_reference_of_ones_own_is_recognised() -> None:
    """Neither side is a name: the reference's values say which loss it is."""
    own = Own(
        lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1),
        smoothing_over_k_minus_1,
        name="cross_entropy(label_smoothing=0.1)",
    )
    assert "label smoothing is spread over K - 1 = 3 classes, not K" in verified(
        check(own, LABELS), "loss"
    )
    bare = Own(lambda o, t: F.kl_div(o, t, reduction="batchmean"), kl_mean)
    assert any("mean for batchmean" in said for said in verified(check(bare, PROBABLE), "loss"))


# -- the graph of the loss -------------------------------------------------------------------------


def stopped(framework: str) -> Any:
    """stop_gradient of a framework."""
    if framework == "torch":
        return lambda x: x.detach()
    if framework == "jax":
        import jax

        return jax.lax.stop_gradient
    import tensorflow as tf

    return tf.stop_gradient


def mean_square(x: Any) -> Any:
    return (x**2).mean() if hasattr(x, "mean") else _tf_mean(x**2)


def _tf_mean(x: Any) -> Any:
    import tensorflow as tf

    return tf.reduce_mean(x)


def reference_with_a_constant(o: Any, t: Any) -> Any:
    """Distances, weighted by how large they are; the weights are no function of the model."""
    apart = o - t
    return (apart.detach().abs() * apart**2).mean()


@pytest.mark.parametrize("framework", ["torch", "keras", "jax"])
def test_56_a_missing_stop_gradient(framework: str) -> None:
    def candidate(o: Any, t: Any) -> Any:
        apart = o - t
        size = abs(apart)
        terms = size * apart**2
        return terms.mean() if hasattr(terms, "mean") else _tf_mean(terms)

    own = Own(reference_with_a_constant, candidate)
    report = check(own, "float32[7,4]", CANDIDATES[framework]())
    assert divergences(report) == [("backward", "loss")]
    assert any(
        s.startswith("stop_gradient (detach) is missing") for s in verified(report, "backward")
    )


@pytest.mark.parametrize("framework", ["torch", "keras", "jax"])
def test_57_a_detached_loss(framework: str) -> None:
    stop = stopped(framework)

    def candidate(o: Any, t: Any) -> Any:
        return mean_square(stop(o) - t)

    report = check(Own("mse", candidate), "float32[7,4]", CANDIDATES[framework]())
    assert divergences(report) == [("backward", "loss")]
    assert any(s.startswith("the loss is detached") for s in verified(report, "backward"))


def test_a_part_of_the_loss_is_detached() -> None:
    def candidate(o: Any, t: Any) -> Any:
        hot = np.eye(4, dtype=o.dtype)[t]
        p = softmax(o)
        return -(hot * np.log(p)).sum() / np.float32(7), -hot / np.float32(7)

    report = check(Own("cross_entropy", candidate), LABELS)
    assert divergences(report) == [("backward", "loss")]
    assert verified(report, "backward") == [
        "the normaliser (log-sum-exp) is detached: no gradient comes from it"
    ]


def test_a_gradient_averaged_once_more() -> None:
    def candidate(o: Any, t: Any) -> Any:
        return np.mean((o - t) ** 2), 2 * (o - t) / np.float32(28 * 7)

    report = check(Own("mse", candidate), "float32[7,4]")
    assert divergences(report) == [("backward", "loss")]
    assert "the gradient is divided by 7, the batch size" in verified(report, "backward")


def test_an_unheard_of_loss_is_not_explained() -> None:
    def candidate(o: Any, t: Any) -> Any:
        d = o - t
        return np.mean(d * d + np.float32(0.1) * np.sin(9 * d)), 2 * d / np.float32(28)

    report = check(Own("mse", candidate), "float32[7,4]")
    assert divergences(report)[0] == ("loss", "loss")
    assert verified(report, "loss") == []
