"""Every scratch layer against PyTorch's autograd in float64, with random cotangents."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from models import scratch
from models.scratch.special import erf
from tests.models.finite_differences import assert_derivative, moved

RNG = np.random.default_rng(0)


def linear() -> scratch.Layer:
    return scratch.Linear(7, 5, RNG)


def conv(**options: object) -> scratch.Layer:
    return scratch.Conv2d(3, 4, 3, RNG, **options)


LAYERS = {
    "linear": (linear, lambda: nn.Linear(7, 5), (2, 3, 7)),
    "conv": (lambda: conv(padding=1), lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 7, 5)),
    "conv-stride": (
        lambda: conv(stride=2, padding=1, bias=False),
        lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        (2, 3, 8, 5),
    ),
    "conv-valid": (lambda: conv(stride=3), lambda: nn.Conv2d(3, 4, 3, stride=3), (2, 3, 11, 7)),
    "layernorm": (lambda: scratch.LayerNorm(6), lambda: nn.LayerNorm(6), (2, 3, 6)),
    "batchnorm": (lambda: scratch.BatchNorm2d(3), lambda: nn.BatchNorm2d(3), (4, 3, 5, 2)),
    "maxpool": (
        lambda: scratch.MaxPool2d(3, stride=2, padding=1),
        lambda: nn.MaxPool2d(3, stride=2, padding=1),
        (2, 3, 8, 5),
    ),
    "avgpool": (
        lambda: scratch.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
        lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
        (2, 3, 8, 5),
    ),
    "avgpool-include": (
        lambda: scratch.AvgPool2d(2, stride=2, padding=1),
        lambda: nn.AvgPool2d(2, stride=2, padding=1),
        (2, 3, 8, 6),
    ),
    "relu": (scratch.ReLU, nn.ReLU, (4, 7)),
    "leakyrelu": (lambda: scratch.LeakyReLU(0.1), lambda: nn.LeakyReLU(0.1), (4, 7)),
    "hardswish": (scratch.Hardswish, nn.Hardswish, (40, 7)),
    "gelu": (scratch.GELU, nn.GELU, (40, 7)),
    "softmax": (lambda: scratch.Softmax(axis=1), lambda: nn.Softmax(dim=1), (3, 5, 4)),
}


def pair(name: str) -> tuple[scratch.Layer, nn.Module, np.ndarray]:
    """A scratch layer and torch's with the same random float64 parameters, and an input."""
    build, build_torch, shape = LAYERS[name]
    layer, module = build(), build_torch().double()
    state = module.state_dict()
    for values in (layer.params, layer.buffers):
        for key in values:
            value = RNG.uniform(0.5, 1.5, state[key].shape) * RNG.choice([-1, 1], state[key].shape)
            value = np.abs(value) if key == "running_var" else value
            state[key] = torch.from_numpy(value)
            values[key] = value.T.copy() if layer.axes.get(key) == ("in", "out") else value
    module.load_state_dict(state)
    layer.zero_grad()
    return layer, module, 2 * RNG.normal(size=shape)


def assert_same(actual: np.ndarray, expected: torch.Tensor) -> None:
    want = expected.detach().numpy()
    assert actual.dtype == want.dtype
    assert actual.shape == want.shape
    np.testing.assert_allclose(actual, want, rtol=1e-10, atol=1e-10 * np.abs(want).max())


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", LAYERS)
def test_forward_and_backward(name: str, mode: str) -> None:
    layer, module, x = pair(name)
    layer.train(mode == "train")
    module.train(mode == "train")
    tx = torch.from_numpy(x).requires_grad_()
    y, ty = layer.forward(x), module(tx)
    assert_same(y, ty)
    dy = RNG.normal(size=y.shape)
    ty.backward(torch.from_numpy(dy))
    assert_same(layer.backward(dy), tx.grad)
    for key, parameter in module.named_parameters():
        transposed = layer.axes[key] == ("in", "out")
        assert_same(layer.grads[key], parameter.grad.T if transposed else parameter.grad)
    for key, buffer in layer.buffers.items():
        assert_same(buffer, module.get_buffer(key))


@pytest.mark.parametrize("name", LAYERS)
def test_float32_stays_float32(name: str) -> None:
    layer, _, x = pair(name)
    for values in (layer.params, layer.buffers):
        for key in values:
            values[key] = values[key].astype(np.float32)
    layer.zero_grad()
    y = layer.forward(x.astype(np.float32))
    dx = layer.backward(np.ones_like(y))
    everything = [y, dx, *layer.grads.values(), *layer.buffers.values()]
    assert {a.dtype for a in everything} == {np.dtype(np.float32)}


def test_axes_name_every_axis() -> None:
    for name in LAYERS:
        layer = LAYERS[name][0]()
        for key, value in layer.params.items():
            assert len(layer.axes[key]) == value.ndim


def test_gradients_accumulate_until_zeroed() -> None:
    layer, _, x = pair("linear")
    dy = np.ones_like(layer.forward(x))
    layer.backward(dy)
    once = layer.grads["weight"].copy()
    layer.backward(dy)
    np.testing.assert_allclose(layer.grads["weight"], 2 * once, rtol=1e-14)
    layer.zero_grad()
    assert not layer.grads["weight"].any()


def test_max_pool_gives_a_tie_to_the_first() -> None:
    x = np.zeros((1, 2, 5, 4))
    tx = torch.from_numpy(x).requires_grad_()
    layer = scratch.MaxPool2d(3, stride=2, padding=1)
    dy = RNG.normal(size=layer.forward(x).shape)
    nn.functional.max_pool2d(tx, 3, stride=2, padding=1).backward(torch.from_numpy(dy))
    assert_same(layer.backward(dy), tx.grad)


def test_relu_has_derivative_zero_at_zero() -> None:
    layer = scratch.ReLU()
    layer.forward(np.array([-1.0, 0.0, 2.0]))
    assert layer.backward(np.ones(3)).tolist() == [0, 0, 1]


def test_embedding_counts_a_repeated_row_twice() -> None:
    layer = scratch.Embedding(5, 3, RNG)
    module = nn.Embedding(5, 3).double()
    layer.params["weight"] = module.weight.detach().numpy().copy()
    layer.zero_grad()
    index = np.array([[1, 4, 1], [0, 1, 2]])
    y, ty = layer.forward(index), module(torch.from_numpy(index))
    assert_same(y, ty)
    dy = RNG.normal(size=y.shape)
    ty.backward(torch.from_numpy(dy))
    assert layer.backward(dy) is None
    assert_same(layer.grads["weight"], module.weight.grad)


def test_tied_head_adds_to_the_embedding() -> None:
    embedding = scratch.Embedding(5, 3, RNG)
    weight = torch.tensor(RNG.normal(size=(5, 3)), requires_grad=True)
    embedding.params["weight"] = weight.detach().numpy().copy()
    embedding.zero_grad()
    head, x, index = (
        scratch.TiedHead(embedding),
        RNG.normal(size=(2, 4, 3)),
        np.array([[0, 1, 1, 4]] * 2),
    )
    tx = torch.from_numpy(x).requires_grad_()
    ty = (tx + weight[torch.from_numpy(index)]) @ weight.T
    y = head.forward(x + embedding.forward(index))
    assert_same(y, ty)
    dy = RNG.normal(size=y.shape)
    ty.backward(torch.from_numpy(dy))
    dx = head.backward(dy)
    embedding.backward(dx)
    assert_same(dx, tx.grad)
    assert_same(embedding.grads["weight"], weight.grad)


def test_attention_against_torch() -> None:
    layer, x = scratch.CausalSelfAttention(12, 3, RNG), RNG.normal(size=(2, 5, 12))
    module = nn.MultiheadAttention(12, 3, batch_first=True).double()
    for child, weight, bias in (
        (layer.c_attn, module.in_proj_weight, module.in_proj_bias),
        (layer.c_proj, module.out_proj.weight, module.out_proj.bias),
    ):
        child.params["weight"] = weight.detach().numpy().T.copy()
        child.params["bias"] = RNG.normal(size=bias.shape)
        bias.data = torch.from_numpy(child.params["bias"])
    layer.zero_grad()
    tx = torch.from_numpy(x).requires_grad_()
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    ty = module(tx, tx, tx, attn_mask=future, need_weights=False)[0]
    y = layer.forward(x)
    assert_same(y, ty)
    dy = RNG.normal(size=y.shape)
    ty.backward(torch.from_numpy(dy))
    assert_same(layer.backward(dy), tx.grad)
    assert_same(layer.c_attn.grads["weight"], module.in_proj_weight.grad.T)
    assert_same(layer.c_attn.grads["bias"], module.in_proj_bias.grad)


def test_a_block_by_finite_differences() -> None:
    from models.gpt.scratch_net import DIM, Block

    x = RNG.normal(size=(2, 5, DIM))
    assert_derivative(moved(Block(RNG), 0.1, RNG), x, rng=RNG, rel=1e-7)


def test_erf() -> None:
    x = np.concatenate([np.linspace(-8, 8, 4001), np.linspace(-0.5, 0.5, 501), [np.inf, -np.inf]])
    np.testing.assert_allclose(erf(x), [math.erf(v) for v in x], rtol=1e-15)
    assert np.isnan(erf(np.array([np.nan]))).all()
    assert erf(x.astype(np.float32)).dtype == np.float32


def test_paths_follow_the_attributes() -> None:
    from models.gpt.scratch_net import build

    net = build()
    paths = [path for path, _ in net.named_layers()]
    assert paths[:5] == ["", "wte", "wpe", "blocks.0", "blocks.0.ln1"]
    assert "blocks.1.attn.c_proj" in paths
    assert paths[-1] == "lm_head"
    assert len(paths) == len(set(paths))
    assert not any(layer.training for _, layer in net.named_layers())
