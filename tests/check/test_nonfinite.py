"""NaN and Inf are facts of their own: they must match in place and sign."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import crosscheck

from .kit import agrees, forward, found, replace, run
from .numpy_models import Stack
from .torch_models import Attention, Mlp


def put(value: float, *index: int) -> Any:
    """A forward whose result holds ``value`` at ``index``."""

    def forward_with(self: Any, original: Any, x: Any) -> Any:
        result = original(x)
        if isinstance(result, torch.Tensor):
            result = result.clone()
        result[index] = value
        return result

    return forward_with


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [3, 5])
def test_on_one_side(value: float, index: int) -> None:
    net = Stack()
    replace(net.layers[index], "forward", put(value, 2, 1))
    report = run(Mlp(), net)
    ours = {3: "fc2", 5: "head"}[index]
    assert forward(report) == [(ours, f"layers.{index}")]
    first = report.first_divergence
    assert first is not None and first.metrics is not None
    assert first.ratio == np.inf
    assert first.metrics.nonfinite == first.metrics.nonfinite_mismatch == 1
    assert first.metrics.worst_index == (2, 1)
    assert "NaN or Inf" in first.statement
    assert "inf" in str(report)


def test_on_both_sides_in_the_same_place() -> None:
    model, net = Mlp(), Stack()
    replace(model.head, "forward", put(np.nan, 2, 1))
    replace(net.layers[5], "forward", put(np.nan, 2, 1))
    report = run(model, net, gradients=False)
    assert agrees(report)
    head = next(s for s in report.sites if s.phase == "forward" and s.reference == "head")
    assert head.metrics is not None
    assert (head.metrics.nonfinite, head.metrics.nonfinite_mismatch) == (1, 0)
    assert any("`output` holds NaN or Inf in the same places" in note for note in report.notes)
    assert not any("NaN" in note for note in run(Mlp(), Stack(), gradients=False).notes)


def test_in_the_middle_of_both_sides() -> None:
    """One row of NaN runs through to the output; the other rows are compared."""
    model, net = Mlp(), Stack()
    replace(model.fc2, "forward", put(np.nan, 2, 1))
    replace(net.layers[3], "forward", put(np.nan, 2, 1))
    assert agrees(run(model, net, gradients=False))
    replace(net.layers[5], "forward", lambda self, original, x: original(x) * np.float32(1.01))
    assert found(run(model, net, gradients=False)) == [("forward", "head", "layers.5")]


def test_in_different_places() -> None:
    model, net = Mlp(), Stack()
    replace(model.head, "forward", put(np.nan, 2, 1))
    replace(net.layers[5], "forward", put(np.nan, 2, 2))
    report = run(model, net, gradients=False)
    assert forward(report) == [("head", "layers.5")]
    metrics = report.divergences[0].metrics
    assert metrics is not None and metrics.nonfinite_mismatch == 2


def test_of_another_sign() -> None:
    model, net = Mlp(), Stack()
    replace(model.head, "forward", put(np.inf, 0, 0))
    replace(net.layers[5], "forward", put(-np.inf, 0, 0))
    assert forward(run(model, net, gradients=False)) == [("head", "layers.5")]


def test_nothing_finite_on_either_side() -> None:
    model, other = Mlp(), Mlp()
    for one in (model, other):
        with torch.no_grad():
            one.norm.weight[:] = np.nan
    with pytest.raises(crosscheck.CannotCompare) as error:
        run(model, other)
    text = str(error.value)
    assert "output `output` holds no finite number on either side" in text
    assert "`norm`" in text and "Fix:" in text


def test_nothing_finite_on_one_side_is_a_divergence() -> None:
    net = Stack()
    replace(net.layers[4], "forward", lambda self, original, x: original(x) * np.nan)
    assert run(Mlp(), net).divergences[0].candidate == "layers.4"


def test_fully_masked_rows() -> None:
    """-inf instead of a large negative number: NaN in a row without a key."""
    model = Attention()

    def masked(self: Any, original: Any, ids: Any) -> Any:
        return original(ids)

    replace(model, "forward", masked)
    model.mask = lambda t: torch.ones(t, t, dtype=torch.bool).tril(-1)
    infinite = Attention()
    infinite.mask = model.mask
    scores = infinite.scores
    infinite.scores = lambda q, k: scores(q, k).masked_fill(~model.mask(q.shape[-2]), -np.inf)
    replace(infinite, "forward", masked)
    report = run(model, infinite, "int64[2,5] 0..11", gradients=False)
    assert report.verdict in ("agree", "diverge")  # -1e9 is written over -inf: no NaN here
    assert report.verdict == "agree"


def test_a_gradient_that_is_nan() -> None:
    class Root(nn.Module):
        """sqrt of a clipped value: 0 · inf in backward, unless the branch is guarded."""

        def __init__(self, guarded: bool) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4, bias=False)
            nn.init.eye_(self.fc.weight)
            self.guarded = guarded

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.fc(x)
            inner = torch.where(h > 0, h, 1.0) if self.guarded else torch.clamp(h, min=0)
            return torch.where(h > 0, inner.sqrt(), 0.0)

    x = np.ones((3, 6), np.float32)
    x[0, :4] = 0
    report = run(Root(True), Root(False), x)
    assert report.verdict == "diverge"
    assert not forward(report)
    first = report.first_divergence
    assert first is not None and first.phase == "backward" and first.site == "fc"
    assert first.metrics is not None and first.metrics.nonfinite_mismatch > 0


@pytest.mark.parametrize("fill", [-1e9, -3.4e38, -np.inf])
@pytest.mark.parametrize("factor", [1.0, 0.9])
def test_a_mask_hides_no_mistake_in_the_scores(fill: float, factor: float) -> None:
    """Beside -1e9 a wrong scale is rounding, unless masked scores are left out of the norm."""

    class Softmax(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x, -1)

    class Masked(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
            self.softmax, self.scale = Softmax(), scale

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = self.q(x) @ self.k(x).transpose(-1, -2) * self.scale
            future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            return self.softmax(scores.masked_fill(future, fill)) @ self.v(x)

    scale = 12**-0.5
    report = run(Masked(scale), Masked(factor * scale), "float32[2,7,12]")
    first = report.first_divergence
    if factor == 1.0:
        assert report.verdict == "agree", str(report)
    else:
        assert first is not None and (first.phase, first.site) == ("forward", "softmax")
