"""Models whose parameters are not each other's, though the functions are: a norm folded into the
convolution before it, an adapter added to its layer, a weight kept as direction and length."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval

import crosscheck

from .kit import run
from .torch_models import randomised


class Net(nn.Module):
    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc((x + F.relu(self.bn2(self.conv2(x)))).mean((2, 3)))


class Folded(Net):
    def __init__(self, net: Net) -> None:
        super().__init__(bias=True)
        self.load_state_dict({**net.state_dict(), **self.state_dict()}, strict=False)
        self.conv1 = fuse_conv_bn_eval(net.conv1, net.bn1)
        self.conv2 = fuse_conv_bn_eval(net.conv2, net.bn2)
        self.fc = copy.deepcopy(net.fc)
        del self.bn1, self.bn2

    def forward(self, x: Any) -> Any:
        x = F.relu(self.conv1(x))
        return self.fc((x + F.relu(self.conv2(x))).mean((2, 3)))


class Adapted(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.in_features, 2, bias=False)
        self.b = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Any) -> Any:
        return self.base(x) + 2.0 * self.b(self.a(x))

    def merged(self, scale: float) -> nn.Linear:
        layer = copy.deepcopy(self.base)
        with torch.no_grad():
            layer.weight += scale * self.b.weight @ self.a.weight
        return layer


def deep(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.GELU(), nn.Linear(8, 3))


def check(reference: nn.Module, candidate: nn.Module, spec: str, **options: Any) -> Any:
    return run(reference, candidate, spec, weights="keep", **options)


def convolutional(*, bias: bool) -> Net:
    return randomised(Net(bias=bias)).eval()


IMAGE, ROWS = "float32[2,3,9,11]", "float32[5,6]"


@pytest.mark.parametrize("effort", ["quick", "thorough"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_a_folded_norm(bias: bool, turned: bool, effort: str) -> None:
    net = convolutional(bias=bias)
    pair = net, Folded(net)
    report = check(*(pair[::-1] if turned else pair), IMAGE, effort=effort)
    assert report.verdict == "agree", str(report)
    said = " ".join(report.coverage.not_compared)
    assert "`conv1.weight`, or its gradient: `bn1." in said and "`conv2.weight`" in said


@pytest.mark.parametrize("turned", [False, True])
def test_a_folded_norm_that_was_never_trained(turned: bool) -> None:
    """It changes its input by less than what values of one quantity may differ: names would go with
    the convolution alone."""
    torch.manual_seed(0)
    net = Net(bias=False).eval()
    pair = net, Folded(net)
    report = check(*(pair[::-1] if turned else pair), IMAGE)
    assert report.verdict == "agree", str(report)
    norms = {(s.reference, s.candidate)[turned] for s in report.sites if s.kind == "activation"}
    assert {"bn1", "bn2"} <= norms


def test_a_folded_norm_is_compared_at_both_ends() -> None:
    """The convolution that begins a folded one is given the same, and sends the same back."""
    net = convolutional(bias=False)
    report = check(net, Folded(net), IMAGE)
    compared = {(s.kind, s.reference, s.candidate) for s in report.sites}
    assert {
        ("input", "conv2", "conv2"),
        ("activation", "bn2", "conv2"),
        ("input_cotangent", "conv2", "conv2"),
    } <= compared
    assert not any(s.kind.startswith("input") and s.reference == "bn2" for s in report.sites)


def test_a_norm_folded_with_another_eps() -> None:
    """What the other convolution holds is still no divergence, nor what comes before it wrong."""
    net = convolutional(bias=False)
    other = copy.deepcopy(net)
    other.bn2.eps = 1e-2
    report = check(net, Folded(other), IMAGE)
    first = report.first_divergence
    assert first is not None and (first.reference, first.candidate) == ("bn2", "conv2")
    assert "`conv2` does what the reference does from `conv2` to `bn2`" in first.statement
    assert {d.candidate for d in report.divergences} == {"conv2"}, str(report)
    assert first.causes[0].verified and "eps 0.01" in first.causes[0].statement, str(report)


def scale(layer: nn.Conv2d) -> None:
    with torch.no_grad():
        layer.weight[3] *= 1.3


def shift(layer: nn.Conv2d) -> None:
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias[3] += 0.5


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("defect", [scale, shift])
def test_a_mistake_in_a_convolution_with_its_norm(defect: Any, turned: bool) -> None:
    """It is the layer's, whose weight is not the reference's anyway; those around are innocent."""
    net = convolutional(bias=False)
    folded = Folded(net)
    defect(folded.conv2)
    sides = (folded, net) if turned else (net, folded)
    first, *others = check(*sides, IMAGE).divergences
    assert (first.phase, {first.reference, first.candidate}) == ("forward", {"bn2", "conv2"})
    assert all(
        (d.phase, d.reference, d.candidate) == ("backward", "conv2", "conv2") for d in others
    )


def test_a_wrong_weight_beside_a_folded_norm() -> None:
    net = convolutional(bias=False)
    folded = Folded(net)
    with torch.no_grad():
        folded.fc.weight[1, 2] += 0.1
    report = check(net, folded, IMAGE)
    assert {d.reference for d in report.divergences} >= {"fc.weight"}
    assert all(str(d.reference).startswith("fc") for d in report.divergences), str(report)


@pytest.mark.parametrize("turned", [False, True])
def test_a_merged_adapter(turned: bool) -> None:
    torch.manual_seed(0)
    adapted = Adapted(nn.Linear(6, 8))
    for scale, verdict in ((2.0, "agree"), (1.0, "diverge")):
        pair = deep(adapted), deep(adapted.merged(scale))
        pair[1][-1].load_state_dict(pair[0][-1].state_dict())
        report = check(*(pair[::-1] if turned else pair), ROWS)
        assert report.verdict == verdict, str(report)
        assert all(str(d.reference).startswith("0") for d in report.divergences)


def test_a_weight_kept_as_direction_and_length() -> None:
    torch.manual_seed(0)
    reference = deep(nn.Linear(6, 8))
    candidate = copy.deepcopy(reference)
    parametrizations.weight_norm(candidate[0])
    with torch.no_grad():
        candidate[0].parametrizations.weight.original1 *= 3.0  # changes nothing
    report = check(reference, candidate, ROWS)
    assert report.verdict == "agree", str(report)
    with torch.no_grad():
        candidate[0].parametrizations.weight.original0 *= 1.001
    report = check(reference, candidate, ROWS)
    first = report.first_divergence
    assert report.verdict == "diverge" and isinstance(report, crosscheck.Report)
    assert first is not None and str(first.reference).startswith("0")
