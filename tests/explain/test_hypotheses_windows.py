"""Mistakes in dense layers, embeddings, convolutions and pooling: each is told from the others."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from .kit import backward, forward, normal, parameter, told
from .layers import Array, Map


def test_dense() -> None:
    w, b = normal((12, 12), 3), normal((12,), 4)
    known = (parameter("weight", w, "dense", ("in", "out")), parameter("bias", b, "dense"))

    def dense(x: Array) -> Array:
        return np.asarray(x @ w + b)

    def half(x: Array) -> Array:
        return x.astype(np.float16).astype(float)

    cases: list[tuple[Map, str]] = [
        (lambda x: x @ w.T + b, "multiplies by the transpose of the matrix"),
        (lambda x: x @ w, "the bias is missing"),
        (lambda x: x @ w + 2 * b, "the bias is counted twice"),
        (lambda x: x @ half(w) + b, "the weight is rounded to float16"),
        (
            lambda x: half(x) @ half(w) + b,
            "input and weight are rounded to float16 before the product",
        ),
        (lambda x: np.maximum(dense(x), 0), "ReLU is applied to the output"),
    ]
    for candidate, statement in cases:
        assert statement in told(forward(dense, candidate, parameters=known))


def test_a_matrix_behind_a_flatten_in_the_other_layout() -> None:
    w = normal((24, 5), 3)
    known = (parameter("weight", w, "dense", ("in", "out")),)
    order = np.arange(24).reshape(4, 6).T.reshape(-1)
    found = forward(lambda x: x @ w, lambda x: x @ w[order], (7, 24), parameters=known)
    assert told(found) == ["the rows of the matrix are in another order: flattened 6 x 4 for 4 x 6"]


def test_a_third_of_the_last_axis_without_gradient() -> None:
    def without_keys(x: Array, dy: Array) -> Array:
        return np.asarray(2 * x * dy * np.repeat([1.0, 0.0, 1.0], 4))

    found = backward(np.square, lambda x, dy: 2 * x * dy, without_keys)
    assert told(found) == ["the 3 parts of the last axis are scaled by 1, 0, 1"]


def test_embedding() -> None:
    table = normal((20, 6))
    known = (parameter("weight", table, "embedding", ("row", "dim")),)

    def tokens(shape: tuple[int, ...], seed: int) -> Array:
        return np.random.default_rng(seed).integers(0, 17, shape)

    offset = forward(lambda i: table[i], lambda i: table[i + 2], draw=tokens, parameters=known)
    assert told(offset)[0] == "reads the row 2 after the right one"
    scale = forward(
        lambda i: table[i], lambda i: table[i] * math.sqrt(6), draw=tokens, parameters=known
    )
    assert told(scale)[0] == "the rows are times the root of their length"


def conv(x: Array, k: Array, stride: int, top: int, left: int, out: tuple[int, int]) -> Array:
    """A convolution by loops over the output; x (B, C, H, W), k (O, C, kh, kw)."""
    y = np.zeros((len(x), len(k), *out))
    padded = np.pad(x, ((0, 0), (0, 0), (top, 9), (left, 9)))
    for i in range(out[0]):
        for j in range(out[1]):
            part = padded[:, :, i * stride : i * stride + 3, j * stride : j * stride + 3]
            y[:, :, i, j] = np.einsum("bchw,ochw->bo", part, k)
    return y


@pytest.mark.parametrize(
    ("candidate", "statement"),
    [
        (
            lambda x, k: conv(x, k, 2, 0, 0, (4, 3)),
            "stride 2 with a border of 0, 0 in front instead of stride 2 with a border of 1, 1 "
            "in front",
        ),
        (lambda x, k: conv(x, k[:, :, ::-1, ::-1], 2, 1, 1, (4, 3)), "the kernel is flipped"),
        (
            lambda x, k: conv(x, k.swapaxes(2, 3), 2, 1, 1, (4, 3)),
            "height and width of the kernel are exchanged",
        ),
        (
            lambda x, k: conv(x, k.swapaxes(0, 1), 2, 1, 1, (4, 3)),
            "input and output channels of the kernel are exchanged",
        ),
    ],
)
def test_convolution(candidate: Callable[[Array, Array], Array], statement: str) -> None:
    kernel = normal((4, 4, 3, 3))
    known = (parameter("weight", kernel, "conv", ("out", "in", "h", "w")),)
    found = forward(
        lambda x: conv(x, kernel, 2, 1, 1, (4, 3)),
        lambda x: candidate(x, kernel),
        (2, 4, 8, 6),
        parameters=known,
    )
    assert told(found)[0] == statement


def pooled(x: Array, border: float, mean: str = "") -> Array:
    """3 x 3 windows, stride 2, a border of 1; of a mean, whether the border counts."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 2), (1, 2)), constant_values=border)
    inside = np.pad(np.ones(x.shape), ((0, 0), (0, 0), (1, 2), (1, 2)))
    y = np.zeros((*x.shape[:2], 4, 3))
    for i in range(4):
        for j in range(3):
            at = (..., slice(2 * i, 2 * i + 3), slice(2 * j, 2 * j + 3))
            if mean:
                count = 9.0 if mean == "counted" else inside[at].sum((-1, -2))
                y[..., i, j] = padded[at].sum((-1, -2)) / count
            else:
                y[..., i, j] = padded[at].max((-1, -2))
    return y


def test_pooling() -> None:
    def below(shape: tuple[int, ...], seed: int) -> Array:
        return normal(shape, seed) - 1.0

    shape = (2, 3, 8, 6)
    zero = forward(lambda x: pooled(x, -np.inf), lambda x: pooled(x, 0.0), shape, draw=below)
    assert told(zero)[0] == "the border holds 0 for -inf"
    counted = forward(lambda x: pooled(x, 0, "inside"), lambda x: pooled(x, 0, "counted"), shape)
    assert told(counted)[0].startswith("the mean counts the border (count_include_pad)")
