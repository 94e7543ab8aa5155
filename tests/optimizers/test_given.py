"""Optimizers of the caller's own: used as copies, on either side, in every form."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import crosscheck
from crosscheck import CannotCompare, InvalidArgument, Report, SideFailed, adapt
from crosscheck.training.layout import Layout
from crosscheck.weights import match_parameters
from tests.check.numpy_models import ForwardOnly, Stack
from tests.check.test_left_as_found import of_numpy, of_process, of_torch, same
from tests.check.torch_models import Mlp, Normed

from . import wrong

X = "float32[6,6]"


def run(reference: Any, candidate: Any, optimizer: Any, **options: Any) -> Report:
    return crosscheck.check(reference, candidate, X, optimizer=optimizer, **options)


def updates(report: Report) -> list[tuple[str, str, str]]:
    found = [s for s in report.sites if s.phase == "update"]
    return [(s.reference, s.candidate, s.verdict) for s in found]


def agrees(report: Report, parameters: int = 8) -> bool:
    assert report.verdict == "agree", str(report)
    assert len(updates(report)) == parameters
    return True


# -- forms -----------------------------------------------------------------------------------------


NAMES = (("W", "dW"), ("b", "db"), ("gamma", "dgamma"), ("beta", "dbeta"))


class StepOfLayers:
    """The usual one of a hand-written net: it walks the layers."""

    def __init__(self, net: Stack, lr: float) -> None:
        self.net, self.lr = net, lr

    def step(self) -> None:
        for layer in self.net.layers:
            for name, gradient in (
                ("W", "dW"),
                ("b", "db"),
                ("gamma", "dgamma"),
                ("beta", "dbeta"),
            ):
                if hasattr(layer, name):
                    value = getattr(layer, name)
                    value -= self.lr * getattr(layer, gradient)


class StepOfArrays:
    """Another usual one: it holds the arrays themselves."""

    def __init__(self, net: Stack, lr: float) -> None:
        self.lr, self.pairs = lr, []
        for layer in net.layers:
            for name, gradient in (
                ("W", "dW"),
                ("b", "db"),
                ("gamma", "dgamma"),
                ("beta", "dbeta"),
            ):
                if hasattr(layer, name):
                    self.pairs.append(
                        (getattr(layer, name), functools.partial(getattr, layer, gradient))
                    )

    def step(self) -> None:
        for value, gradient in self.pairs:
            value -= self.lr * gradient()


def used(net: Stack) -> Stack:
    net.forward(np.ones((2, 6), np.float32))
    net.backward(np.ones((2, 3), np.float32))
    return net


@pytest.mark.parametrize("kind", [StepOfLayers, StepOfArrays])
def test_an_optimizer_that_is_bound_to_a_numpy_net(kind: Any) -> None:
    net = used(Stack())
    assert agrees(run(Mlp(), net, ("sgd(0.1)", kind(net, 0.1))))
    before = of_numpy(net)
    report = run(Mlp(), net, ("sgd(0.1)", kind(net, 0.2)))
    assert of_numpy(net) == before
    (cause, *_) = report.divergences[0].causes
    assert "2 times the reference's" in cause.statement or cause.name == "repeated"


def test_a_function_that_binds_one_to_the_net() -> None:
    assert agrees(run(Mlp(), used(Stack()), ("sgd(0.1)", lambda net: StepOfLayers(net, 0.1))))


def functional(params: dict[str, Any], grads: dict[str, Any]) -> dict[str, Any]:
    return {name: value - 0.1 * grads[name] for name, value in params.items()}


@pytest.mark.parametrize(
    "form",
    [
        wrong.Sgd([0.1]),
        lambda: wrong.Sgd([0.1]),
        functional,
        lambda params: torch.optim.SGD(params, 0.1),
        functools.partial(torch.optim.SGD, lr=0.1),
        "sgd(0.1)",
    ],
)
def test_forms(form: Any) -> None:
    model = Mlp()
    assert agrees(run(model, Mlp(), ("sgd(0.1)", form), steps=2), 16)
    assert agrees(run(model, Mlp(), {"reference": form, "candidate": "sgd(0.1)"}))


@pytest.mark.parametrize(
    "form",
    [functools.partial(torch.optim.Adam, lr=0.1), lambda params: torch.optim.Adam(params, 0.1)],
)
def test_the_rule_of_what_a_function_makes_is_known(form: Any) -> None:
    report = run(Mlp(), Mlp(), (form, "adam(lr=0.1, eps=1e-3)"))
    assert [c.statement for c in report.divergences[0].causes] == ["eps 0.001 instead of 1e-08"]


def test_a_function_that_raises_is_told_as_such() -> None:
    def raising(params: Any) -> Any:
        raise RuntimeError("no optimizer today")

    with pytest.raises(SideFailed, match="no optimizer today"):
        run(Mlp(), Mlp(), (raising, "adam(lr=0.1)"))


def test_a_pytorch_optimizer_and_its_scheduler_are_left_alone() -> None:
    model, other = Mlp(), Mlp()
    own = torch.optim.Adam(model.parameters(), 1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(own, 1, 0.5)
    model(torch.ones(2, 6)).sum().backward()
    own.step()
    scheduler.step()
    state, models = copy.deepcopy(own.state_dict()), [of_torch(model), of_torch(other)]
    fresh = torch.optim.Adam(other.parameters(), 1e-3)
    process = of_process()
    report = run(model, other, ((own, scheduler), fresh), steps=2, explain=False)
    assert report.verdict == "diverge"  # one has made a step, the other has not
    for now, then in zip([of_torch(model)], models, strict=False):
        same(then, now)
    same(process, of_process())
    assert str(own.state_dict()) == str(state) and own.state[model.fc1.weight]["step"] == 1
    assert scheduler.last_epoch == 1 and not fresh.state
    assert agrees(run(model, model, ((own, scheduler), (own, scheduler)), steps=2), 16)
    with pytest.raises(InvalidArgument, match="holds no parameter of the model"):
        run(model, other, ("sgd(0.1)", own))


def test_an_optimizer_that_holds_only_a_part() -> None:
    model = Mlp()
    own = torch.optim.SGD([*model.fc1.parameters(), *model.norm.parameters()], 0.1)
    report = run(Mlp(), model, ("sgd(0.1)", own))
    still = {r for r, _, verdict in updates(report) if verdict == "diverge"}
    assert still == {"fc2.weight", "fc2.bias", "head.weight", "head.bias"}
    cause = report.divergences[0].causes[0]
    assert (cause.name, cause.verified) == ("not_updated", True)


def test_groups_that_do_not_decay() -> None:
    model = Mlp()
    spared = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": spared, "weight_decay": 0.0},
    ]
    own = torch.optim.AdamW(groups, 1e-3, weight_decay=0.5)
    report = run(model, Stack(), (own, wrong.Adam(decay=0.5)))
    assert {d.reference for d in report.divergences} == {
        "fc1.bias", "fc2.bias", "head.bias", "norm.bias", "norm.weight"
    }  # fmt: skip
    assert report.divergences[0].causes[0].name == "decay_excluded"


def test_a_tolerance() -> None:
    given = ("sgd(0.1)", wrong.Sgd([0.1001]))
    loose = crosscheck.Tolerance(rtol=1e-2, atol=1e-2)
    assert agrees(run(Mlp(), Stack(), given, tolerance=loose))
    tight = crosscheck.Tolerance(rtol=1e-7, atol=1e-7)
    report = run(Mlp(), Stack(), given, tolerance=tight, explain=False)
    assert "update" in {d.phase for d in report.divergences}


def test_what_a_candidate_without_gradients_trains() -> None:
    theirs = [replace(p, trainable=False) for p in adapt(Stack()).parameters()]
    match = match_parameters(adapt(Mlp()).parameters(), theirs)
    assert len(Layout.of(match, knows_frozen=False).trained()) == 8
    assert Layout.of(match, knows_frozen=True).trained() == []


def test_what_the_reference_holds_frozen_must_not_move() -> None:
    reference, candidate = Mlp(), Mlp()
    reference.norm.weight.requires_grad_(False)
    report = run(reference, candidate, "sgd(0.1)")
    assert [d.reference for d in report.divergences] == ["norm.weight"]
    assert report.divergences[0].phase == "update"
    candidate.norm.weight.requires_grad_(False)
    assert agrees(run(reference, candidate, "sgd(0.1)"), 7)
    report = run(reference, Stack(), "sgd(0.1)")
    assert agrees(report, 7)
    assert any("frozen in the reference" in line for line in report.coverage.not_compared)


def test_a_candidate_that_freezes_what_the_reference_trains() -> None:
    candidate = Mlp()
    candidate.fc2.bias.requires_grad_(False)
    report = run(Mlp(), candidate, "sgd(0.1)")
    wrong_ones = {d.reference for d in report.divergences if d.phase == "update"}
    assert wrong_ones == {"fc2.bias"}


# -- what is compared ------------------------------------------------------------------------------


def test_a_candidate_without_a_backward_pass() -> None:
    report = run(Mlp(), ForwardOnly(), ("sgd(0.1)", wrong.Sgd([0.2])))
    assert {d.phase for d in report.divergences} == {"update"} and len(report.divergences) == 8
    assert any("no backward pass" in line for line in report.coverage.not_compared)


def test_a_wrong_step_is_seen_beside_large_parameters() -> None:
    """Rounding of θ = 1000 is larger than the whole step."""
    reference = Mlp()
    with torch.no_grad():
        reference.head.bias.fill_(1000.0)
    right = run(reference, Stack(), ("adam(1e-5)", wrong.Adam(1e-5)))
    assert {v for _, _, v in updates(right)} == {"agree"}
    report = run(reference, Stack(), ("adam(1e-5)", wrong.Adam(1.001e-5)), explain=False)
    row = next(s for s in report.sites if s.phase == "update" and s.reference == "head.bias")
    assert row.verdict == "diverge" and "float64" in row.notes[0]


def test_later_steps() -> None:
    report = run(Mlp(), Stack(), "sgd(0.1, momentum=0.9)", steps=3)
    assert agrees(report, 24)
    phases = {step: {s.phase for s in report.sites if s.step == step} for step in (1, 2, 3)}
    assert phases[2] == phases[3] == {"forward", "backward", "parameter_gradient", "update"}
    assert phases[1] == phases[2] | {"weights"}
    plain = crosscheck.check(Mlp(), Stack(), X)
    first = [s for s in report.sites if s.step == 1 and s.phase != "update"]
    assert first == list(plain.sites)


def test_what_diverges_in_every_step_is_reported_once(tmp_path: Any) -> None:
    from crosscheck.report.json import to_dict

    net = Stack()
    net.layers[2].eps = 1e-3
    report = run(Mlp(), net, "sgd(0.1)", steps=2, explain=False)
    places = [(d.phase, d.reference) for d in report.divergences]
    assert len(places) == len(set(places)) and {d.step for d in report.divergences} == {1}
    assert any(s.verdict == "diverge" and s.step == 2 for s in report.sites)
    sites = to_dict(report)["sites"]
    assert "step" not in sites[0] and sites[-1]["step"] == 2
    report = run(Mlp(), Stack(), ("sgd(0.1)", wrong.Sgd([0.1, 0.3])), steps=2, explain=False)
    assert "after the optimizer step 2" in str(report)
    assert to_dict(report)["first_divergence"]["step"] == 2


def test_buffers_of_later_steps_follow_the_reference() -> None:
    report = run(Normed(p=0.0), Normed(p=0.0), "sgd(0.1)", steps=2, train=True)
    assert report.verdict == "agree"
    assert {(s.phase, s.step) for s in report.sites} >= {("buffer", 1), ("buffer", 2)}
    report = run(Normed(p=0.0), Normed(p=0.0, momentum=0.9), "sgd(0.1)", train=True)
    found = {(d.phase, d.reference) for d in report.divergences}
    assert found == {("buffer", "bn.running_mean"), ("buffer", "bn.running_var")}
    assert report.divergences[0].causes[0].verified  # the share of the old for that of the new


class Biased(nn.BatchNorm1d):
    """Divides by n where it should divide by n - 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            self.running_mean.lerp_(x.mean(0), self.momentum)
            self.running_var.lerp_(x.var(0, unbiased=False), self.momentum)
        return nn.functional.batch_norm(x, None, None, self.weight, self.bias, training=True)


def test_a_biased_running_variance() -> None:
    candidate = Normed(p=0.0)
    candidate.bn = Biased(5)
    report = run(Normed(p=0.0), candidate, "adam(1e-3)", train=True)
    assert [(d.phase, d.reference) for d in report.divergences] == [("buffer", "bn.running_var")]
    assert "biased" in report.divergences[0].causes[0].statement


def test_accumulation_of_padded_batches() -> None:
    """A mean over each micro-batch weighs tokens otherwise than the mean over the batch."""
    targets = np.array([0, -100, -100, 1, 2, 0])
    even = np.array([0, -100, 1, 1, -100, 0])
    loss = {"loss": "cross_entropy(ignore_index=-100)"}
    optimizer = ("sgd(0.1)", "sgd(0.1, accumulate=2)")
    report = run(Mlp(), Stack(), optimizer, targets=targets, **loss)
    assert {d.phase for d in report.divergences} == {"update"}
    cause = report.divergences[0].causes[0]
    assert (cause.name, cause.verified) == ("mean_of_means", True)
    assert agrees(run(Mlp(), Stack(), optimizer, targets=even, **loss))
    assert agrees(run(Mlp(), Stack(), optimizer))


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgd(0.1)", "gradients": False}, "needs gradients"),
        ({"optimizer": "sgd(0.1)", "steps": 0}, "steps=0: must be an integer ≥ 1"),
        ({"steps": 2}, "say which steps"),
        ({"optimizer": 0.1}, "optimizer=0.1"),
        ({"optimizer": {"theirs": "sgd"}}, "'reference' and 'candidate'"),
        ({"optimizer": ("sgd", "sgd", "sgd")}, "given 3"),
        ({"optimizer": object()}, "has no step(params, grads)"),
        ({"optimizer": "rmsprop(eps_inside=True)"}, "the reference's optimizer=rmsprop: PyTorch's"),
        ({"optimizer": "sgd(0.1, accumulate=4)"}, "accumulate=4 does not divide the batch of 6"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        crosscheck.check(Mlp(), Stack(), X, **options)
    assert message in str(error.value)


def test_a_reference_without_gradients() -> None:
    with pytest.raises(CannotCompare, match="gives no gradients"):
        run(ForwardOnly(), Stack(), "sgd(0.1)")


def test_an_optimizer_that_raises() -> None:
    class Broken:
        def step(self, params: Any, grads: Any) -> None:
            raise ZeroDivisionError("boom")

    with pytest.raises(SideFailed) as error:
        run(Mlp(), Stack(), ("sgd(0.1)", Broken()))
    assert str(error.value) == (
        "the candidate (the given Broken) raised in its optimizer's step: ZeroDivisionError: boom"
    )
