"""PyTorch under a limit: the same bits in every run, the model left as it was found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crosscheck import adapt
from crosscheck.memory import limited
from crosscheck.observers import Forcer, Recorder
from crosscheck.run import Runner
from crosscheck.trace import Trace

IDS = np.random.default_rng(0).integers(0, 50, (8, 96))


class Mixed(nn.Module):
    """Parameters that are asked for in all the usual ways, and values of odd strides."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.batch_norm = nn.BatchNorm1d(32)
        self.kernel = nn.Parameter(torch.randn(32, 32))
        self.conv = nn.Conv1d(32, 32, 3, padding=1)
        self.lstm = nn.LSTM(32, 32, batch_first=True)
        self.unused = nn.Parameter(torch.randn(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = self.norm(x + self.attention(x, x, x)[0]) @ self.kernel
        x = self.conv(self.batch_norm(x.mT)).mT
        x = self.lstm(torch.cat([x[:, 1::2], x[:, ::2]], 1))[0]
        return x @ self.table.weight.T  # tied, outside of its layer


class Listed(nn.Module):
    """Lists its parameters instead of asking for them by name: they cannot be cast one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(50, 256))
        self.bias = nn.Parameter(torch.randn(50))

    def forward(self, ids: Tensor) -> Tensor:
        weight, bias = self.parameters()
        return torch.tanh(weight[ids] @ self.weight.T + bias)


def ones(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {site: np.ones_like(value) for site, value in outputs.items()}


def traces(model: nn.Module, limit: str | None, *, train: bool = False) -> list[Trace]:
    """Free and forced, as it runs and in float64."""
    torch.manual_seed(0)
    runner = Runner("reference", adapt(model), {"ids": IDS}, ones, train)  # type: ignore[arg-type]
    with limited(limit):
        free = runner.record(Recorder(), passive=True)
        wide = runner.record(float64=True, passive=True)
        forced = runner.record(Forcer(free.values), float64=True)
        return [free, wide, forced]


def same(a: Any, b: Any) -> bool:
    return list(a) == list(b) and all(
        a[key].dtype == b[key].dtype and a[key].tobytes() == b[key].tobytes() for key in a
    )


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("build", [Mixed, Listed])
def test_every_run_has_the_same_bits(build: type[nn.Module], train: bool) -> None:
    model = build()
    pairs = zip(traces(model, "1MiB", train=train), traces(model, None, train=train), strict=True)
    for within, without in pairs:
        assert same(within.values, without.values)
        assert same(within.info.parameter_gradients, without.info.parameter_gradients)
        assert same(within.info.buffers, without.info.buffers)


def test_the_model_is_left_as_it_was_found() -> None:
    model = Mixed()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    traces(model, "1MiB")
    assert all(type(module._parameters) is dict for module in model.modules())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None


def test_a_model_that_raises_is_left_as_it_was_found() -> None:
    class Raises(Mixed):
        def forward(self, ids: Tensor) -> Tensor:
            raise RuntimeError(f"{self.kernel.dtype}")

    model = Raises()
    with pytest.raises(Exception, match="raised in its forward pass"):
        traces(model, "1MiB")
    assert all(type(module._parameters) is dict for module in model.modules())
