"""Weights from PyTorch to Keras and back, layer by layer: nothing given, everything compared."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest

import crosscheck
from crosscheck.errors import CannotCompare

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")
if keras.config.backend() != "tensorflow":
    pytest.skip("Keras runs on another backend", allow_module_level=True)
from torch import nn  # noqa: E402

from tests.adapters.layer_kit import (  # noqa: E402
    First,
    Projections,
    SelfAttention,
    Words,
    agrees,
    scattered,
    spec,
)

L = keras.layers
STEPS = (7, 3)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    keras.utils.clear_session()


def seq(*layers: Any, shape: tuple[int, ...], dtype: str | None = None) -> Any:
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers])


def attention(layer: Any, shape: tuple[int, ...] = (5, 8)) -> Any:
    x = keras.Input(shape)
    return keras.Model(x, layer(x, x))


def recurrent(name: str, **options: Any) -> Any:
    return First(getattr(nn, name)(3, 5, batch_first=True, **options))


def both_ways(layer: Any) -> Any:
    return L.Bidirectional(layer)


SPATIAL: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "conv1d": (
        lambda: nn.Conv1d(3, 4, 2),
        lambda: seq(L.Conv1D(4, 2), shape=(6, 3)),
        spec(2, 3, 6),
    ),
    "conv2d, square": (
        lambda: nn.Conv2d(3, 3, 3),
        lambda: seq(L.Conv2D(3, 3), shape=(5, 6, 3)),
        spec(2, 3, 5, 6),
    ),
    "conv3d": (
        lambda: nn.Conv3d(2, 3, (1, 2, 3)),
        lambda: seq(L.Conv3D(3, (1, 2, 3)), shape=(3, 4, 5, 2)),
        spec(2, 2, 3, 4, 5),
    ),
    "groups": (
        lambda: nn.Conv2d(4, 6, (2, 3), groups=2),
        lambda: seq(L.Conv2D(6, (2, 3), groups=2), shape=(5, 6, 4)),
        spec(2, 4, 5, 6),
    ),
    "depthwise": (
        lambda: nn.Conv2d(3, 6, (2, 3), groups=3),
        lambda: seq(L.DepthwiseConv2D((2, 3), depth_multiplier=2), shape=(5, 6, 3)),
        spec(2, 3, 5, 6),
    ),
    "separable": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, (2, 3), groups=3, bias=False), nn.Conv2d(6, 4, 1)),
        lambda: seq(L.SeparableConv2D(4, (2, 3), depth_multiplier=2), shape=(5, 6, 3)),
        spec(2, 3, 5, 6),
    ),
    "transposed": (
        lambda: nn.ConvTranspose2d(3, 4, (3, 2), stride=2),
        lambda: seq(L.Conv2DTranspose(4, (3, 2), strides=2), shape=(4, 5, 3)),
        spec(2, 3, 4, 5),
    ),
    "norms": (
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4)),
        lambda: seq(
            L.BatchNormalization(epsilon=1e-5),
            L.GroupNormalization(2, epsilon=1e-5),
            shape=(5, 6, 4),
        ),
        spec(2, 4, 5, 6),
    ),
}


@pytest.mark.parametrize("case", SPATIAL)
def test_convolutions_and_norms(case: str) -> None:
    ours, theirs, inputs = SPATIAL[case]
    agrees(scattered(ours()), theirs(), inputs, last=True)


PLAIN: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "lstm": (
        lambda: recurrent("LSTM"),
        lambda: seq(L.LSTM(5, return_sequences=True), shape=STEPS),
        spec(2, *STEPS),
    ),
    "gru": (
        lambda: recurrent("GRU"),
        lambda: seq(L.GRU(5, return_sequences=True), shape=STEPS),
        spec(2, *STEPS),
    ),
    "rnn": (
        lambda: recurrent("RNN"),
        lambda: seq(L.SimpleRNN(5, return_sequences=True), shape=STEPS),
        spec(2, *STEPS),
    ),
    "gru without biases": (
        lambda: recurrent("GRU", bias=False),
        lambda: seq(L.GRU(5, return_sequences=True, use_bias=False), shape=STEPS),
        spec(2, *STEPS),
    ),
    "two layers, both ways": (
        lambda: recurrent("LSTM", num_layers=2, bidirectional=True),
        lambda: seq(*(both_ways(L.LSTM(5, return_sequences=True)) for _ in range(2)), shape=STEPS),
        spec(2, *STEPS),
    ),
    "gru, both ways": (
        lambda: recurrent("GRU", bidirectional=True),
        lambda: seq(both_ways(L.GRU(5, return_sequences=True)), shape=STEPS),
        spec(2, *STEPS),
    ),
    "stacked cells": (
        lambda: recurrent("LSTM", num_layers=2),
        lambda: seq(L.RNN([L.LSTMCell(5), L.LSTMCell(5)], return_sequences=True), shape=STEPS),
        spec(2, *STEPS),
    ),
    "packed attention": (
        lambda: SelfAttention(8, 2),
        lambda: attention(L.MultiHeadAttention(2, 4)),
        spec(2, 5, 8),
    ),
    "separate projections": (
        Projections,
        lambda: attention(L.MultiHeadAttention(2, 4)),
        spec(2, 5, 8),
    ),
    "fused projections": (
        lambda: Projections(fused=True),
        lambda: attention(L.MultiHeadAttention(2, 4)),
        spec(2, 5, 8),
    ),
    "grouped queries": (
        lambda: Projections(heads=4, kv=2),
        lambda: attention(L.GroupQueryAttention(2, 4, 2)),
        spec(2, 5, 8),
    ),
    "grouped queries, fused": (
        lambda: Projections(heads=4, kv=2, fused=True),
        lambda: attention(L.GroupQueryAttention(2, 4, 2)),
        spec(2, 5, 8),
    ),
    "einsum": (
        lambda: nn.Linear(3, 8),
        lambda: seq(
            L.EinsumDense("abc,cde->abde", output_shape=(None, 2, 4), bias_axes="de"),
            L.Reshape((7, 8)),
            shape=STEPS,
        ),
        spec(2, *STEPS),
    ),
}


@pytest.mark.parametrize("case", PLAIN)
def test_recurrent_layers_and_attention(case: str) -> None:
    ours, theirs, inputs = PLAIN[case]
    agrees(scattered(ours()), theirs(), inputs)


@pytest.mark.parametrize("case", ["lstm", "gru", "packed attention", "fused projections"])
def test_from_keras_to_torch(case: str) -> None:
    """Two biases for one, and three projections in one array."""
    ours, theirs, inputs = PLAIN[case]
    reference, candidate = theirs(), ours().eval()
    rng = np.random.default_rng(3)
    reference.set_weights([rng.normal(size=w.shape) * 0.3 for w in reference.get_weights()])
    agrees(reference, candidate, inputs)


@pytest.mark.parametrize("how", ["tied", "function"])
def test_tied_weights_against_two_parameters(how: str) -> None:
    candidate = seq(
        L.Embedding(11, 6),
        L.Activation("tanh"),
        L.Dense(11, use_bias=False),
        shape=(5,),
        dtype="int64",
    )
    report = agrees(scattered(Words(how)), candidate, "int64[2,5] 0..11")
    assert report.coverage.parameters_matched == 2


# -- what does not fit, and defects ----------------------------------------------------------------


def test_a_gru_that_resets_before_the_product_cannot_hold_two_biases() -> None:
    port = seq(L.GRU(5, return_sequences=True, reset_after=False), shape=STEPS)
    with pytest.raises(CannotCompare) as caught:
        crosscheck.check(scattered(recurrent("GRU")), port, spec(2, *STEPS))
    text = str(caught.value)
    assert text.startswith("reference parameter `inner.bias_hh_l0` (15,) has no place in the cand")
    assert "in Keras reset_after=True" in text


def test_two_gates_swapped_while_loading_are_seen() -> None:
    reference = scattered(recurrent("LSTM"))
    candidate = seq(L.LSTM(5, return_sequences=True), shape=STEPS)
    agrees(reference, candidate, spec(2, *STEPS))
    cell = candidate.layers[0].cell
    kernel = np.asarray(cell.kernel)
    parts = np.split(kernel, 4, axis=1)
    cell.kernel.assign(np.concatenate([parts[k] for k in (1, 0, 2, 3)], axis=1))
    report = crosscheck.check(reference, candidate, spec(2, *STEPS), weights="keep")
    first = report.first_divergence
    assert first is not None
    assert (first.phase, first.reference) == ("weights", "inner.weight_ih_l0")
    assert re.fullmatch(r"lstm.*/lstm_cell/kernel", first.candidate or "")


def test_a_transposed_square_kernel_is_seen() -> None:
    reference, candidate = scattered(nn.Linear(6, 6)), seq(L.Dense(6), shape=(6,))
    agrees(reference, candidate, spec(5, 6))
    dense = candidate.layers[0]
    dense.kernel.assign(np.asarray(dense.kernel).T)
    report = crosscheck.check(reference, candidate, spec(5, 6), weights="keep")
    assert report.first_divergence is not None
    assert (report.first_divergence.phase, report.first_divergence.reference) == (
        "weights",
        "weight",
    )


def test_a_wrong_part_of_a_packed_kernel_is_seen_in_its_gradient_and_value() -> None:
    reference = scattered(SelfAttention(8, 2))
    candidate = attention(L.MultiHeadAttention(2, 4))
    agrees(reference, candidate, spec(2, 5, 8))
    key = candidate.layers[1].key_dense.kernel
    key.assign(np.asarray(key)[:, ::-1])
    report = crosscheck.check(reference, candidate, spec(2, 5, 8), weights="keep")
    weights = [s for s in report.sites if s.phase == "weights" and s.verdict == "diverge"]
    assert [(s.reference, s.candidate) for s in weights] == [
        ("attn.in_proj_weight", "multi_head_attention/key/kernel")
    ]
