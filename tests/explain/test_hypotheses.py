"""Each known mistake is told apart from the others: the first verified statement names it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from crosscheck.explain import causes
from crosscheck.explain.elementwise import erf, sigmoid

from .kit import evidence, forward, normal, parameter, told, weights
from .layers import BETA, GAMMA, NORM, Array, Map, f, layer_norm, softmax

# -- weights ---------------------------------------------------------------------------------------

W = normal((6, 6), 1)


@pytest.mark.parametrize(
    ("candidate", "statement"),
    [
        (W.T, "the matrix is the transpose of the reference's"),
        (-W, "the sign is the opposite"),
        (2.5 * W, "the values are those of the reference times 2.5"),
        (np.zeros_like(W), "every element is 0, as before anything was loaded"),
        (
            W[[2, 3, 0, 1, 4, 5]],
            "the 3 blocks along axis 0 are the reference's in the order (1, 0, 2)",
        ),
        (W.astype(np.float16).astype(float), "the values are rounded to float16"),
        (W[[0, 2, 4, 1, 3, 5]], "axis 0 is read as 3 x 2 with the two exchanged"),
        (W + 1, "1 + w for w"),
    ],
)
def test_weights(candidate: Array, statement: str) -> None:
    assert told(weights(W, candidate))[0] == statement


def test_packed_rows_split_by_head() -> None:
    packed = normal((36, 7))
    by_head = packed.reshape(3, 4, 3, 7).swapaxes(0, 1).reshape(36, 7)
    assert "axis 0 is split by head first: 4 heads of 3 parts each" in told(
        weights(packed, by_head)
    )
    assert "axis 0 is split by part first: 3 parts of 4 heads each" in told(
        weights(by_head, packed)
    )


def test_one_added_to_the_forget_gate() -> None:
    bias = normal((12,))
    known = parameter("bias", bias, "lstm", ("gates:ifgo",))
    found = weights(bias, bias + np.repeat([0.0, 1.0, 0.0, 0.0], 3), parameter=known)
    assert told(found) == ["+1 is added to the part of gate f"]


def test_a_parameter_that_holds_another() -> None:
    other = normal((6, 6), 2)
    found = weights(W, other, others={"fc2.weight": other})
    assert told(found) == ["the values are those of the reference's `fc2.weight`"]


def test_a_kernel_flipped() -> None:
    kernel = normal((3, 2, 3, 3))
    known = parameter("weight", kernel, "conv", ("out", "in", "h", "w"))
    found = weights(kernel, kernel[:, :, ::-1, ::-1], parameter=known)
    assert told(found) == ["the kernel is flipped in h and w"]


def test_one_element_is_too_little_to_solve_for_a_factor() -> None:
    assert not told(weights(np.array([2.0]), np.array([3.1])))


# -- any output ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidate", "statement"),
    [
        (lambda x: 1.01 * np.sin(x), "the output is scaled by 1.01"),
        (lambda x: np.sin(x) / math.sqrt(12), "the output is scaled by 1/√12"),
        (lambda x: -np.sin(x), "the sign is the opposite"),
        (lambda x: np.sin(x) + 0.25, "0.25 is added to the output"),
        (
            lambda x: np.roll(np.sin(x), 1, 1),
            "the elements are moved by 1 along axis 1, around the end",
        ),
        (lambda x: np.maximum(np.sin(x), 0), "ReLU is applied to the output"),
        (lambda x: np.sin(x) + x, "the input is added to the output"),
        (lambda x: np.sin(x) - x, "the residual is missing: the input is not added"),
        (lambda x: np.sin(x).astype(np.float16).astype(float), "the value is rounded to float16"),
        (lambda x: np.zeros_like(x), "it is zero"),
    ],
)
def test_any_layer(candidate: Map, statement: str) -> None:
    assert told(forward(np.sin, candidate))[0] == statement


def test_a_square_output_transposed() -> None:
    found = forward(np.sin, lambda x: np.sin(x).swapaxes(1, 2), (3, 5, 5))
    assert told(found)[0] == "the axes are the reference's in the order (0, 2, 1)"


# -- activations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("GELU (erf)", "GELU (tanh form)"),
        ("GELU (erf)", "x·σ(1.702x)"),
        ("SiLU", "ReLU"),
        ("hard swish (slope 1/6)", "hard sigmoid (slope 1/6)"),
        ("hard sigmoid (slope 1/6)", "hard sigmoid (slope 0.2)"),
        ("tanh", "the identity"),
    ],
)
def test_another_activation(ours: str, theirs: str) -> None:
    found = forward(f(ours), f(theirs))
    assert told(found)[0] == f"the candidate computes {theirs} instead of {ours}"


def test_relu6_is_named_only_where_its_bound_shows() -> None:
    def leaky(x: Array) -> Array:
        return np.where(x > 0, x, 0.1 * x)

    low = told(forward(leaky, f("ReLU")))
    assert "the candidate computes ReLU" in low and not any("ReLU6" in text for text in low)
    high = told(forward(leaky, f("ReLU6"), draw=lambda shape, seed: 6 * normal(shape, seed)))
    assert high[0] == "the candidate computes ReLU6"


def test_the_error_function() -> None:
    x = np.concatenate([np.linspace(-7, 7, 1001), [0.0, np.inf, -np.inf]])
    assert np.abs(erf(x) - [math.erf(v) for v in x]).max() < 1e-15
    assert np.isnan(erf(np.array([np.nan]))).all()


def test_slopes() -> None:
    leaky = forward(lambda x: np.where(x > 0, x, 0.01 * x), lambda x: np.where(x > 0, x, 0.2 * x))
    assert told(leaky)[0] == "negative slope 0.2 instead of 0.01"
    elu = forward(
        lambda x: np.where(x > 0, x, np.expm1(x)), lambda x: np.where(x > 0, x, 0.5 * np.expm1(x))
    )
    assert told(elu)[0] == "alpha 0.5 instead of 1"
    swish = forward(f("SiLU"), lambda x: x * sigmoid(1.3 * x))
    assert told(swish)[0] == "beta 1.3 instead of 1"


def test_softmax_over_another_axis() -> None:
    found = forward(softmax, lambda x: softmax(x, 1), (3, 5, 7))
    assert told(found)[0] == "softmax over axis 1 instead of axis 2"


# -- norms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidate", "statement"),
    [
        (lambda x: layer_norm(x, 1e-6), "eps 1e-06 instead of 1e-05"),
        (lambda x: layer_norm(x, 1e-3), "eps 0.001 instead of 1e-05"),
        (lambda x: layer_norm(x, weight=np.ones(12)), "the weight (gamma) is ignored"),
        (lambda x: layer_norm(x, weight=1 + GAMMA), "multiplies by 1 + weight"),
        (lambda x: layer_norm(x) - BETA, "the bias is missing"),
    ],
)
def test_layer_norm(candidate: Map, statement: str) -> None:
    def small(shape: tuple[int, ...], seed: int) -> Array:
        return 0.05 * normal(shape, seed)

    found = forward(layer_norm, candidate, (6, 12), draw=small, parameters=NORM)
    assert statement in told(found)[:2]


def test_an_eps_too_small_to_be_seen_is_called_small() -> None:
    found = forward(layer_norm, lambda x: layer_norm(x, 1e-12), parameters=NORM)
    assert told(found)[0].startswith("eps at most 1e-0")


def test_eps_outside_the_root() -> None:
    found = forward(layer_norm, lambda x: layer_norm(x, outside=True), parameters=NORM)
    assert "eps 1e-05 added to the deviation, not to the variance" in told(found)


@pytest.mark.parametrize(
    ("groups", "strided", "statement"),
    [
        (3, False, "group norm with 3 groups for 2"),
        (1, False, "group norm with 1 group for 2"),
        (6, False, "group norm with 6 groups for 2"),
        (2, True, "the groups are interleaved: channel c is in group c mod 2"),
    ],
)
def test_group_norm(groups: int, strided: bool, statement: str) -> None:
    gamma, beta = normal((12,), 5), normal((12,), 6)

    def norm(x: Array, groups: int = 2, strided: bool = False) -> Array:
        sizes = (12 // groups, groups) if strided else (groups, 12 // groups)
        shape, axes = (4, *sizes, -1), (1, 3) if strided else (2, 3)
        cut = x.reshape(shape)
        mean, variance = cut.mean(axes, keepdims=True), cut.var(axes, keepdims=True)
        hat = ((cut - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
        return hat * gamma[:, None] + beta[:, None]

    known = tuple(parameter(*of, "norm") for of in (("weight", gamma), ("bias", beta)))
    found = forward(norm, lambda x: norm(x, groups, strided), (4, 12, 5), parameters=known)
    assert told(found)[0] == statement
    rows = forward(
        lambda x: norm(x[..., None])[..., 0],
        lambda x: norm(x[..., None], groups, strided)[..., 0],
        (4, 12),
        parameters=known,
    )
    assert statement in told(rows)


def test_batch_norm() -> None:
    mean, variance = normal((12,), 7), 1 + normal((12,), 8) ** 2
    buffers = (parameter("mean", mean), parameter("variance", variance))

    def norm(x: Array, m: Array, v: Array, eps: float = 1e-5) -> Array:
        at = (slice(None), None, None)
        return np.asarray((x - m[at]) / np.sqrt(v[at] + eps) * GAMMA[at] + BETA[at])

    def running(x: Array) -> Array:
        return norm(x, mean, variance)

    shape, known = (3, 12, 4, 5), (*NORM, *buffers)
    found = forward(running, lambda x: norm(x, mean, variance, 1e-3), shape, parameters=known)
    assert told(found)[0] == "eps 0.001 instead of 1e-05"
    batch = forward(
        running, lambda x: norm(x, x.mean((0, 2, 3)), x.var((0, 2, 3))), shape, parameters=known
    )
    assert told(batch)[0] == "normalises by the statistics of the batch"


# -- the code between layers -----------------------------------------------------------------------


def test_a_sum_of_other_terms() -> None:
    def at(seed: int) -> object:
        a, b, c = (normal((3, 8), 3 * seed + i) for i in range(3))
        return evidence(
            "forward", a + b, c + b, kind="input", nearby={"x (input)": a, "attn": b, "ln": c}
        )

    found = causes(at(1), lambda: at(2))  # type: ignore[arg-type, return-value]
    assert told(found) == ["`attn` + `ln` for `x (input)` + `attn`"]


@pytest.mark.parametrize(
    ("candidate", "statement"),
    [
        (
            lambda q, k, hide: np.where(np.triu(hide, 2), -np.inf, q @ k.swapaxes(-1, -2) / 2),
            "the mask lets a position see its successor",
        ),
        (
            lambda q, k, hide: np.where(np.triu(hide, 1), -np.inf, q @ k.swapaxes(-1, -2)),
            "scores are divided by 1: the scale is missing; in the reference by the root of the "
            "head size",
        ),
        (
            lambda q, k, hide: np.where(np.triu(hide, 1), -np.inf, k @ q.swapaxes(-1, -2) / 2),
            "k and q of the reference are taken for q and k",
        ),
    ],
)
def test_attention(candidate: Callable[..., Array], statement: str) -> None:
    hide = np.ones((5, 5), dtype=bool)

    def at(seed: int) -> object:
        packed = normal((2, 5, 3 * 3 * 4), seed)
        q, k, _ = packed.reshape(2, 5, 3, 3, 4).transpose(2, 0, 3, 1, 4)
        right = np.where(np.triu(hide, 1), -np.inf, q @ k.swapaxes(-1, -2) / 2)
        return evidence(
            "forward", right, candidate(q, k, hide), kind="input", nearby={"c_attn": packed}
        )

    found = causes(at(1), lambda: at(2))  # type: ignore[arg-type, return-value]
    assert told(found)[0] == statement
