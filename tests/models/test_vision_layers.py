"""The scratch layers of the vision models against PyTorch's autograd in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from models import scratch
from models.lenet.scratch_net import Squash, Subsample
from models.mobilenet.scratch_net import SqueezeExcite
from tests.models.finite_differences import assert_derivative, moved

RNG = np.random.default_rng(0)


class TorchSquash(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.7159 * torch.tanh(2 / 3 * x)


class TorchHardsigmoid(nn.Module):
    """nn.Hardsigmoid goes backward by the float32 number next to 1/6, in float64 too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu6(x + 3) / 6


def resize(size: tuple[int, int]) -> nn.Module:
    return nn.Upsample(size=size, mode="bilinear", align_corners=False)


def depthwise(size: int, stride: int) -> tuple[Callable[[], object], Callable[[], nn.Module]]:
    pad = size // 2
    return (
        lambda: scratch.DepthwiseConv2d(5, size, RNG, stride=stride, padding=pad),
        lambda: nn.Conv2d(5, 5, size, stride, pad, groups=5, bias=False),
    )


def transposed(
    size: tuple[int, int], stride: int, padding: int, output_padding: int, bias: bool
) -> tuple[Callable[[], object], Callable[[], nn.Module]]:
    return (
        lambda: scratch.ConvTranspose2d(
            3,
            5,
            size,
            RNG,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            bias=bias,
        ),
        lambda: nn.ConvTranspose2d(3, 5, size, stride, padding, output_padding, bias=bias),
    )


LAYERS = {
    "sigmoid": (scratch.Sigmoid, nn.Sigmoid, (4, 7)),
    "hardsigmoid": (scratch.Hardsigmoid, TorchHardsigmoid, (40, 7)),
    "squash": (Squash, TorchSquash, (4, 7)),
    "depthwise": (*depthwise(3, 1), (2, 5, 6, 7)),
    "depthwise-stride": (*depthwise(5, 2), (2, 5, 8, 7)),
    "transposed": (*transposed((3, 3), 2, 1, 1, True), (2, 3, 4, 5)),
    "transposed-odd": (*transposed((3, 2), 2, 0, 0, True), (2, 3, 4, 5)),
    "transposed-dense": (*transposed((4, 3), 1, 0, 0, False), (2, 3, 1, 1)),
    "transposed-wide": (*transposed((5, 4), 3, 1, 2, False), (2, 3, 3, 2)),
    "enlarge": (lambda: scratch.BilinearResize((17, 13)), lambda: resize((17, 13)), (2, 3, 8, 6)),
    "reduce": (lambda: scratch.BilinearResize((5, 4)), lambda: resize((5, 4)), (2, 3, 11, 7)),
    "patches": (
        lambda: scratch.PatchProjection(3, 5, (4, 2), RNG),
        lambda: nn.Conv2d(3, 5, (4, 2), stride=(4, 2)),
        (2, 3, 8, 6),
    ),
}


def assert_same(actual: np.ndarray, expected: torch.Tensor) -> None:
    want = expected.detach().numpy()
    assert actual.dtype == want.dtype
    assert actual.shape == want.shape
    np.testing.assert_allclose(actual, want, rtol=1e-10, atol=1e-10 * np.abs(want).max())


@pytest.mark.parametrize("name", LAYERS)
def test_against_torch(name: str) -> None:
    build, build_torch, shape = LAYERS[name]
    layer, module = build(), build_torch().double()
    for key, value in module.state_dict().items():
        layer.params[key] = value.numpy().copy()
    layer.zero_grad()
    x = 2 * RNG.normal(size=shape)
    tx = torch.from_numpy(x).requires_grad_()
    y, ty = layer.forward(x), module(tx)
    assert_same(y, ty)
    dy = RNG.normal(size=y.shape)
    ty.backward(torch.from_numpy(dy))
    assert_same(layer.backward(dy), tx.grad)
    for key, parameter in module.named_parameters():
        assert_same(layer.grads[key], parameter.grad)
        assert len(layer.axes[key]) == parameter.ndim


@pytest.mark.parametrize("name", LAYERS)
def test_float32_stays_float32(name: str) -> None:
    layer, shape = LAYERS[name][0](), LAYERS[name][2]
    y = layer.forward(RNG.normal(size=shape).astype(np.float32))
    everything = [y, layer.backward(np.ones_like(y)), *layer.grads.values()]
    assert {a.dtype for a in everything} == {np.dtype(np.float32)}


def test_subsample_by_finite_differences() -> None:
    assert_derivative(moved(Subsample(3), 0.3, RNG), RNG.normal(size=(2, 3, 7, 5)), rng=RNG)


def test_squeeze_and_excitation_by_finite_differences() -> None:
    assert_derivative(
        moved(SqueezeExcite(6, 4, RNG), 0.3, RNG), RNG.normal(size=(3, 6, 4, 5)), rng=RNG
    )


def test_attention_without_a_mask_by_finite_differences() -> None:
    assert_derivative(
        moved(scratch.SelfAttention(12, 3, RNG), 0.3, RNG), RNG.normal(size=(2, 5, 12)), rng=RNG
    )


def test_attention_sees_every_position() -> None:
    attention, x = scratch.SelfAttention(6, 2, RNG), RNG.normal(size=(1, 4, 6))
    before = attention.forward(x)
    x[:, -1] += 1
    assert (np.abs(attention.forward(x) - before).max(axis=-1) > 1e-6).all()


def test_a_twin_shares_parameters_and_adds_to_the_same_gradients() -> None:
    layer = scratch.Conv2d(3, 4, 3, RNG)
    other = scratch.twin(layer)
    first, second = RNG.normal(size=(2, 3, 5, 4)), RNG.normal(size=(3, 3, 6, 5))
    y, z = layer.forward(first), other.forward(second)
    layer.backward(np.ones_like(y))
    once = layer.grads["weight"].copy()
    other.backward(np.ones_like(z))
    module = nn.Conv2d(3, 4, 3).double()
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(layer.params["weight"]))
        module.bias.copy_(torch.from_numpy(layer.params["bias"]))
    (module(torch.from_numpy(first)).sum() + module(torch.from_numpy(second)).sum()).backward()
    np.testing.assert_allclose(layer.grads["weight"], module.weight.grad, rtol=1e-10)
    assert other.grads is layer.grads
    assert (layer.grads["weight"] != once).any()


def test_a_twin_has_twins_of_its_children() -> None:
    block = SqueezeExcite(6, 4, RNG)
    other = scratch.twin(block)
    ours, theirs = dict(block.named_layers()), dict(other.named_layers())
    assert list(ours) == list(theirs)
    assert all(ours[path] is not theirs[path] for path in ours)
    assert all(ours[path].params is theirs[path].params for path in ours)
