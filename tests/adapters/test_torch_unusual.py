"""Tensors and modules that PyTorch has and NumPy has not: shown, or refused with a way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import crosscheck  # noqa: E402
from crosscheck import CannotCompare, InvalidArgument, SideFailed  # noqa: E402

from .contract import record  # noqa: E402
from .torch_kit import TorchKit  # noqa: E402


class Inner(nn.Module):
    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Any) -> Any:
        return self.make(x)


class Net(nn.Module):
    """``back(inner(x))``: what ``inner`` returns is a site."""

    def __init__(self, make: Callable[[Any], Any], back: Callable[[Any], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.back = nn.Linear(4, 4), Inner(make), back

    def forward(self, x: Any) -> Any:
        return self.back(self.inner(self.first(x)))


REFUSED: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], str]] = {
    "nested": (
        lambda x: torch.nested.nested_tensor([x[0], x[1][:2]]),
        lambda x: x.to_padded_tensor(0.0),
        "nested tensor of torch.float32",
    ),
    "quantised": (
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
        lambda x: x.dequantize(),
        "quantised tensor of torch.quint8",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_no_array_can_show_it(kind: str) -> None:
    make, back, what = REFUSED[kind]
    with pytest.raises(CannotCompare, match=f"`inner`: a {what}") as error:
        crosscheck.check(Net(make, back), Net(make, back), "float32[2,3,4]")
    assert "Fix: " in str(error.value)


def test_float8_is_shown() -> None:
    net = Net(lambda x: x.to(torch.float8_e4m3fn), lambda x: x.float())
    values, _ = record(TorchKit().adapt(net), cotangents=None)
    shown = values["activation", "inner"]
    assert shown.dtype.name == "float8_e4m3fn"
    np.testing.assert_array_equal(shown.astype(np.float32), values["activation", "output"])
    report = crosscheck.check(net, net, "float32[6,4]", gradients=False)
    assert report.verdict == "agree", str(report)


def test_sparse_is_shown() -> None:
    net = Net(lambda x: x.relu().to_sparse(), lambda x: x.to_dense() * 2)
    values, _ = record(TorchKit().adapt(net), cotangents=None)
    np.testing.assert_array_equal(values["activation", "inner"] * 2, values["activation", "output"])


def test_modules_without_values() -> None:
    with torch.device("meta"):
        empty = nn.Linear(4, 3)
    with pytest.raises(InvalidArgument, match="candidate.*`weight`.*meta device"):
        crosscheck.check(nn.Linear(4, 3), empty, "float32[2,4]")
    with pytest.raises(InvalidArgument, match="reference.*`weight`.*lazy"):
        crosscheck.check(nn.LazyLinear(3), nn.Linear(4, 3), "float32[2,4]")


class Recomputing(nn.Module):
    """Part of it is computed once more in the backward pass, ``times`` in a row."""

    def __init__(
        self,
        *,
        checkpoint: bool,
        approximate: str = "none",
        times: int = 1,
        reentrant: bool = False,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.act, self.down = nn.Linear(4, 6), nn.GELU(approximate), nn.Linear(6, 4)
        self.head, self.times = nn.Linear(4, 3), times
        self.checkpoint, self.reentrant = checkpoint, reentrant

    def part(self, x: Any) -> Any:
        for _ in range(self.times):
            x = self.down(crosscheck.tap("mid", self.act(self.up(x))))
        return x

    def forward(self, x: Any) -> Any:
        if not self.checkpoint:
            return self.head(self.part(x))
        run = torch.utils.checkpoint.checkpoint
        return self.head(run(self.part, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize(("ours", "theirs"), [(False, True), (True, False), (True, True)])
def test_a_recomputed_layer_is_seen_once_and_forced_twice(ours: bool, theirs: bool) -> None:
    reference = Recomputing(checkpoint=ours)
    report = crosscheck.check(reference, Recomputing(checkpoint=theirs), "float32[5,4]")
    assert report.verdict == "agree", str(report)
    assert not any("#2" in s.reference + s.candidate for s in report.sites)
    wrong = Recomputing(checkpoint=theirs, approximate="tanh")
    report = crosscheck.check(reference, wrong, "float32[5,4]")
    found = [(d.phase, d.candidate) for d in report.divergences]
    assert found == [("forward", "act"), ("backward", "act")]


def test_recomputed_calls_that_cannot_be_told_apart() -> None:
    nets = [Recomputing(checkpoint=True, times=2, approximate=a) for a in ("none", "tanh")]
    with pytest.raises(CannotCompare, match="is called 2 times"):
        crosscheck.check(*nets, "float32[5,4]")


def test_reentrant_checkpoints_say_what_to_do() -> None:
    nets = [Recomputing(checkpoint=True, reentrant=True) for _ in range(2)]
    with pytest.raises(SideFailed, match="use_reentrant=False"):
        crosscheck.check(*nets, "float32[5,4]")
