"""For every check a mistake that it finds, and that no other check speaks of unless said so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crosscheck.auditing.registry import CHECKS

from .faults import (
    AlwaysDrops,
    Attention,
    Deep,
    Detached,
    HardlyLooks,
    Limited,
    MixesTheBatch,
    NeverDrops,
    NotConnected,
    OwnGenerator,
    RootOfNothing,
    RunningStatistics,
    SingleLogit,
    SoftmaxOfOne,
    Squeezed,
    Unscaled,
    WrongGradient,
    constant,
    too_sure,
    with_dead_units,
)
from .kit import BATCH, Net, X, Y, audit, finding, speaking

FIRST_FOUR_ALIKE = np.concatenate([Y[Y == 0][:4], np.sort(Y)[::-1][: BATCH - 4]])
NO_LOSS = {"loss": None, "y": None}
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 7))


@dataclass
class Fault:
    """A model with a mistake, what the audit is given, and which checks may speak as well."""

    model: Callable[[], Any]
    given: dict[str, Any] = field(default_factory=dict)
    says: str = ""
    also: tuple[str, ...] = ()


def clamped(outputs: Any, targets: Any) -> Any:
    return F.cross_entropy(outputs, targets).clamp(max=4.0)


def over_the_root(outputs: Any, targets: Any) -> Any:
    return F.cross_entropy(outputs, targets, reduction="sum") / len(targets) ** 0.5


FAULTS: dict[str, Fault] = {
    "variables_train": Fault(NotConnected, says="no gradient arrives at `second.weight`"),
    "loss_depends_on_the_model": Fault(
        SingleLogit,
        {"y": np.zeros(BATCH, int)},
        "always zero",
        also=("variables_train", "labels_look_right"),  # nothing has a gradient; one label
    ),
    "initial_loss": Fault(too_sure, says="too sure"),
    "gradient_is_clipped_not_the_loss": Fault(Net, {"loss": clamped}, "clipped"),
    "overfits_a_few_examples": Fault(Limited, says="nothing is learnt"),
    "inputs_matter": Fault(HardlyLooks, {"y": FIRST_FOUR_ALIKE}, "does not use its input"),
    "accumulation_equals_the_large_batch": Fault(
        Net, {"loss": over_the_root}, "neither the mean nor the sum"
    ),
    # With a loss, parts of the batch would drop other elements, and add up otherwise.
    "eval_is_repeatable": Fault(lambda: Net(drop=AlwaysDrops(0.2)), NO_LOSS, "left on"),
    "dropout_is_on_in_training": Fault(lambda: Net(drop=NeverDrops(0.2)), says="switched off"),
    "batchnorm_uses_the_batch_in_training": Fault(
        lambda: Net(norm=RunningStatistics(8)), says="inference mode while training"
    ),
    "runs_are_deterministic": Fault(OwnGenerator, says="two runs of the same seed"),
    "values_are_finite": Fault(RootOfNothing, says="`input:x` is the first to hold NaN"),
    "outputs_are_in_range": Fault(Net, {"output_range": (0, 1)}, "outside 0 to 1"),
    "output_depends_on_input": Fault(
        lambda: SoftmaxOfOne(relu=nn.Tanh()), NO_LOSS, "the same for other inputs"
    ),
    "shapes_hold": Fault(
        Squeezed,
        {"loss": "mse", "y": X[:, 0] - X[:, 1]},
        "`output` is [] for one example of [16]",
    ),
    "examples_are_independent": Fault(MixesTheBatch, NO_LOSS, "mixes the batch"),
    "positions_are_causal": Fault(
        lambda: Attention(causal=False),
        {"x": TOKENS, "y": TOKENS % 5, "causal": True},
        "sees the future",
    ),
    "gradients_match_differences": Fault(WrongGradient, says="`head.weight` is not the derivative"),
    "updates_are_of_a_sane_size": Fault(Net, {"optimizer": "sgd(lr=1000)"}, "1e-3 is usual"),
    "gradients_neither_vanish_nor_explode": Fault(Deep, NO_LOSS, "vanish"),
    "units_are_alive": Fault(with_dead_units, says="62% of the units of `relu`"),
    "weights_are_initialised": Fault(
        constant, {"loss": "mse", "y": X[:, :3]}, "every element of `head.weight`"
    ),
    "inputs_are_normalised": Fault(Unscaled, {"x": X * 100 + 50}, "is it normalised"),
    "labels_look_right": Fault(Net, {"y": np.full(BATCH, 2)}, "every target is 2"),
}


@pytest.mark.parametrize("check", FAULTS)
def test_only_this_check_finds_it(check: str) -> None:
    fault = FAULTS[check]
    report = audit(fault.model(), **fault.given)
    found = finding(report, check)
    assert found.failed, f"{found}\n{report}"
    assert fault.says in found.statement
    assert set(speaking(report)) == {check, *fault.also}, report
    assert not report.errors


def test_a_detached_layer_has_no_derivative_either() -> None:
    report = audit(Detached())
    assert speaking(report) == {"variables_train": "wrong", "gradients_match_differences": "wrong"}
    assert "no gradient arrives at `first.weight`" in finding(report, "variables_train").statement


def step_of(model: Any, parameters: Any, *, eval_: bool = False) -> Callable[[], None]:
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    x, y = torch.tensor(X), torch.tensor(Y)

    def step() -> None:
        model.train(not eval_)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def test_a_frozen_layer_that_the_step_changes() -> None:
    net = Net()
    report = audit(net, step=step_of(net, net.parameters()), frozen=["first.*"])
    assert speaking(report) == {"only_these_train": "wrong"}
    told = finding(report, "only_these_train").statement
    assert told.startswith("`first.weight` shall not train, but the training step changed it")


def test_a_layer_that_the_optimizer_was_not_given() -> None:
    net = Net()
    some = [*net.first.parameters(), *net.norm.parameters()]
    report = audit(net, step=step_of(net, some))
    assert speaking(report) == {"variables_train": "wrong"}
    assert "was it given to the optimizer" in finding(report, "variables_train").statement


def test_a_step_in_eval_mode() -> None:
    net = Net()
    report = audit(net, step=step_of(net, net.parameters(), eval_=True))
    assert speaking(report) == {"batchnorm_uses_the_batch_in_training": "wrong"}
    assert "in your training step" in str(report)


def test_a_square_input_is_a_note() -> None:
    net = Net()
    report = audit(net, X[:6], y=Y[:6])
    found = finding(report, "shapes_are_asymmetric")
    assert (found.failed, found.severity) == (True, "note") and not speaking(report)


def test_every_check_has_a_fault() -> None:
    elsewhere = {"only_these_train", "shapes_are_asymmetric"}
    assert set(FAULTS) | elsewhere == set(CHECKS)
