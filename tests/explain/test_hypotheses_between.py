"""Hypotheses on the code between layers: functions, attention, terms that one side lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crosscheck.explain import causes

from .kit import backward, evidence, forward, normal, parameter, told
from .layers import Array, f, softmax

HEADS, SIZE = 4, 4


def between(
    make: Callable[[dict[str, Array]], Array],
    wrong: Callable[[dict[str, Array]], Array],
    draw: Callable[[int], dict[str, Array]],
    **more: Any,
) -> list[str]:
    """The verified statements for a value made of values at hand."""

    def at(seed: int) -> Any:
        nearby = draw(seed)
        return evidence("forward", make(nearby), wrong(nearby), kind="input", nearby=nearby, **more)

    return told(causes(at(0), lambda: at(1)))


def cut(value: Array, heads: int) -> Array:
    b, t, width = value.shape
    return value.reshape(b, t, heads, width // heads).swapaxes(1, 2)


def projected(seed: int, shared: int = 2) -> dict[str, Array]:
    widths = {"q": HEADS * SIZE, "k": shared * SIZE, "v": shared * SIZE}
    return {n: normal((2, 5, w), 7 * seed + i) for i, (n, w) in enumerate(widths.items())}


def scores(
    values: dict[str, Array],
    *,
    spread: Callable[[Array], Array] = lambda k: np.repeat(k, HEADS // 2, 1),
    cap: float = 0.0,
    scale: float = SIZE**-0.5,
    visible: Array | None = None,
) -> Array:
    s = cut(values["q"], HEADS) @ spread(cut(values["k"], 2)).swapaxes(-1, -2) * scale
    s = cap * np.tanh(s / cap) if cap else s
    visible = np.tril(np.ones((5, 5), bool)) if visible is None else visible
    return np.where(visible, s, -1e9)


def tiled(k: Array) -> Array:
    return np.tile(k, (1, HEADS // 2, 1, 1))


@pytest.mark.parametrize(
    ("wrong", "statement"),
    [
        ({"spread": tiled}, "heads of keys are spread over the queries' as by tile"),
        ({"scale": 1.0}, "scores are scaled by 1 (no scale); in the reference by 1/√(head size)"),
        ({"scale": 16**-0.5}, "scores are scaled by 1/(head size)"),
        ({"cap": 20.0}, "a soft cap of 20 is applied"),
        ({"visible": np.ones((5, 5), bool)}, "every position sees all others"),
        ({"visible": np.triu(np.ones((5, 5), bool))}, "the mask is turned around"),
        ({"visible": np.tril(np.ones((5, 5), bool), 1)}, "the mask lets a position see its succ"),
    ],
)
def test_scores_of_separate_heads(wrong: Any, statement: str) -> None:
    found = between(scores, lambda v: scores(v, **wrong), projected)
    assert any(text.startswith(statement) for text in found), found


def test_a_soft_cap_left_out() -> None:
    found = between(lambda v: scores(v, cap=5.0), scores, projected)
    assert found == ["the soft cap of 5 is missing"]


def weighted(
    values: dict[str, Array],
    *,
    spread: Callable[[Array], Array] = lambda k: np.repeat(k, HEADS // 2, 1),
    causal: bool = False,
    join: Callable[[Array], Array] = lambda y: y.swapaxes(1, 2),
) -> Array:
    visible = np.tril(np.ones((5, 5), bool)) if causal else np.ones((5, 5), bool)
    s = scores(values, spread=spread, visible=visible)
    y = softmax(np.where(s < -1e8, -np.inf, s)) @ spread(cut(values["v"], 2))
    return join(y).reshape(2, 5, -1)


@pytest.mark.parametrize(
    ("right", "wrong", "statement"),
    [
        ({}, {"causal": True}, "a position sees itself and the past alone"),
        ({"causal": True}, {}, "every position sees all others"),
        ({"causal": True}, {"causal": True, "spread": tiled}, "heads of keys are spread over"),
        ({}, {"join": lambda y: y}, "heads are put together by a reshape without moving them"),
        ({}, {"join": lambda y: y.transpose(0, 2, 3, 1)}, "heads are put together in turn"),
    ],
)
def test_fused_attention(right: Any, wrong: Any, statement: str) -> None:
    found = between(lambda v: weighted(v, **right), lambda v: weighted(v, **wrong), projected)
    assert any(text.startswith(statement) for text in found), found


# -- functions of a value at hand ------------------------------------------------------------------


def image(seed: int) -> dict[str, Array]:
    return {"conv": normal((2, 4, 5, 6), seed)}


@pytest.mark.parametrize(
    ("right", "wrong", "statement"),
    [
        (f("GELU (erf)"), f("GELU (tanh form)"), "the candidate computes GELU (tanh form) inst"),
        (
            lambda x: x.reshape(2, -1),
            lambda x: x.transpose(0, 2, 3, 1).reshape(2, -1),
            "axes 2, 3, 1 are put together in this order",
        ),
        (
            lambda x: np.repeat(np.repeat(x, 2, 2), 2, 3),
            lambda x: (linear(10, 5) @ x) @ linear(12, 6).T,
            "linear, half-pixel coordinates",
        ),
    ],
)
def test_a_function_without_a_layer(right: Any, wrong: Any, statement: str) -> None:
    found = between(lambda v: right(v["conv"]), lambda v: wrong(v["conv"]), image)
    assert any(text.startswith(statement) for text in found), found


def linear(m: int, n: int) -> Array:
    """Weights (m, n) of a linear resize with half-pixel coordinates."""
    c = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    low = np.minimum(np.floor(c).astype(int), n - 2)
    matrix = np.zeros((m, n))
    matrix[np.arange(m), low], matrix[np.arange(m), low + 1] = 1 - (c - low), c - low
    return matrix


def turn(x: Array, base: float = 1e4, *, pairs: str = "half", start: int = 0) -> Array:
    t, d = x.shape[-2:]
    angle = np.outer(start + np.arange(t), base ** (-np.arange(0, d, 2) / d))
    y = np.empty_like(x)
    one, two = (
        (slice(0, d // 2), slice(d // 2, d))
        if pairs == "half"
        else (slice(0, d, 2), slice(1, d, 2))
    )
    a, b = x[..., one], x[..., two]
    y[..., one], y[..., two] = (
        a * np.cos(angle) - b * np.sin(angle),
        a * np.sin(angle) + b * np.cos(angle),
    )
    return y


@pytest.mark.parametrize(
    ("wrong", "statement"),
    [
        ({"pairs": "interleaved"}, "pairs are interleaved and angles laid out interleaved"),
        ({"base": 5e5}, "base 500000 instead of 10000"),
        ({"base": 7777.0}, "base 7777 instead of 10000"),
        ({"start": 1}, "positions are counted from 1 instead of 0"),
    ],
)
def test_rotary(wrong: Any, statement: str) -> None:
    found = forward(turn, lambda x: turn(x, **wrong), (2, 3, 6, 8))
    assert told(found)[0].startswith(statement), found


def test_rotary_backward() -> None:
    def inverse(x: Array, dy: Array, pairs: str = "half") -> Array:
        """Turned by the negative angle: the second of every pair with the other sign."""
        mirrored = dy.copy()
        second = slice(4, 8) if pairs == "half" else slice(1, 8, 2)
        mirrored[..., second] *= -1
        y = turn(mirrored, pairs=pairs)
        y[..., second] *= -1
        return y

    found = told(backward(turn, inverse, lambda x, dy: turn(dy), (2, 3, 6, 8)))
    assert found == ["the way back turns in the direction of forward, not against it"]
    found = told(backward(turn, inverse, lambda x, dy: inverse(x, dy, "interleaved"), (2, 3, 6, 8)))
    assert found == ["the way back turns interleaved pairs, forward half-split ones"]


# -- what one side lacks ---------------------------------------------------------------------------


def embedded(seed: int) -> dict[str, Array]:
    names = {"word": (2, 5, 6), "position": (5, 6), "token_type": (2, 5, 6)}
    return {n: normal(s, 9 * seed + i) for i, (n, s) in enumerate(names.items())}


def total(values: dict[str, Array]) -> Array:
    return values["word"] + values["position"] + values["token_type"]


def test_a_term_that_the_candidate_has_not() -> None:
    found = between(
        total,
        lambda v: v["word"] + v["position"],
        embedded,
        absent={"token_type": ("token_type.weight",)},
    )
    assert found[0] == (
        "the candidate has no `token_type` and does not use `token_type.weight`; "
        "its output is the difference"
    )
    assert found[1] == "`word` + `position` for `word` + `position` + `token_type`"


def test_a_term_without_a_partner_that_does_not_explain_it() -> None:
    found = between(total, lambda v: total(v) - 2 * v["word"], embedded, absent={"token_type": ()})
    assert not any("no `token_type`" in text for text in found)


def test_a_layer_and_a_factor_that_the_candidate_has_not() -> None:
    def draw(seed: int) -> dict[str, Array]:
        x = normal((3, 8), seed)
        return {"fc": x, "act": np.sin(x), "gate": 1.5 + np.cos(x)}

    found = between(lambda v: v["act"], lambda v: v["fc"], draw, absent={"act": ()})
    assert "the candidate has no `act`; `fc` takes the place of its output" in found
    found = between(lambda v: v["act"] * v["gate"], lambda v: v["act"], draw, absent={"gate": ()})
    assert "the candidate has no `gate`; its output is the quotient" in found


# -- other shapes, rounding, dropping --------------------------------------------------------------


def test_a_window_more() -> None:
    def pool(x: Array, last: bool) -> Array:
        h, w = x.shape[2], x.shape[3]
        padded = np.pad(x, ((0, 0), (0, 0), (0, h % 2), (0, w % 2)), constant_values=-np.inf)
        y = padded.reshape(*x.shape[:2], (h + 1) // 2, 2, (w + 1) // 2, 2).max((3, 5))
        return y if last else y[:, :, : h // 2, : w // 2]

    found = forward(lambda x: pool(x, False), lambda x: pool(x, True), (2, 3, 5, 7))
    assert told(found) == ["a window that hangs over the end is kept (ceil_mode)"]
    found = forward(lambda x: pool(x, True), lambda x: pool(x, False), (2, 3, 5, 7))
    assert told(found) == ["a window that hangs over the end is left out (no ceil_mode)"]


def test_a_value_rounded_by_an_honest_candidate() -> None:
    """Its own rounding moves a few elements over the middle between two half-precision numbers."""

    def near(x: Array) -> Array:
        return (np.tanh(x.astype(np.float32)) * np.float32(1 + 1e-7)).astype(np.float16)

    found = forward(np.tanh, lambda x: near(x).astype(float), (60, 50))
    assert told(found)[0] == "the value is rounded to float16"


def test_dropout_that_is_on() -> None:
    mask = np.random.default_rng(0).random((20, 30)) < 0.75
    found = forward(np.sin, lambda x: np.where(mask, np.sin(x) / 0.75, 0.0), (20, 30))
    assert told(found)[0].startswith("dropout is on: 2")
    other = forward(
        np.sin,
        lambda x: np.where(np.roll(mask, int(100 * abs(x[0, 0]))), np.sin(x) / 0.75, 0.0),
        (20, 30),
    )
    assert not told(other)


def test_a_scale_rounded_to_half_precision() -> None:
    table = normal((20, 24))
    known = (parameter("weight", table, "embedding", ("row", "dim")),)
    root = float(np.float16(24**0.5))
    found = forward(
        lambda i: table[i] * 24**0.5,
        lambda i: table[i] * root,
        draw=lambda shape, seed: np.random.default_rng(seed).integers(0, 20, shape),
        parameters=known,
    )
    assert "the factor √24 is rounded to float16" in told(found)


# -- sums and routing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "statement"),
    [
        (lambda v: total(v) ** 2 - v["word"], "`word` is missing from the sum"),
        (lambda v: total(v) ** 2 + v["position"], "`position` is added once more"),
        (lambda v: total(v) ** 2 - 2 * v["word"], "`word` is subtracted, not added"),
    ],
)
def test_one_term_of_what_is_no_plain_sum(wrong: Any, statement: str) -> None:
    assert between(lambda v: total(v) ** 2, wrong, embedded) == [statement]


def test_gates_that_are_not_divided_by_their_sum() -> None:
    def draw(seed: int) -> dict[str, Array]:
        return {"router": normal((2, 5, 4), seed), "experts": normal((2, 5, 4, 6), seed + 70)}

    def mixed(values: dict[str, Array], divided: bool) -> Array:
        p = softmax(values["router"])
        chosen = np.where(p >= np.sort(p, -1)[..., -2:-1], p, 0.0)
        chosen = chosen / chosen.sum(-1, keepdims=True) if divided else chosen
        return np.einsum("bte,bteh->bth", chosen, values["experts"])

    for divided, how in ((True, "not divided by their sum"), (False, "divided by their sum")):
        found = between(
            lambda v, d=divided: mixed(v, d), lambda v, d=divided: mixed(v, not d), draw
        )
        assert found == [f"the gates of the 2 chosen of `router` are {how}"]


def test_one_slice() -> None:
    def last(x: Array, made: Callable[[Array], Array] = np.sin) -> Array:
        y = made(x)
        y[-1] = 0.0
        return y

    def repeated(x: Array) -> Array:
        y = np.sin(x)
        y[:, 0] = y[:, 1]
        return y

    def padded(x: Array) -> Array:
        y = np.sin(x)
        y[3] = 0.0
        return y

    assert told(forward(np.sin, last, (5, 7))) == ["index 4 of 5 along axis 0 is zero"]
    found = told(forward(padded, lambda x: last(x, padded), (5, 7)))
    assert found == ["index 4 of 5 along axis 0 is zero"]  # and no copy of the row that must be
    found = told(forward(np.sin, repeated, (5, 7)))
    assert found == ["index 0 of 7 along axis 1 holds what index 1 should"]


def test_log_softmax() -> None:
    def log_softmax(x: Array, axis: int = -1) -> Array:
        return np.log(softmax(x, axis))

    found = told(forward(log_softmax, softmax))
    assert found == ["the softmax without its logarithm"]
    found = told(forward(log_softmax, lambda x: log_softmax(x, 0)))
    assert found == ["log-softmax over axis 0 instead of axis 1"]
    found = told(backward(log_softmax, log_softmax_vjp, lambda x, dy: dy))
    assert "the backward of log-softmax lacks its sum term: g for g − s·Σ g" in found


def log_softmax_vjp(x: Array, dy: Array) -> Array:
    return dy - softmax(x) * dy.sum(-1, keepdims=True)


def test_a_table_that_the_code_itself_adds() -> None:
    table = parameter("positions", normal((1, 5, 6), 3))

    def moved(values: dict[str, Array]) -> Array:
        return values["word"] + np.roll(table.value, -1, 1)

    def draw(seed: int) -> dict[str, Array]:
        return {"word": normal((2, 5, 6), seed)}

    def right(values: dict[str, Array]) -> Array:
        return values["word"] + table.value

    found = between(right, moved, draw, parameters=(table,))
    assert found == ["`positions` is read 1 after the right place along its axis 1"]
    found = between(right, lambda v: v["word"], draw, parameters=(table,))
    assert found == ["`positions` is not added"]


def test_parts_joined_in_the_other_order() -> None:
    def joined(x: Array, swapped: bool) -> Array:
        parts = [np.sin(x[:, :3]), np.cos(x[:, 3:])]
        return np.concatenate(parts[::-1] if swapped else parts, axis=1)

    found = forward(lambda x: joined(x, False), lambda x: joined(x, True), (4, 11))
    assert told(found) == ["the first 3 of 11 along axis 1 stand behind the others"]


def test_two_halves_exchanged_are_said_once() -> None:
    """And not again as four quarters."""

    def draw(seed: int) -> dict[str, Array]:
        return {"a": normal((3, 8, 5), seed), "b": normal((3, 8, 5), 50 + seed)}

    found = between(
        lambda v: np.concatenate([v["a"], v["b"]], 1),
        lambda v: np.concatenate([v["b"], v["a"]], 1),
        draw,
    )
    assert found == ["the 2 parts of axis 1 stand in the order (1, 0)"]
