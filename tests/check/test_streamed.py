"""``effort="quick"`` compares cotangents and gradients as they arrive and keeps little: what it
sees is what the model produced, and what it says is what it would say of values that were all kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import crosscheck
from crosscheck import compare
from crosscheck.adapters import adapt
from crosscheck.adapters.torch import adapter as torch_adapter
from crosscheck.errors import SideFailed
from crosscheck.judging import streamed
from crosscheck.judging.streamed import Streamed
from crosscheck.run import Runner

from .torch_models import copied

X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


class Net(nn.Module):
    """Two layers and a residual; subclasses write to what they have shown."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)
        self.third = nn.Linear(6, 3)
        self.register_buffer("room", torch.zeros(4, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.first(x))
        return self.third(self.second(y) + y)


class InPlaceReLU(Net):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)


class InPlaceFunction(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu_(self.first(x))
        return self.third(self.second(y) + y)


class InPlaceAdd(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.first(x))
        z = self.second(y)
        z += y
        return self.third(z)


class ThroughViews(Net):
    """Adds to two halves of what a layer returned."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.first(x))
        z = self.second(y)
        z[:2] += y[:2]
        z.view(-1)[12:] += y.view(-1)[12:]
        return self.third(z)


class Reusing(Net):
    """Keeps what it computes in a buffer of its own, and fills it anew behind autograd's back."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.first(x))
        z = self.second(y) + y
        self.room.copy_(z.detach())
        out = self.third(z)
        self.room.zero_()
        return out


class Scribbling(Net):
    """Writes to a value under ``no_grad``, as an optimizer does to parameters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.first(x))
        z = self.second(y)
        w = z + y
        with torch.no_grad():
            z.data.mul_(0.0)
            z.add_(1.0)
        return self.third(w)


class Twice(Net):
    """Calls a layer twice: its gradients are sums."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.first(x))
        return self.third(self.second(self.second(y)) + y)


WRITING = [InPlaceReLU, InPlaceFunction, InPlaceAdd, ThroughViews, Reusing, Scribbling]


def net(kind: type[Net] = Net) -> Net:
    torch.manual_seed(0)
    return kind().eval()


@pytest.fixture(params=["streamed", "dropped"])
def sparing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Nothing is too small to be let go."""
    monkeypatch.setattr(streamed, "SMALL", 0)
    if request.param == "dropped":
        monkeypatch.setattr(streamed, "LARGE", 0)
    return str(request.param)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Streamed]:
    """Every `Streamed` that is made."""
    found: list[Streamed] = []
    original = Streamed.__init__

    def init(self: Streamed, *args: Any, **options: Any) -> None:
        found.append(self)
        original(self, *args, **options)

    monkeypatch.setattr(Streamed, "__init__", init)
    return found


def quick(candidate: nn.Module, **options: Any) -> Any:
    return crosscheck.check(net(), candidate, X, effort="quick", **options)


@pytest.fixture(scope="module")
def of_kept_values() -> dict[type[Net], Any]:
    """The reports where every value is copied and compared at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Streamed, "keeps", lambda self, kind, value: True)
        patch.setattr(Streamed, "takes_gradient", lambda self, name, value: False)
        patch.setattr(torch_adapter.TorchAdapter, "capabilities", _copying())
        return {kind: quick(net(kind)) for kind in (Net, *WRITING)}


def _copying() -> Any:
    from dataclasses import replace

    return replace(torch_adapter.TorchAdapter.capabilities, lends=False)


@pytest.mark.parametrize("kind", [Net, *WRITING])
def test_the_report_is_that_of_values_that_were_all_copied(
    kind: type[Net], sparing: str, of_kept_values: dict[type[Net], Any]
) -> None:
    report, truth = quick(net(kind)), of_kept_values[kind]
    assert report.verdict == truth.verdict == "agree"
    assert report.environment["effort"] == "quick"
    assert report.sites == truth.sites
    assert any(site.phase == "backward" for site in report.sites)


def test_no_cotangent_stays(made: list[Streamed], sparing: str) -> None:
    quick(net())
    (one,) = made
    kinds = {kind for kind, _ in one.values}
    assert "cotangent" not in kinds
    assert {item.kind for item in one.looked} >= {"cotangent"}
    if sparing == "dropped":
        assert set(one.values) == {("activation", "input:x"), ("activation", "output")}
        assert set(one.dropped) > set(one.values)
    else:
        assert "input" in kinds


def test_no_gradient_stays(made: list[Streamed], sparing: str) -> None:
    candidate = net()
    report = quick(candidate)
    (one,) = made
    held = dict(candidate.named_parameters())
    assert one.gradients == {name: tuple(p.shape) for name, p in held.items()}
    seen = {item.candidate for item in one.looked if item.phase == "parameter_gradient"}
    assert seen == set(held) == {s.candidate for s in report.sites if s.phase == "weights"}
    assert not any(p._backward_hooks for p in held.values())
    assert all(p.grad is None for p in held.values())


def test_gradients_that_add_up_are_compared_once_and_as_a_whole(
    made: list[Streamed], sparing: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Streamed, "takes_gradient", lambda self, name, value: False)
        kept = crosscheck.check(net(Twice), net(Twice), X, effort="quick")
    report = crosscheck.check(net(Twice), net(Twice), X, effort="quick")
    assert report.verdict == "agree" and report.environment["effort"] == "quick"
    assert report.sites == kept.sites
    assert "second.weight" in made[-1].gradients and not made[0].gradients


def test_small_values_wait_for_each_other(
    made: list[Streamed], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = streamed.compare_two

    def counted(groups: Any) -> Any:
        calls.append(len(groups))
        return original(groups)

    monkeypatch.setattr(streamed, "compare_two", counted)
    report = quick(net())
    assert len(calls) == 1
    assert calls[0] == sum(site.phase != "weights" for site in report.sites)


def wrong_vjp(model: Net) -> None:
    def send(module: Any, args: Any, y: torch.Tensor) -> torch.Tensor:
        return y.detach() + 2.0 * (y - y.detach())

    model.second.register_forward_hook(send)


def scaled(model: Net) -> None:
    model.second.register_forward_hook(lambda m, args, y: 1.001 * y)


def wrong_gradient(model: Net) -> None:
    model.second.weight.register_hook(lambda gradient: 1.001 * gradient)


@pytest.mark.parametrize("defect", [wrong_vjp, scaled, wrong_gradient])
def test_what_was_let_go_comes_back_for_the_thorough_check(
    defect: Callable[[Net], None], sparing: str
) -> None:
    candidate = net()
    defect(candidate)
    report = quick(candidate)
    thorough = crosscheck.check(net(), candidate, X)
    assert report.verdict == "diverge"
    assert report.first_divergence == thorough.first_divergence
    assert report.sites == thorough.sites


def test_a_failing_backward_pass_still_says_what_agreed(sparing: str) -> None:
    def breaks(d: torch.Tensor) -> None:
        raise RuntimeError("no backward today")

    candidate = net()
    candidate.first.register_forward_hook(lambda m, args, y: copied(y, breaks))
    with pytest.raises(SideFailed, match="no backward today") as failed:
        quick(candidate)
    assert {"first", "second", "third"} <= {site.reference for site in failed.value.compared}


def test_a_tolerance_holds_for_what_is_let_go(sparing: str) -> None:
    candidate = net()
    scaled(candidate)
    wide = crosscheck.Tolerance(rtol=0.1, atol=0.1)
    assert quick(candidate, tolerance=wide).verdict == "agree"
    narrow = crosscheck.Tolerance(rtol=1e-6, atol=1e-9)
    assert quick(candidate, tolerance=narrow).verdict == "diverge"


# -- weights ---------------------------------------------------------------------------------------


def test_loading_copies_no_array(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    values = {p.name: np.array(p.value) + 1.0 for p in adapt(net()).parameters()}
    monkeypatch.setattr("crosscheck.adapters.torch.taps.from_host", None)
    adapt(model).load(values)
    for parameter in adapt(model).parameters():
        np.testing.assert_array_equal(parameter.value, values[parameter.name])
    model.first.weight.data.zero_()
    assert values["first.weight"].any()


def test_weights_that_pytorch_cannot_share_are_copied() -> None:
    model = net()
    frozen = np.full((6, 6), 2.0, np.float32)
    frozen.flags.writeable = False
    turned = np.arange(6, dtype=np.float32)[::-1]
    adapt(model).load({"first.weight": frozen, "first.bias": turned})
    np.testing.assert_array_equal(model.first.weight.detach().numpy(), frozen)
    np.testing.assert_array_equal(model.first.bias.detach().numpy(), turned)


def test_weights_are_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once to see that they were loaded, once to see that they still are what they were."""
    seen: list[int] = []
    original = compare.group_rows

    def counted(groups: Any, *rest: Any) -> Any:
        seen.append(sum(arrays[0].size for arrays in groups))
        return original(groups, *rest)

    monkeypatch.setattr(compare, "group_rows", counted)
    crosscheck.check(net(), net(), X, effort="quick", gradients=False)
    size = sum(p.numel() for p in net().parameters())
    assert seen.count(size) == 2


def test_recorded_buffers_are_described_in_train_mode_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []
    original = torch_adapter.TorchAdapter.parameters
    monkeypatch.setattr(
        torch_adapter.TorchAdapter, "parameters", lambda self: asked.append(True) or original(self)
    )
    runner = Runner("model", adapt(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))), {"x": X})
    assert not runner.record().info.buffers
    assert not asked
    runner.train = True
    assert set(runner.record().info.buffers) == {"1.running_mean", "1.running_var"}
