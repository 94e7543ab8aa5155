"""What is known of a PyTorch module's parameters is kept, and never longer than it is true."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from crosscheck.adapters.base import Parameter
from crosscheck.adapters.torch.adapter import TorchAdapter
from crosscheck.adapters.torch.lending import Loans
from crosscheck.adapters.torch.parameters import named_modules, named_tensors


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 3)
        self.inside = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.again = self.first
        self.last = nn.Linear(3, 3)
        self.last.weight = self.first.weight
        self.kept = {"tables": [torch.ones(2), (torch.zeros(2),)]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.last(self.inside(self.first(x)))
        return output


def described(model: nn.Module) -> list[tuple[object, ...]]:
    def one(p: Parameter) -> tuple[object, ...]:
        also = [(a.name, a.layer, a.kind, a.axes, a.value.tolist()) for a in p.also]
        value = p.value.dtype, p.value.tolist()
        return p.name, p.layer, p.role, p.kind, p.axes, p.trainable, p.buffer, value, also

    return [one(p) for p in TorchAdapter(model).parameters()]


def changed_layout(model: Net) -> None:
    model.inside[0].weight.data = model.inside[0].weight.data.t()


def halved(model: Net) -> None:
    model.half()


def frozen(model: Net) -> None:
    model.last.bias.requires_grad_(False)


def another_layer(model: Net) -> None:
    model.inside.append(nn.Linear(3, 2))


def another_parameter(model: Net) -> None:
    model.first.bias = nn.Parameter(torch.full((3,), 7.0))


def untied(model: Net) -> None:
    model.last.weight = nn.Parameter(model.first.weight.detach().clone())


def another_type(model: Net) -> None:
    model.inside[0].__class__ = nn.Bilinear  # as parametrisations do


@pytest.mark.parametrize(
    "change",
    [
        changed_layout,
        halved,
        frozen,
        another_layer,
        another_parameter,
        untied,
        another_type,
    ],
)
def test_what_changes_is_described_anew(change: Callable[[Net], None]) -> None:
    model = Net()
    adapter = TorchAdapter(model)
    before = adapter.parameters()
    assert adapter.parameters() is before
    change(model)
    assert [p.name for p in adapter.parameters()] == [row[0] for row in described(model)]
    for mine, new in zip(adapter.parameters(), TorchAdapter(model).parameters(), strict=True):
        assert mine.value.dtype == new.value.dtype and np.array_equal(mine.value, new.value)
        assert (mine.kind, mine.axes, mine.trainable) == (new.kind, new.axes, new.trainable)
        assert [a.name for a in mine.also] == [a.name for a in new.also]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turned", [False, True])
def test_values_are_those_of_now(dtype: torch.dtype, turned: bool) -> None:
    model = nn.Linear(4, 3).to(dtype)
    if turned:  # bfloat16 has no view then
        model.weight.data = torch.randn(4, 3).to(dtype).t()
    adapter = TorchAdapter(model)
    adapter.parameters()
    adapter.load({"weight": np.full((3, 4), 2.0, np.float32)})
    (weight,) = (p.value for p in adapter.parameters() if p.name == "weight")
    assert np.array_equal(weight.astype(np.float32), np.full((3, 4), 2.0))


def test_names_are_those_of_pytorch() -> None:
    model = Net()
    assert named_modules(model) == list(model.named_modules())
    rows = {row[0]: row for row in described(model)}
    own = [*dict(model.named_parameters()), "inside.1.running_mean", "inside.1.running_var"]
    assert sorted(rows) == sorted(own)
    ((also, *_),) = rows["first.weight"][-1]  # type: ignore[misc]
    assert also == "last.weight"
    assert [row[-1] for name, row in rows.items() if name != "first.weight"] == [[]] * 8


def test_what_modules_keep_anywhere_is_held() -> None:
    model = Net()
    loans = Loans(frozenset())
    lent = {
        "weight": model.first.weight.detach()[1:],
        "buffer": model.inside[1].running_mean,
        "listed": model.kept["tables"][0],
        "nested": model.kept["tables"][1][0].view(1, 2),
        "own": torch.ones(3),
    }
    for site, tensor in lent.items():
        loans.note(("activation", site), tensor)
    expected = {("activation", site) for site in lent if site != "own"}
    assert loans.overwritten(model) == expected


def test_names_are_pytorchs_own() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.BatchNorm1d(3), nn.Sequential(shared, nn.Linear(3, 3)))
    model[2][1].weight = shared.weight  # type: ignore[union-attr,index]
    model[2].register_buffer("again", model[1].running_mean)  # type: ignore[union-attr,arg-type]
    model.register_parameter("none", None)
    parameters, buffers = named_tensors(model)
    assert [*parameters.items()] == [*model.named_parameters()]
    assert [*buffers] == [name for name, _ in model.named_buffers()]
    assert all(buffers[name] is tensor for name, tensor in model.named_buffers())
