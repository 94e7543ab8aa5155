"""Each named loss: the definition against its own derivative, and every framework against it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crosscheck.losses import NAMES, parse
from crosscheck.losses.evaluate import LossValue, evaluate
from crosscheck.losses.sides import SideLoss, wide
from crosscheck.losses.targets import Resolved, resolve

RNG = np.random.default_rng(0)
W5 = "[0.5, 2.0, 1.0, 0.25, 3.0]"


def normal(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def labels(*shape: int, ignored: int | None = None, classes: int = 5) -> Any:
    drawn = RNG.integers(0, classes, shape)
    if ignored is not None:
        drawn.reshape(-1)[1::3] = ignored
    return drawn


def softmax(logits: Any) -> Any:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logs(*shape: int) -> Any:
    return np.log(softmax(normal(*shape)))


ROWS = RNG.uniform(0, 1, (7, 5)).astype(np.float32)
CTC = {
    "labels": np.array([[1, 1, 2, 4], [3, 2, 0, 0], [4, 1, 3, 0]]),
    "lengths": np.array([4, 2, 3]),
    "steps": np.array([9, 8, 9]),
}
CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "plain": ("cross_entropy", {"output": normal(7, 5)}, labels(7)),
    "smoothed": ("cross_entropy(label_smoothing=0.1)", {"output": normal(7, 5)}, labels(7)),
    "weighted": (
        f"cross_entropy(weight={W5}, label_smoothing=0.2)",
        {"output": normal(7, 5)},
        labels(7),
    ),
    "weights only": (f"cross_entropy(weight={W5})", {"output": normal(7, 5)}, labels(7)),
    "ignoring": (
        f"cross_entropy(weight={W5}, label_smoothing=0.2)",
        {"output": normal(3, 4, 5)},
        labels(3, 4, ignored=-100),
    ),
    "ignoring a class": (
        "cross_entropy(ignore_index=0)",
        {"output": normal(3, 4, 5)},
        labels(3, 4, ignored=0),
    ),
    "sum": ("cross_entropy(reduction=sum)", {"output": normal(7, 5)}, labels(7)),
    "images": ("cross_entropy", {"output": normal(2, 5, 3, 4)}, labels(2, 3, 4)),
    "images, last": ("cross_entropy", {"output": normal(2, 3, 4, 5)}, labels(2, 3, 4)),
    "dense": (
        f"cross_entropy(label_smoothing=0.1, axis=-1, weight={W5})",
        {"output": normal(7, 5)},
        softmax(normal(7, 5)),
    ),
    "dense, plain": ("cross_entropy", {"output": normal(7, 5)}, softmax(normal(7, 5))),
    "nll": (f"nll(weight={W5}, ignore_index=2)", {"output": logs(7, 5)}, labels(7, ignored=2)),
    "nll sum": ("nll(reduction=sum)", {"output": logs(7, 5)}, labels(7)),
    "mse": ("mse", {"output": normal(7, 5)}, normal(7, 5)),
    "mse of a vector": ("mse(reduction=batchmean)", {"output": normal(7)}, normal(7)),
    "mae": ("mae(reduction=batchmean)", {"output": normal(7, 3, 2)}, normal(7, 3, 2)),
    "huber": ("huber(delta=0.7)", {"output": normal(7, 5)}, normal(7, 5)),
    "huber sum": ("huber(delta=0.7, reduction=sum)", {"output": normal(7, 5)}, normal(7, 5)),
    "smooth_l1": ("smooth_l1(beta=0.3)", {"output": normal(7, 5)}, normal(7, 5)),
    "smooth_l1, 0": ("smooth_l1(beta=0)", {"output": normal(7, 5)}, normal(7, 5)),
    "bce": ("bce_with_logits", {"output": normal(7, 5)}, ROWS),
    "pos_weight": (f"bce_with_logits(pos_weight={W5})", {"output": normal(7, 5)}, ROWS),
    "pos_weight sum": (
        "bce_with_logits(pos_weight=3, reduction=sum)",
        {"output": normal(7, 5)},
        ROWS,
    ),
    "kl": ("kl_div", {"output": logs(7, 5)}, softmax(normal(7, 5))),
    "kl mean": ("kl_div(reduction=mean)", {"output": logs(7, 5)}, softmax(normal(7, 5))),
    "kl log": (
        "kl_div(log_target=True, reduction=sum)",
        {"output": logs(7, 5)},
        logs(7, 5),
    ),
    "ctc": ("ctc", {"output": normal(3, 9, 5)}, CTC),
    "ctc sum, time first": ("ctc(reduction=sum)", {"output": normal(9, 3, 5)}, CTC),
    "gaussian_kl": ("gaussian_kl", {"output": normal(7, 3), "output:1": normal(7, 3)}, None),
    "vae": (
        "vae(beta=0.5)",
        {"output": normal(7, 5), "output:1": normal(7, 3), "output:2": normal(7, 3)},
        ROWS,
    ),
}


class Side:
    """All that a loss wants of an adapter."""

    device = "cpu"

    def __init__(self, framework: str) -> None:
        self.framework = framework


def case(name: str) -> tuple[tuple[Resolved, ...], dict[str, Any]]:
    text, outputs, targets = CASES[name]
    return resolve(parse(text), outputs, targets, classes_at=1), outputs


def at(framework: str, name: str, *, float64: bool) -> LossValue:
    terms, outputs = case(name)
    side = SideLoss("candidate", Side(framework))  # type: ignore[arg-type]
    return side.value(terms, wide(outputs) if float64 else outputs, float64=float64)


def same(found: LossValue, truth: LossValue, rtol: float) -> None:
    np.testing.assert_allclose(found.value, truth.value, rtol=rtol)
    for site, gradient in truth.gradients.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(found.gradients[site], gradient, rtol=rtol, atol=rtol * scale)


def test_every_name_has_a_case() -> None:
    assert {text.partition("(")[0] for text, _, _ in CASES.values()} == set(NAMES)


@pytest.mark.parametrize("name", CASES)
def test_a_definition_is_its_own_derivative(name: str) -> None:
    terms, outputs = case(name)
    outputs = wide(outputs)
    found = evaluate(terms, outputs)
    for site, gradient in found.gradients.items():
        direction = RNG.normal(size=gradient.shape)
        h = 1e-6
        ends = [evaluate(terms, {**outputs, site: outputs[site] + s * h * direction}).value
                for s in (1, -1)]  # fmt: skip
        slope = (ends[0] - ends[1]) / (2 * h)
        assert slope == pytest.approx(np.sum(gradient * direction), rel=1e-6, abs=1e-8)


# JAX compiles every operation: one case of a kind.
ON_JAX = ("weighted", "ignoring", "dense, plain", "nll", "huber", "smooth_l1", "pos_weight")
ON_JAX += ("kl mean", "vae", "mse", "mae")
WHERE = [(f, n) for f in ("torch", "keras", "tensorflow", "numpy") for n in CASES]
WHERE += [("jax", name) for name in ON_JAX]
SLOW = [pytest.param("jax", "ctc", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("framework", "name"), [*WHERE, *SLOW])
def test_a_framework_computes_what_is_defined(framework: str, name: str) -> None:
    if framework != "numpy":
        pytest.importorskip(framework)
    terms, outputs = case(name)
    truth = evaluate(terms, wide(outputs))
    narrow = at(framework, name, float64=False)
    same(narrow, truth, 2e-5)
    assert narrow.value.dtype == np.float32
    assert {g.dtype.name for g in narrow.gradients.values()} == {"float32"}


@pytest.mark.parametrize("framework", ["torch", "keras", "tensorflow", "numpy"])
@pytest.mark.parametrize("name", ["weighted", "nll", "huber", "pos_weight", "kl", "vae"])
def test_in_float64_too(framework: str, name: str) -> None:
    if framework != "numpy":
        pytest.importorskip(framework)
    terms, outputs = case(name)
    same(at(framework, name, float64=True), evaluate(terms, wide(outputs)), 1e-9)


def test_the_definitions_keep_the_dtype() -> None:
    for name in CASES:
        terms, outputs = case(name)
        found = evaluate(terms, outputs)
        assert found.value.dtype == np.float32, name
        assert {g.dtype.name for g in found.gradients.values()} == {"float32"}, name
