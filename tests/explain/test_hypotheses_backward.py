"""Known mistakes in derivatives, parameter gradients and buffers are told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from crosscheck.explain import Evidence, Use, causes
from crosscheck.explain.elementwise import FUNCTIONS

from .kit import backward, evidence, normal, parameter, told
from .layers import GAMMA, NORM, Array, Map, f, layer_norm, softmax


def norm_vjp(x: Array, dy: Array, detached: bool = False) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    r = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    d = dy * GAMMA
    if detached:
        return np.asarray(d * r)
    hat = centred * r
    return np.asarray((d - d.mean(-1, keepdims=True) - hat * (d * hat).mean(-1, keepdims=True)) * r)


def test_vjps() -> None:
    gelu, tanh_form = FUNCTIONS["GELU (erf)"], FUNCTIONS["GELU (tanh form)"]
    found = backward(
        gelu.value,
        lambda x, dy: dy * gelu.derivative(x),
        lambda x, dy: dy * tanh_form.derivative(x),
    )
    assert told(found)[0] == "the derivative is that of GELU (tanh form), not of GELU (erf)"
    found = backward(
        softmax,
        lambda x, dy: softmax(x) * (dy - (softmax(x) * dy).sum(-1, keepdims=True)),
        lambda x, dy: softmax(x) * dy,
    )
    assert told(found)[0].startswith("the backward of softmax lacks its sum term")
    found = backward(layer_norm, norm_vjp, lambda x, dy: norm_vjp(x, dy, True), parameters=NORM)
    assert told(found)[0].startswith("the statistics are taken for constants")


@pytest.mark.parametrize("left_out", ["mean", "variance"])
def test_a_term_of_a_norms_derivative_that_is_left_out(left_out: str) -> None:
    def wrong(x: Array, dy: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        r = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        d, hat = dy * GAMMA, centred * r
        through_mean = d.mean(-1, keepdims=True)
        through_variance = hat * (d * hat).mean(-1, keepdims=True)
        return np.asarray((d - (through_variance if left_out == "mean" else through_mean)) * r)

    found = told(backward(layer_norm, norm_vjp, wrong, parameters=NORM))
    assert found[0] == f"the {left_out} is taken for a constant: its derivative is missing"


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_relu_at_zero(factor: float) -> None:
    def with_zeros(shape: tuple[int, ...], seed: int) -> Array:
        return np.maximum(normal(shape, seed), 0)

    found = backward(
        f("ReLU"),
        lambda x, dy: dy * (x > 0),
        lambda x, dy: dy * np.where(x == 0, factor, x > 0),
        draw=with_zeros,
    )
    assert f"the derivative at 0 is {factor:g}" in told(found)


def test_a_detached_consumer() -> None:
    def at(seed: int) -> object:
        a, b = normal((3, 8), seed), normal((3, 8), seed + 5)
        sent = {"attn": a, "mlp": b}
        return evidence("backward", a + b, a, kind="cotangent", nearby=sent)

    found = causes(at(1), lambda: at(2))  # type: ignore[arg-type, return-value]
    assert told(found) == ["what `attn` sends back, for that of `attn` + `mlp`"]


def test_parameter_gradients() -> None:
    def at(seed: int, candidate: Callable[[Array], Array]) -> object:
        x, dy = normal((5, 6), seed), normal((5, 4), seed + 7)
        return evidence(
            "parameter_gradient", dy.T @ x, candidate(dy.T @ x), kind="parameter", inputs=(x,)
        )

    cases: list[tuple[Map, str]] = [
        (lambda g: g / 5, "the gradient is scaled by 1/5, the batch size"),
        (lambda g: 2 * g, "the gradient is scaled by 2"),
        (lambda g: 0 * g, "the gradient is zero: it never arrives"),
        (lambda g: -g, "the sign is the opposite"),
    ]
    for candidate, statement in cases:
        found = causes(at(1, candidate), lambda c=candidate: at(2, c))  # type: ignore[arg-type, misc]
        assert told(found)[0] == statement


def test_a_tied_gradient_and_a_padding_row() -> None:
    def at(seed: int, row: bool) -> object:
        tokens = np.random.default_rng(seed).integers(0, 6, (3, 5))
        into, out, sent = normal((3, 5, 4), seed), normal((3, 5, 6), seed + 1), normal((3, 5, 4), 9)
        looked_up = np.zeros((6, 4))
        np.add.at(looked_up, tokens, sent)
        head = np.einsum("btr,btd->rd", out, into)
        frozen = looked_up.copy()
        frozen[1] = 0
        return evidence(
            "parameter_gradient",
            looked_up + head,
            frozen + head if row else looked_up,
            kind="parameter",
            uses=(Use("embedding", (tokens,), sent), Use("dense", (into,), out)),
        )

    row = causes(at(1, True), lambda: at(2, True))  # type: ignore[arg-type, return-value]
    assert told(row) == ["looking up row 1 sends no gradient, as with a padding index"]

    def reverse(seed: int) -> object:
        one: Evidence = at(seed, True)  # type: ignore[assignment]
        return replace(one, reference=one.candidate, candidate=one.reference)

    row = causes(reverse(1), lambda: reverse(2))  # type: ignore[arg-type, return-value]
    statement = "looking up row 1 sends a gradient, which the reference's padding index stops"
    assert told(row) == [statement]
    stale = causes(at(1, False), lambda: at(2, False))  # type: ignore[arg-type, return-value]
    assert told(stale) == ["what the dense layer that shares the parameter sends is missing"]


def test_a_padding_row_of_a_table_that_two_layers_look_up() -> None:
    """As an encoder and a decoder do: neither of them sends anything to that row."""

    def at(seed: int) -> object:
        tokens = [np.random.default_rng(seed + i).integers(0, 6, (3, 5)) for i in (0, 1)]
        sent = [normal((3, 5, 4), seed + i) for i in (8, 9)]
        right = np.zeros((6, 4))
        for some, given in zip(tokens, sent, strict=True):
            np.add.at(right, some, given)
        frozen = right.copy()
        frozen[1] = 0
        uses = tuple(Use("embedding", (t,), g) for t, g in zip(tokens, sent, strict=True))
        return evidence("parameter_gradient", frozen, right, kind="parameter", uses=uses)

    found = causes(at(1), lambda: at(2))  # type: ignore[arg-type, return-value]
    statement = "looking up row 1 sends a gradient, which the reference's padding index stops"
    assert told(found) == [statement]


@pytest.mark.parametrize("mistake", ["momentum", "biased", "left"])
def test_buffers(mistake: str) -> None:
    before = 1 + normal((4,), 3) ** 2
    known = parameter("variance", before, "norm")

    def at(seed: int) -> object:
        x = normal((3, 4, 2, 2), seed)
        biased = x.var((0, 2, 3))
        unbiased = biased * 12 / 11
        wrong = {
            "momentum": 0.1 * before + 0.9 * unbiased,
            "biased": 0.9 * before + 0.1 * biased,
            "left": before,
        }[mistake]
        right = 0.9 * before + 0.1 * unbiased
        return evidence(
            "buffer", right, wrong, kind="parameter", inputs=(x,), parameter=known, before=before
        )

    found = causes(at(1), lambda: at(2))  # type: ignore[arg-type, return-value]
    expected = {
        "momentum": "momentum 0.9 instead of 0.1",
        "biased": "the running variance is biased",
        "left": "the buffer is not updated",
    }
    assert told(found)[0].startswith(expected[mistake])


@pytest.mark.parametrize("padding", [False, True])
def test_of_a_row_looked_up_several_times_the_last_time_alone_counts(padding: bool) -> None:
    """What ``dW[ids] += dy`` does."""

    def at(seed: int) -> object:
        tokens, sent = np.random.default_rng(seed).integers(0, 6, (3, 5)), normal((3, 5, 4), seed)
        every, last = np.zeros((6, 4)), np.zeros((6, 4))
        np.add.at(every, tokens, sent)
        last[tokens] += sent
        if padding:
            every[0] = last[0] = 0
        uses = (Use("embedding", (tokens,), sent),)
        return evidence("parameter_gradient", every, last, kind="parameter", uses=uses)

    (found,) = told(causes(at(1), lambda: at(2)))  # type: ignore[arg-type, return-value]
    assert found.startswith("a row that is looked up several times gets the gradient of the last")
