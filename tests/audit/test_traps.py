"""What is healthy, and looks as if it were not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import crosscheck
from crosscheck import checks
from crosscheck.errors import CannotCompare

from .kit import BATCH, FEATURES, Net, X, Y, audit, finding, speaking


def only(model: Any, check: str, **given: Any) -> Any:
    return finding(audit(model, only=[check], **given), check)


def test_unused_rows_of_an_embedding() -> None:
    model = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(12, 3))
    tokens = np.random.default_rng(0).integers(0, 9, (5, 3))
    assert only(model, "variables_train", x=tokens, y=np.arange(5) % 3).status == "pass"


def test_a_bias_in_front_of_a_norm_hardly_trains() -> None:
    net = Net()
    nn.init.constant_(
        net.first.bias, 3.0
    )  # so large that its gradient, all rounding, moves nothing

    def step() -> None:
        net.train()
        net.zero_grad()
        F.cross_entropy(net(torch.tensor(X)), torch.tensor(Y)).backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad  # type: ignore[operator]

    assert only(net, "variables_train", step=step).status == "pass"


def test_a_step_that_changes_nothing_at_all() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)  # as at the start of a warm-up

    def step() -> None:
        F.cross_entropy(net(torch.tensor(X)), torch.tensor(Y)).backward()
        optimizer.step()

    with pytest.raises(AssertionError, match="changed nothing .*is its learning rate zero"):
        checks.variables_train(net, {"x": X}, "cross_entropy", Y, step=step)


def test_a_parameter_that_becomes_nan_has_not_trained() -> None:
    net = Net()

    def step() -> None:
        with torch.no_grad():
            net.head.bias.fill_(float("nan"))

    with pytest.raises(AssertionError, match="`head.bias` holds NaN or Inf after the training"):
        checks.variables_train(net, {"x": X}, "cross_entropy", Y, step=step)


def test_batchnorm_is_judged_on_independence_in_eval_mode() -> None:
    net = Net().train()
    assert only(net, "examples_are_independent").status == "pass"


def test_what_never_changes_is_not_called_independent() -> None:
    net = Net()
    nn.init.zeros_(net.head.weight)
    found = only(net, "examples_are_independent")
    assert (found.status, "independence shows nothing" in found.statement) == ("skipped", True)
    with pytest.raises(CannotCompare):
        checks.examples_are_independent(net, {"x": X})


def test_a_zero_head_makes_constant_outputs_a_note() -> None:
    net = Net()
    nn.init.zeros_(net.head.weight)
    assert only(net, "output_depends_on_input").severity == "note"


def test_frozen_norms_and_rates_of_zero() -> None:
    net = Net(drop=nn.Dropout(0.0))
    report = audit(net, only=["dropout_is_on_in_training"])
    assert report.findings[0].statement == "no dropout with a rate above 0"
    found = only(Net(), "batchnorm_uses_the_batch_in_training", frozen=["norm.*"])
    assert found.statement == "all are frozen"


def test_ties_of_relu_and_max_pooling() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 6, 3),
    )
    images = np.zeros((4, 1, 6, 4), np.float32)  # black: every window and every ReLU is a tie
    images[1:, 0, 2:4] = np.random.default_rng(0).uniform(0, 1, (3, 2, 4))
    found = only(model, "gradients_match_differences", x=images, y=np.arange(4) % 3)
    assert found.status == "pass", found.statement


def test_ignored_labels_add_up_otherwise() -> None:
    model = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 5))
    tokens = np.random.default_rng(0).integers(0, 11, (4, 7))
    labels = np.where(np.arange(7) < np.array([[7], [2], [5], [6]]), tokens % 5, -100)
    found = only(model, "accumulation_equals_the_large_batch", x=tokens, y=labels)
    assert (found.failed, found.severity) == (True, "note")
    assert "divide by that of the whole" in found.statement


def test_smoothed_labels_have_a_floor() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 3))
    loss = "cross_entropy(label_smoothing=0.3)"
    assert only(model, "overfits_a_few_examples", loss=loss).status == "pass"


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.policy, self.value = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, state: Any, mask: Any) -> Any:
        hidden = torch.tanh(self.body(state))
        return self.policy(hidden).masked_fill(mask == 0, -1e9), self.value(hidden)


def test_several_inputs_and_outputs_a_mask_and_minus_infinity() -> None:
    mask = np.ones((BATCH, 3), np.float32)
    mask[np.arange(BATCH), (Y + 1) % 3] = 0
    report = crosscheck.audit(
        TwoOutputs(),
        {"state": X, "mask": mask},
        {"output": "cross_entropy", "output:1": "0.5 * mse"},
        {"output": Y, "output:1": X[:, :1]},
        overfit_steps=60,
        overfit_lr=0.03,
        trained=True,
    )
    assert not speaking(report) and not report.errors, report


class Fixed(Net):
    """Takes batches of sixteen and no others, as an exported program may."""

    def before(self, x: Any) -> Any:
        return x.reshape(BATCH, FEATURES)


class AtLeastTwo(Net):
    def before(self, x: Any) -> Any:
        if len(x) < 2:
            raise ValueError("a pair at least")
        return x


def test_models_that_refuse_a_batch_of_one() -> None:
    assert only(Fixed(), "shapes_hold").severity == "note"
    found = only(AtLeastTwo(), "shapes_hold")
    assert (found.severity, found.statement) == (
        "suspicious",
        "a batch of one raises: a pair at least",
    )
    assert only(Fixed(), "accumulation_equals_the_large_batch").status == "skipped"
    assert only(Fixed(), "overfits_a_few_examples", overfit_steps=150).status == "pass"


class OneGraph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(FEATURES, 3)

    def forward(self, x: Any, adjacency: Any) -> Any:
        return adjacency @ self.first(x)


def test_the_nodes_of_a_graph_are_no_examples() -> None:
    ring = np.eye(BATCH, dtype=np.float32) + np.roll(np.eye(BATCH, dtype=np.float32), 1, axis=0)
    report = crosscheck.audit(
        OneGraph(),
        {"x": X, "adjacency": ring},
        only=["examples_are_independent", "shapes_hold"],
    )
    assert [f.status for f in report.findings] == ["skipped", "pass"], report
    told = checks.shapes_hold(OneGraph(), {"x": X, "adjacency": ring}, one_example=True)
    assert told.status == "pass"


def test_constant_targets_of_a_discriminator_are_a_note() -> None:
    model = nn.Linear(FEATURES, 1)
    ones = np.ones((BATCH, 1), np.float32)
    found = only(model, "labels_look_right", loss="bce_with_logits", y=ones)
    assert (found.failed, found.severity) == (True, "note")


class Forward:
    """Without a backward pass."""

    def __init__(self) -> None:
        self.W = np.random.default_rng(0).standard_normal((FEATURES, 3)).astype(np.float32)

    def forward(self, x: Any) -> Any:
        return x @ self.W


def test_a_model_without_a_backward_pass_is_audited_forward() -> None:
    report = audit(Forward())
    assert report.verdict == "healthy" and not report.errors, report
    skipped = {f.check for f in report.findings if f.status == "skipped"}
    assert {"variables_train", "gradients_match_differences", "initial_loss"} <= skipped
    assert finding(report, "examples_are_independent").status == "pass"


def test_all_frozen_is_wrong() -> None:
    net = Net().requires_grad_(False)
    with pytest.raises(AssertionError, match="no parameter trains"):
        checks.variables_train(net, {"x": X})


class NotWide(nn.Module):
    """Insists on float32 inside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(FEATURES, 3)

    def forward(self, x: Any) -> Any:
        if x.dtype != torch.float32:
            raise TypeError("float32 alone")
        return self.head(x)


def test_a_model_that_does_not_run_in_float64() -> None:
    found = only(NotWide(), "gradients_match_differences")
    told = (found.status, found.statement)
    assert told == ("skipped", "the model does not run in float64: float32 alone")


def test_units_that_are_off_by_chance() -> None:
    class Squeezed(nn.Module):
        """Five units that are given nearly the same for every example."""

        def __init__(self) -> None:
            super().__init__()
            self.spread, self.relu = nn.Linear(FEATURES, 5), nn.ReLU()
            self.head = nn.Linear(5, 3)
            with torch.no_grad():
                self.spread.weight.mul_(0.01)
                self.spread.bias.copy_(torch.tensor([0.5, -0.5, -0.4, -0.6, -0.5]))

        def forward(self, x: Any) -> Any:
            return self.head(self.relu(self.spread(x)))

    model = Squeezed()
    found = only(model, "units_are_alive")
    assert (found.failed, found.severity) == (True, "note")
    with torch.no_grad():
        model.spread.bias[1:] = -20.0  # far off: no chance
    assert only(model, "units_are_alive").severity == "suspicious"


def test_a_guess_in_log_probabilities() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 3), nn.LogSoftmax(dim=1))
    found = only(model, "initial_loss", loss="nll")
    assert found.status == "pass" and "a random guess has 1.099" in found.statement


def test_what_only_the_order_of_sums_changes_is_a_note() -> None:
    class Threads(Net):
        """Adds what another order of adding would."""

        turn = 0

        def before(self, x: Any) -> Any:
            Threads.turn += 1
            return x * (1 + 1e-7 * (Threads.turn % 2))

    found = only(Threads(), "runs_are_deterministic")
    assert (found.failed, found.severity) == (True, "note")
    assert only(Threads(), "eval_is_repeatable").status == "pass"


def test_nan_is_found_where_it_is_made_and_shows_nothing_else() -> None:
    """The examples that make NaN make it whatever the others are; no check of the loss passes."""

    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.line = nn.Linear(FEATURES, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(self.line(x))

    report = audit(Log(), optimizer="sgd(lr=0.1)")
    assert finding(report, "values_are_finite").status == "fail"
    assert finding(report, "examples_are_independent").status == "pass"
    for name in (
        "loss_depends_on_the_model",
        "initial_loss",
        "gradient_is_clipped_not_the_loss",
        "inputs_matter",
        "accumulation_equals_the_large_batch",
        "updates_are_of_a_sane_size",
    ):
        assert finding(report, name).status == "skipped", name
