"""Mistakes so large that no value tells any more which nodes of an ONNX file without module paths
are a layer of the reference: one layer is blamed, and no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import torch.nn as nn  # noqa: E402

from tests.onnx_zoo.test_older_exports import alter, check, exported, made, nodes  # noqa: E402


def added(value: np.ndarray) -> np.ndarray:
    value.flat[1] += 10
    return value


def zeroed(value: np.ndarray) -> np.ndarray:
    return 0 * value


def large(value: np.ndarray) -> np.ndarray:
    return 1000 * value


CHANGES = [added, zeroed, large]


def blamed(model: nn.Module, proto: Any, inputs: str) -> list[str | None]:
    """The reference's layers that forward divergences name."""
    found = check(model, proto, inputs).divergences
    return [d.reference for d in found if d.phase == "forward"]


class Plain(nn.Module):
    """On three axes, the exporter makes of each Linear a product and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 7)
        self.three = nn.Linear(7, 5)

    def forward(self, x: Any) -> Any:
        return self.three(torch.relu(self.two(torch.tanh(self.norm(self.one(x))))))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("layer", ["one", "two", "three"])
@pytest.mark.parametrize("role", ["MatMul", "bias"])
def test_of_a_product_and_a_sum_the_layer_alone_is_blamed(
    layer: str, role: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    model = made(Plain)
    proto = exported(model, (2, 3, 6))
    product = next(n for n in nodes(proto, "MatMul") if layer in n.name)
    alter(proto, product.input[1] if role == "MatMul" else f"{layer}.bias", change)
    assert blamed(model, proto, "float32[2,3,6]") == [layer]


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.act, self.conv2 = nn.ReLU(), nn.Conv2d(8, 5, 3)

    def forward(self, x: Any) -> Any:
        return self.conv2(self.act(self.norm(self.conv1(x))))


class ChannelsLast(nn.Module):
    """As Keras computes and exports it: products without their sums, norms written out."""

    def __init__(self, model: Images) -> None:
        super().__init__()
        self.kernels = nn.ParameterList([model.conv1.weight, model.conv2.weight])
        self.sums = nn.ParameterList([model.conv1.bias, model.conv2.bias])
        norm = model.norm
        self.mean = nn.Parameter(norm.running_mean.clone())
        self.scale = nn.Parameter(norm.weight / torch.sqrt(norm.running_var + norm.eps))
        self.offset = nn.Parameter(norm.bias.clone())

    def conv(self, x: Any, i: int) -> Any:
        made = nn.functional.conv2d(x.permute(0, 3, 1, 2), self.kernels[i])
        return made.permute(0, 2, 3, 1) + self.sums[i].reshape(1, 1, 1, -1)

    def forward(self, x: Any) -> Any:
        h = self.conv(x.permute(0, 2, 3, 1), 0)
        h = torch.relu((h - self.mean) * self.scale + self.offset)
        return self.conv(h, 1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("op", "index", "layer"),
    [
        ("Conv", 0, "conv1"),
        ("Add", 0, "conv1"),
        ("Sub", 0, "norm"),
        ("Mul", 0, "norm"),
        ("Add", 1, "norm"),
        ("Conv", 1, "conv2"),
        ("Add", 2, "conv2"),
    ],
)
def test_among_transpositions_the_layer_alone_is_blamed(
    op: str, index: int, layer: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Which only hand on what a layer made: they are not the layer."""
    model = made(Images)
    proto = exported(ChannelsLast(model), (2, 3, 9, 8))
    alter(proto, nodes(proto, op)[index].input[1], change)
    assert blamed(model, proto, "float32[2,3,9,8]") == [layer]
