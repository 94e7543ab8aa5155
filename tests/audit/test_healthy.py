"""Healthy models on which the whole audit has nothing to say, in PyTorch and NumPy. Those of Keras
and Flax are in `test_every_framework`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from crosscheck.auditing.registry import CHECKS
from models.scratch import BatchNorm2d, Conv2d, Layer, Linear, ReLU

from .faults import Attention
from .kit import CLASSES, FEATURES, Net, X, Y, audit, finding, speaking

IMAGES = np.random.default_rng(0).standard_normal((12, 2, 5, 4)).astype(np.float32)
KINDS = (IMAGES.mean(axis=(2, 3)) @ [[1, -1, 0], [0, 1, -1]]).argmax(axis=1)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 7))


def silent(report: Any) -> None:
    assert not speaking(report), report
    assert not report.errors, report
    assert report.verdict == "healthy"


def test_torch_with_its_own_step() -> None:
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)

    def step() -> None:
        net.train()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(torch.tensor(X)), torch.tensor(Y)).backward()
        optimizer.step()

    report = audit(net, step=step, optimizer="adam(lr=0.001)", output_range=(-9, 9), parameters=99)
    silent(report)
    skipped = {f.check for f in report.findings if f.status == "skipped"}
    assert skipped == {"positions_are_causal", "only_these_train"}


def test_a_causal_transformer() -> None:
    report = audit(Attention(causal=True), TOKENS, y=TOKENS % 5, causal=True)
    silent(report)
    assert finding(report, "positions_are_causal").status == "pass"


def test_without_a_loss() -> None:
    report = audit(Net(), loss=None, y=None)
    silent(report)
    assert finding(report, "initial_loss").statement == "no loss= is given"
    assert finding(report, "variables_train").status == "pass"


class Convolutional(Layer):
    """Convolution, BatchNorm, ReLU and a linear layer over all that is left."""

    def __init__(self, **parts: Layer) -> None:
        super().__init__()
        rng = np.random.default_rng(1)
        self.conv = Conv2d(2, 6, 3, rng, padding=1)
        self.norm = BatchNorm2d(6)
        self.relu = ReLU()
        self.head = Linear(6 * 20, 3, rng)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Any) -> Any:
        hidden = self.relu.forward(self.norm.forward(self.conv.forward(x)))  # (B, 6, 5, 4)
        self._shape = hidden.shape
        return self.head.forward(hidden.reshape(len(x), -1))

    def backward(self, dy: Any) -> Any:
        hidden = self.head.backward(dy).reshape(self._shape)
        return self.conv.backward(self.norm.backward(self.relu.backward(hidden)))


def test_numpy() -> None:
    report = audit(Convolutional(), IMAGES, y=KINDS, optimizer="sgd(lr=0.01)")
    silent(report)
    assert finding(report, "batchnorm_uses_the_batch_in_training").status == "pass"


class ZeroHead(Net):
    """The last layer starts at zero, as value heads and residual branches do."""

    def __init__(self) -> None:
        super().__init__()
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)


class LowRank(torch.nn.Module):
    """A frozen layer with an adapter of rank 2, whose second factor starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = torch.nn.Linear(FEATURES, CLASSES).requires_grad_(False)
        self.down = torch.nn.Linear(FEATURES, 2, bias=False)
        self.up = torch.nn.Linear(2, CLASSES, bias=False)
        torch.nn.init.zeros_(self.up.weight)

    def forward(self, x: Any) -> Any:
        return self.frozen(x) + self.up(self.down(x))


@pytest.mark.parametrize("build", [ZeroHead, LowRank])
def test_what_starts_at_zero_is_a_note(build: Callable[[], Any]) -> None:
    report = audit(build(), only=["variables_train", "weights_are_initialised"])
    assert report.verdict == "healthy", report
    found = finding(report, "variables_train")
    assert (found.failed, found.severity) == (True, "note")
    assert "what it feeds starts at zero" in found.statement


def test_every_check_was_made_on_something_healthy() -> None:
    assert len(CHECKS) == 26
