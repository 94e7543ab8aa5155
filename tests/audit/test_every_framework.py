"""For every check, in Keras, Flax and NumPy, a mistake that it alone finds; and a healthy net.

The same for PyTorch is in `test_planted`; what else is a framework's own, in `test_frameworks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import crosscheck
from crosscheck.auditing.registry import CHECKS

from .kit import BATCH, X, Y, audit, finding, speaking
from .nets import NETS, RUNNING
from .test_planted import FIRST_FOUR_ALIKE, NO_LOSS

SEQUENCES = np.random.default_rng(1).standard_normal((5, 7, 6)).astype(np.float32)
MARKS = np.arange(35).reshape(5, 7) % 3
FRAMEWORKS = [
    "numpy",
    pytest.param("keras", marks=pytest.mark.slow),
    pytest.param("jax", marks=pytest.mark.slow),
]


def logarithms(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def own_loss(framework: str, change: str) -> Callable[[Any, Any], Any]:
    """Cross-entropy that is clamped, or divided by the root of the batch's size."""
    if framework == "numpy":
        return lambda logits, labels: _by_hand(change, logits, labels)

    def loss(logits: Any, labels: Any) -> Any:
        if framework == "keras":
            import keras.ops as array
            from keras.ops import logsumexp, one_hot
        else:
            import jax.numpy as array
            from jax.nn import logsumexp, one_hot
        right = array.sum(one_hot(labels, 3, dtype=logits.dtype) * logits, axis=-1)
        each = logsumexp(logits, axis=-1) - right
        if change == "clamped":
            return array.minimum(array.mean(each), 4.0)
        return array.sum(each) / len(labels) ** 0.5

    return loss


def _by_hand(change: str, logits: Any, labels: Any) -> tuple[Any, Any]:
    n, right = len(labels), np.eye(3)[labels]
    total, slope = -(right * logarithms(logits)).sum(), np.exp(logarithms(logits)) - right
    if change == "clamped":
        value = np.minimum(total / n, 4.0)
        return value.astype(logits.dtype), (slope / n * (value < 4)).astype(logits.dtype)
    return (total / n**0.5).astype(logits.dtype), (slope / n**0.5).astype(logits.dtype)


@dataclass(frozen=True)
class Fault:
    """A net with one mistake, and what its audit is given.

    Attributes:
        change: of the net, see `nets`.
        loads: (layer, role) -> another value of that parameter.
        loss: one of the caller's own.
        says: in the statement.
        also: checks that speak of the same.
    """

    change: str = ""
    given: dict[str, Any] = field(default_factory=dict)
    loads: dict[tuple[str, str], Callable[[Any], Any]] = field(default_factory=dict)
    loss: str = ""
    says: str = ""
    also: tuple[str, ...] = ()


def _dead(bias: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(bias)) < 5, -100, bias)


FAULTS = {
    "variables_train": Fault("unused", says="no gradient arrives at `spare"),
    "only_these_train": Fault(given={"frozen": ["first*"]}, says="shall not train, but the model"),
    "loss_depends_on_the_model": Fault(
        "single logit",
        {"y": np.zeros(BATCH, int)},
        says="always zero",
        also=("variables_train", "labels_look_right"),  # nothing has a gradient; one label
    ),
    "initial_loss": Fault(loads={("head", "weight"): lambda w: 60 * w}, says="too sure"),
    "gradient_is_clipped_not_the_loss": Fault(loss="clamped", says="is the loss clipped"),
    "overfits_a_few_examples": Fault("limited", says="nothing is learnt"),
    "inputs_matter": Fault("blind", {"y": FIRST_FOUR_ALIKE}, says="does not use its input"),
    "accumulation_equals_the_large_batch": Fault(loss="over the root", says="neither the mean nor"),
    "eval_is_repeatable": Fault("always drops", NO_LOSS, says="left on"),
    "dropout_is_on_in_training": Fault("never drops", says="switched off"),
    "batchnorm_uses_the_batch_in_training": Fault(RUNNING, says="inference mode while training"),
    "runs_are_deterministic": Fault("own noise", says="two runs of the same seed"),
    "values_are_finite": Fault("root", says="`input:x` is the first to hold"),
    "outputs_are_in_range": Fault(given={"output_range": (0, 1)}, says="outside 0 to 1"),
    "output_depends_on_input": Fault("softmax of one", NO_LOSS, says="the same for other inputs"),
    "shapes_hold": Fault(
        "squeezed", {"loss": "mse", "y": X[:, 0] - X[:, 1]}, says="for one example of [16]"
    ),
    "examples_are_independent": Fault("mixing", NO_LOSS, says="mixes the batch"),
    "positions_are_causal": Fault(
        "future", {"x": SEQUENCES, "y": MARKS, "causal": True}, says="sees the future"
    ),
    "gradients_match_differences": Fault("wrong gradient", says="is not the derivative"),
    "updates_are_of_a_sane_size": Fault(given={"optimizer": "sgd(lr=1000)"}, says="1e-3 is usual"),
    "gradients_neither_vanish_nor_explode": Fault("vanishing", NO_LOSS, says="vanish"),
    "units_are_alive": Fault(
        given={"y": FIRST_FOUR_ALIKE},  # which the others cannot but learn
        loads={("norm", "bias"): _dead},
        says="62% of the units of",
    ),
    "weights_are_initialised": Fault(
        given={"loss": "mse", "y": X[:, :3]},
        loads={("head", "weight"): lambda w: np.full_like(w, 0.3)},
        says="is 0.3: its units start the same",
    ),
    "inputs_are_normalised": Fault("unscaled", {"x": X * 100 + 50}, says="is it normalised"),
    "labels_look_right": Fault(
        given={"y": np.full(BATCH, 2)},
        loads={("head", "weight"): lambda w: w / 4},  # lest it be sure of another
        says="every target is 2",
    ),
    "shapes_are_asymmetric": Fault(given={"x": X[:6], "y": Y[:6]}, says="two axes of 6"),
}
HEALTHY: dict[str, Any] = {}
MODES = {
    "variables_train",
    "eval_is_repeatable",
    "dropout_is_on_in_training",
    "batchnorm_uses_the_batch_in_training",
}


def looked_at(framework: str, check: str) -> set[str]:
    """The checks that are made: all of them in NumPy (and in PyTorch), where they cost little.

    In Keras and Flax those of modes and gradients beside the one that shall speak; that one alone
    where the mistake lies in the data, and the net is healthy.
    """
    fault = FAULTS[check]
    if framework == "numpy":
        return set(CHECKS)
    of_data = not fault.change and not fault.loads
    return {check, *fault.also} | (set() if of_data or fault.given.get("causal") else MODES)


def built(framework: str, fault: Fault) -> Any:
    """An adapter; the healthy net's is made once."""
    if fault.change or fault.loads or fault.given.get("causal"):
        return made(framework, fault)
    if framework not in HEALTHY:
        HEALTHY[framework] = made(framework, Fault())
    return HEALTHY[framework]


def made(framework: str, fault: Fault) -> Any:
    if framework != "numpy":
        pytest.importorskip(framework)
    adapter = crosscheck.adapt(NETS[framework](fault.change, fault.given.get("x", X)))
    parameters = {(p.layer, p.role): p for p in adapter.parameters()}
    adapter.load({parameters[k].name: make(parameters[k].value) for k, make in fault.loads.items()})
    return adapter


@pytest.mark.parametrize("check", FAULTS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_only_this_check_finds_it(framework: str, check: str) -> None:
    finds_it_alone(framework, check, looked_at(framework, check))


@pytest.mark.corpus
@pytest.mark.parametrize("check", FAULTS)
@pytest.mark.parametrize("framework", ["keras", "jax"])
def test_only_this_check_of_all_finds_it(framework: str, check: str) -> None:
    finds_it_alone(framework, check, set(CHECKS))


def finds_it_alone(framework: str, check: str, only: set[str]) -> None:
    fault = FAULTS[check]
    given = dict(fault.given)
    if fault.loss:
        given["loss"] = own_loss(framework, fault.loss)
    report = audit(built(framework, fault), **given, only=only)
    found = finding(report, check)
    assert found.failed, f"{found}\n{report}"
    assert fault.says in found.statement
    if check == "gradients_match_differences":
        assert "head" in found.tensor and "bias" not in found.tensor
    expected = {check, *fault.also} - ({check} if found.severity == "note" else set())
    assert set(speaking(report)) == expected, report
    assert not report.errors


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_healthy_net(framework: str) -> None:
    given = {"optimizer": "adam(lr=0.001)", "output_range": (-9, 9), "parameters": 99}
    report = audit(built(framework, Fault()), **given)
    assert report.verdict == "healthy" and not any(f.failed for f in report.findings), report
    skipped = {f.check for f in report.findings if f.status == "skipped"}
    assert skipped == {"positions_are_causal", "only_these_train"}
    sequences = {"x": SEQUENCES, "y": MARKS, "causal": True}
    causal = audit(
        built(framework, Fault(given=sequences)), **sequences, only=["positions_are_causal"]
    )
    assert finding(causal, "positions_are_causal").status == "pass"
    assert not any(f.failed for f in causal.findings), causal


def test_every_check_has_a_mistake_here() -> None:
    assert set(FAULTS) == set(CHECKS)
