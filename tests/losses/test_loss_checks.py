"""Checks with a loss: honest sides agree; a wrong loss is found, located and explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crosscheck
from crosscheck.losses import Own
from tests.losses.kit import (
    CANDIDATES,
    Net,
    divergences,
    keras_net,
    only_the_loss,
    torch_net,
    verified,
)

torch = pytest.importorskip("torch")
F = torch.nn.functional
X, LABELS = "float32[7,6]", "int64[7] 0..4"
TOKENS, IDS = "float32[3,5,6]", np.arange(15).reshape(3, 5) % 4
Array = Any


def check(loss: Any, targets: Any, candidate: Any = None, inputs: Any = X, **options: Any) -> Any:
    candidate = Net() if candidate is None else candidate
    return crosscheck.check(torch_net(), candidate, inputs, loss=loss, targets=targets, **options)


# -- honest ----------------------------------------------------------------------------------------


CLASSES = ("cross_entropy(label_smoothing=0.1, weight=[1, 2, 0.5, 3])", LABELS, X)
IN_SEQUENCES = ("cross_entropy(ignore_index=0)", IDS, TOKENS)


@pytest.mark.parametrize(
    ("framework", "case"),
    [
        ("numpy", CLASSES),
        ("numpy", IN_SEQUENCES),
        ("keras", CLASSES),
        ("keras", IN_SEQUENCES),
        ("jax", CLASSES),
    ],
    ids=["numpy", "numpy, tokens", "keras", "keras, tokens", "jax"],
)
def test_honest_sides_agree(framework: str, case: tuple[str, Any, str]) -> None:
    loss, targets, inputs = case
    candidate = CANDIDATES[framework](shape=(5, 6) if inputs == TOKENS else (6,))
    report = check(loss, targets, candidate, inputs)
    assert report.verdict == "agree", str(report)
    (value,) = [s for s in report.sites if s.phase == "loss"]
    assert (value.reference, value.candidate, value.shape) == ("loss", "loss", ())
    (gradient,) = [s for s in report.sites if s.phase == "backward" and s.reference == "loss"]
    assert gradient.kind == "input_cotangent" and gradient.free_ratio is not None
    assert any(s.phase == "parameter_gradient" for s in report.sites)


def test_the_gradients_are_those_of_the_loss() -> None:
    net, rng = torch_net(), np.random.default_rng(0)
    x = rng.normal(size=(7, 6)).astype(np.float32)
    y = rng.integers(0, 4, 7)
    F.cross_entropy(net(torch.tensor(x)), torch.tensor(y)).backward()
    seen = []

    class Watched(Net):
        def backward(self, dy: Any) -> Any:
            dx = super().backward(dy)
            seen.append(self.dW2.T)
            return dx

    crosscheck.check(net, Watched(), x, loss="cross_entropy", targets=y).raise_if_diverged()
    assert seen
    for gradient in (seen[0], seen[-1]):  # of the free run, and of a forced one
        np.testing.assert_allclose(gradient, net[2].weight.grad, rtol=1e-4, atol=1e-6)


def test_the_loss_of_a_model_without_a_backward_pass_or_without_gradients() -> None:
    report = check("cross_entropy", LABELS, gradients=False)
    assert report.verdict == "agree"
    assert [s.phase for s in report.sites if s.reference == "loss"] == ["loss"]
    forward_only = crosscheck.check(
        lambda x: np.tanh(x),
        lambda x: np.tanh(x),
        "float32[5,3]",
        loss="mse",
        targets="float32[5,3]",
    )
    assert [s.reference for s in forward_only.sites if s.phase == "loss"] == ["loss"]


def test_a_factor_in_front() -> None:
    assert check("0.5 * huber(delta=0.4)", "float32[7,4]").verdict == "agree"


def test_probabilities_and_a_function_of_the_seed() -> None:
    def soft(seed: int) -> Array:
        e = np.exp(np.random.default_rng(seed).normal(size=(7, 4)))
        return (e / e.sum(-1, keepdims=True)).astype(np.float32)

    assert check("cross_entropy", soft, keras_net()).verdict == "agree"


class TwoHeads(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(6, 4), torch.nn.Linear(6, 2)

    def forward(self, x: Any) -> Any:
        return self.a(x), self.b(x)


class TwoHeadsByHand:
    def __init__(self) -> None:
        self.Wa, self.ba = np.ones((6, 4), np.float32), np.zeros(4, np.float32)
        self.Wb, self.bb = np.ones((6, 2), np.float32), np.zeros(2, np.float32)

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.Wa + self.ba, x @ self.Wb + self.bb

    def backward(self, da: Any, db: Any) -> Any:
        self.dWa, self.dba = self.x.T @ da, da.sum(0)
        self.dWb, self.dbb = self.x.T @ db, db.sum(0)
        return da @ self.Wa.T + db @ self.Wb.T


HEADS = {"output": "cross_entropy", "output:1": "0.3 * mse"}
HEADS_TARGETS = {"output": LABELS, "output:1": "float32[7,2]"}


def heads(loss: Any, targets: Any = HEADS_TARGETS) -> Any:
    torch.manual_seed(0)
    return crosscheck.check(TwoHeads(), TwoHeadsByHand(), X, loss=loss, targets=targets)


def test_a_loss_for_each_output() -> None:
    report = heads(HEADS)
    assert report.verdict == "agree", str(report)
    gradients = [
        s.reference for s in report.sites if s.phase == "backward" and "loss" in s.reference
    ]
    assert gradients == ["loss", "loss:1"]


def test_channels_last_against_channels_first() -> None:
    keras = pytest.importorskip("keras")
    candidate = keras.Sequential([keras.layers.Conv2D(4, 3, padding="same")])
    candidate.build((None, 6, 5, 3))
    torch.manual_seed(0)
    labels = np.arange(60).reshape(2, 6, 5) % 4
    report = crosscheck.check(
        torch.nn.Conv2d(3, 4, 3, padding=1),
        candidate,
        "float32[2,3,6,5]",
        candidate_inputs=lambda x: {"x": x["x"].transpose(0, 2, 3, 1)},
        loss="cross_entropy",
        targets=labels,
    )
    assert report.verdict == "agree", str(report)


def test_loss_objects_of_the_frameworks() -> None:
    keras = pytest.importorskip("keras")
    own = Own(
        reference=torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.0, 1.0, 1.0])),
        candidate=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    report = check(own, LABELS, keras_net())
    assert report.verdict == "agree", str(report)
    assert {s.reference for s in report.sites if s.phase == "loss"} == {"loss"}


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


def test_a_term_of_a_weighted_sum() -> None:
    def forgets_the_factor(o: Any, t: Any) -> Any:
        import crosscheck.losses.definitions as d

        one, two = d.cross_entropy(o["output"], t["output"]), d.mse(o["output:1"], t["output:1"])
        return one.value + two.value, {"output": one.gradients[0], "output:1": two.gradients[0]}

    def reference(o: Any, t: Any) -> Any:
        first = F.cross_entropy(o["output"], t["output"])
        return first + 0.3 * F.mse_loss(o["output:1"], t["output:1"])

    report = heads(Own(reference, forgets_the_factor))
    assert divergences(report) == [("loss", "loss"), ("backward", "loss")]
    assert [d.site for d in report.divergences] == ["loss", "loss:1"]
    assert "the gradient is scaled by 3.33333" in verified(report, "backward")


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


def test_a_model_mistake_is_not_blamed_on_the_loss() -> None:
    net = Net()
    original = net.forward
    net.forward = lambda x: np.float32(1.01) * original(x)  # type: ignore[method-assign]
    report = check("cross_entropy", LABELS, net)
    assert "loss" not in {d.candidate for d in report.divergences}
    (value,) = [s for s in report.sites if s.phase == "loss"]
    assert value.verdict == "agree" and value.free_ratio is not None and value.free_ratio > 32


def test_the_command_line(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from crosscheck.cli import main

    file = tmp_path / "nets.py"
    file.write_text("from tests.losses.kit import Net, torch_net\n")
    args = ["run", "--reference", f"{file}:torch_net", "--candidate", f"{file}:Net"]
    args += ["--input", f"x={X}", "--loss", "cross_entropy", "--targets", LABELS, "--json", "-"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    assert '"phase": "loss"' in result.output


def test_a_pair_whose_targets_depend_on_the_seed() -> None:
    pair = crosscheck.Pair(
        torch_net,
        Net,
        X,
        loss="cross_entropy",
        targets=lambda seed: np.random.default_rng(seed).integers(0, 4, 7),
    )
    assert pair.check(seed=3).verdict == "agree"
    assert pair.check(seed=4).verdict == "agree"
