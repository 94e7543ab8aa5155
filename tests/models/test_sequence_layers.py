"""The scratch layers of the sequence, graph and expert models against PyTorch, in float64."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models import data, scratch
from models.graphs import neighbours, normalised
from tests.models.finite_differences import assert_derivative, parameters

RNG = np.random.default_rng(0)


def randomised(layer: scratch.Layer) -> scratch.Layer:
    """The layer with all parameters drawn anew in float64."""
    for _, child in layer.named_layers():
        for name, value in child.params.items():
            child.params[name] = RNG.uniform(0.2, 0.8, value.shape) * RNG.choice(
                [-1, 1], value.shape
            )
    layer.zero_grad()
    return layer


def assert_same(actual: np.ndarray, expected: torch.Tensor) -> None:
    want = expected.detach().numpy()
    assert actual.dtype == want.dtype
    assert actual.shape == want.shape
    np.testing.assert_allclose(actual, want, rtol=1e-9, atol=1e-10 * np.abs(want).max())


PRESENT = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
LAYERS: dict[str, tuple[Any, tuple[np.ndarray, ...]]] = {
    "lstm": (lambda: scratch.LSTM(4, 3, RNG), (RNG.normal(size=(2, 5, 4)),)),
    "lstm, reversed": (
        lambda: scratch.LSTM(4, 3, RNG, reverse=True),
        (RNG.normal(size=(2, 5, 4)),),
    ),
    "gru": (lambda: scratch.GRU(4, 3, RNG), (RNG.normal(size=(2, 5, 4)),)),
    "bidirectional": (
        lambda: scratch.Bidirectional(scratch.GRU, 4, 3, RNG),
        (RNG.normal(size=(2, 5, 4)),),
    ),
    "last states": (scratch.LastStates, (RNG.normal(size=(2, 5, 6)),)),
    "rms norm": (lambda: scratch.RMSNorm(6), (RNG.normal(size=(2, 3, 6)),)),
    "rotary": (scratch.Rotary, (RNG.normal(size=(2, 3, 5, 8)),)),
    "tanh": (scratch.Tanh, (RNG.normal(size=(4, 7)),)),
    "log-softmax": (scratch.LogSoftmax, (RNG.normal(size=(4, 7)),)),
    "silu": (scratch.SiLU, (3 * RNG.normal(size=(4, 7)),)),
    "swiglu": (lambda: scratch.SwiGLU(5, 7, RNG), (RNG.normal(size=(2, 3, 5)),)),
    "linear without bias": (
        lambda: scratch.Linear(5, 7, RNG, bias=False),
        (RNG.normal(size=(2, 3, 5)),),
    ),
    "padded attention": (
        lambda: scratch.PaddedSelfAttention(6, 2, RNG),
        (RNG.normal(size=(3, 5, 6)), PRESENT),
    ),
    "grouped attention": (
        lambda: scratch.GroupedQueryAttention(10, 6, 2, 4, RNG),
        (RNG.normal(size=(2, 5, 10)),),
    ),
    "router": (lambda: scratch.Router(6, 5, 2, RNG), (RNG.normal(size=(2, 3, 6)),)),
    "experts": (lambda: scratch.MixtureOfExperts(6, 4, 5, 2, RNG), (RNG.normal(size=(2, 3, 6)),)),
    "graph": (
        lambda: scratch.GraphConv(6, 4, RNG),
        (RNG.normal(size=(5, 6)), RNG.normal(size=(5, 5))),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_backward_by_finite_differences(name: str) -> None:
    build, inputs = LAYERS[name]
    assert_derivative(randomised(build()), *inputs, rng=RNG)


@pytest.mark.parametrize("name", LAYERS)
def test_float32_stays_float32(name: str) -> None:
    build, inputs = LAYERS[name]
    layer = build()
    given = [x.astype(np.float32) if x.dtype.kind == "f" else x for x in inputs]
    y = layer.forward(*given)
    found = layer.backward(np.ones_like(y))
    found = found if isinstance(found, tuple) else (found,)
    grads = [child.grads[key] for _, child, key in parameters(layer)]
    assert {a.dtype for a in (y, *found, *grads)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", LAYERS)
def test_axes_name_every_axis(name: str) -> None:
    for path, child, key in parameters(LAYERS[name][0]()):
        assert len(child.axes[key]) == child.params[key].ndim, path


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_layers_against_torch(kind: str) -> None:
    layer = randomised(scratch.Bidirectional(getattr(scratch, kind), 4, 3, RNG))
    module = getattr(nn, kind)(4, 3, batch_first=True, bidirectional=True).double()
    ours = [(layer.forwards, ""), (layer.backwards, "_reverse")]
    for child, suffix in ours:
        for name, value in child.params.items():
            getattr(module, f"{name}_l0{suffix}").data = torch.from_numpy(value.T.copy())
    x = RNG.normal(size=(2, 5, 4))
    tx = torch.from_numpy(x).requires_grad_()
    ty, y = module(tx)[0], layer.forward(x)
    assert_same(y, ty)
    dy = RNG.normal(size=y.shape)
    ty.backward(torch.from_numpy(dy))
    assert_same(layer.backward(dy), tx.grad)
    for child, suffix in ours:
        for name in child.params:
            assert_same(child.grads[name].T, getattr(module, f"{name}_l0{suffix}").grad)


@pytest.mark.parametrize("name", ["rms norm", "silu", "tanh", "log-softmax"])
def test_pointwise_layers_and_norms_against_torch(name: str) -> None:
    build, (x,) = LAYERS[name]
    layer = randomised(build())
    modules = {
        "rms norm": lambda: nn.RMSNorm(6, eps=1e-5),
        "silu": nn.SiLU,
        "tanh": nn.Tanh,
        "log-softmax": lambda: nn.LogSoftmax(dim=-1),
    }
    module = modules[name]().double()
    for key, parameter in module.named_parameters():
        parameter.data = torch.from_numpy(layer.params[key])
    assert_same(layer.forward(x), module(torch.from_numpy(x)))


def test_padded_attention_against_torch() -> None:
    layer, x = randomised(scratch.PaddedSelfAttention(6, 2, RNG)), RNG.normal(size=(2, 5, 6))
    module = nn.MultiheadAttention(6, 2, batch_first=True).double()
    parts = (layer.query, layer.key, layer.value)
    module.in_proj_weight.data = torch.from_numpy(
        np.concatenate([p.params["weight"].T for p in parts])
    )
    module.in_proj_bias.data = torch.from_numpy(np.concatenate([p.params["bias"] for p in parts]))
    module.out_proj.weight.data = torch.from_numpy(layer.out.params["weight"].T.copy())
    module.out_proj.bias.data = torch.from_numpy(layer.out.params["bias"])
    tx, padding = torch.from_numpy(x), torch.from_numpy(PRESENT[:2] == 0)
    ty = module(tx, tx, tx, key_padding_mask=padding, need_weights=False)[0]
    assert_same(layer.forward(x, PRESENT[:2]), ty)


def test_where_everything_is_padding_attention_is_a_mean() -> None:
    layer, x = randomised(scratch.PaddedSelfAttention(6, 2, RNG)), RNG.normal(size=(1, 5, 6))
    y = layer.forward(x, np.zeros((1, 5), dtype=np.int64))
    mean = layer.value.forward(x).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(y, np.repeat(layer.out.forward(mean), 5, axis=1), rtol=1e-10)


def test_grouped_attention_against_torch() -> None:
    layer = randomised(scratch.GroupedQueryAttention(10, 6, 2, 4, RNG))
    x = RNG.normal(size=(2, 5, 10))

    def heads(a: np.ndarray, count: int) -> torch.Tensor:
        return torch.from_numpy(a.reshape(2, 5, count, 4).swapaxes(1, 2).copy())

    projections = ((layer.q, 6), (layer.k, 2), (layer.v, 2))
    q, k, v = (heads(x @ part.params["weight"], n) for part, n in projections)
    q, k = turned(q), turned(k)
    y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    y = y.transpose(1, 2).reshape(2, 5, 24) @ torch.from_numpy(layer.o.params["weight"])
    assert_same(layer.forward(x), y)


def turned(x: torch.Tensor) -> torch.Tensor:
    """Rotary embedding by complex numbers: pair (i, i + hs/2) times exp(i · t · base^(-2i/hs))."""
    length, size = x.shape[-2:]
    frequency = 10000.0 ** (-torch.arange(0, size, 2).double() / size)
    angle = torch.arange(length).double()[:, None] * frequency
    pairs = torch.complex(x[..., : size // 2], x[..., size // 2 :])
    pairs = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def test_the_score_of_rotated_vectors_depends_on_their_distance() -> None:
    rotary = scratch.Rotary()
    q, k = (np.repeat(RNG.normal(size=(1, 1, 1, 8)), 7, axis=2) for _ in range(2))
    scores = rotary.forward(q) @ rotary.forward(k).swapaxes(-1, -2)  # (1, 1, T, T)
    for distance in range(-6, 7):
        diagonal = np.diagonal(scores[0, 0], distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-10)


def test_a_router_chooses_two_experts_and_shares_one_among_them() -> None:
    router, x = randomised(scratch.Router(6, 5, 2, RNG)), RNG.normal(size=(2, 3, 6))
    gates = router.forward(x)
    logits = torch.from_numpy(x @ router.logits.params["weight"])
    top = logits.topk(2, dim=-1)
    expected = torch.zeros_like(logits).scatter(-1, top.indices, top.values.softmax(dim=-1))
    assert_same(gates, expected)
    assert ((gates > 0).sum(axis=-1) == 2).all()


def test_normalised_adjacency() -> None:
    points = RNG.normal(size=(9, 4)).astype(np.float32)
    joined = neighbours(points, 2)
    assert (joined == joined.T).all()
    assert not joined.diagonal().any()
    assert (joined.sum(axis=1) >= 2).all()
    matrix = normalised(joined)
    assert matrix.dtype == np.float32
    degree = joined.sum(axis=1) + 1
    for i, j in np.ndindex(9, 9):
        expected = (joined[i, j] + (i == j)) / math.sqrt(degree[i] * degree[j])
        assert matrix[i, j] == pytest.approx(expected, rel=1e-6)


def test_passage_pairs() -> None:
    tokens, types, present, labels = data.passage_pairs(3, (11, 6, 0), 11)
    assert {a.shape for a in (tokens, types, present)} == {(3, 11)}
    assert {a.dtype for a in (tokens, types, present, labels)} == {np.dtype(np.int64)}
    assert present.sum(axis=1).tolist() == [11, 6, 0]
    assert (tokens[present == 0] == data.PADDING).all()
    assert (tokens[present == 1] != data.PADDING).all()
    for row, length in enumerate((11, 6)):
        ends = np.flatnonzero(tokens[row] == data.END).tolist()
        assert tokens[row, 0] == data.START
        assert ends[1] == length - 1
        assert types[row].tolist() == [int(ends[0] < t <= ends[1]) for t in range(11)]
    seen = {int(label) for s in range(8) for label in data.passage_pairs(s, (11, 6), 11)[3]}
    assert seen == {0, 1}


def test_a_second_passage_follows_the_first_where_the_label_says_so() -> None:
    text = "".join(chr(t) for t in data.text_tokens())
    for seed in range(6):
        tokens, types, present, labels = data.passage_pairs(seed, (41,), 41)
        body = (present[0] == 1) & (tokens[0] < data.PADDING)
        first, second = (tokens[0][body & (types[0] == k)] for k in (0, 1))
        joined = "".join(chr(t) for t in [*first, *second])
        assert (joined in text) == bool(labels[0])


@pytest.mark.parametrize("family", ["lstm", "gru", "bert", "llama", "moe", "gcn", "actor_critic"])
def test_reference_weights_are_seeded_and_far_from_their_defaults(family: str) -> None:
    build = importlib.import_module(f"models.{family}.reference").build
    torch.manual_seed(1)
    one = dict(build().named_parameters())
    torch.manual_seed(2)
    other = dict(build().named_parameters())
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
        assert (value.detach() != 0).all(), name
        assert (value.detach() != 1).all(), name
        assert value.detach().abs().max() < 5, name
