"""What no hypothesis says must not be verified by any: random errors, and two mistakes at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crosscheck.explain import causes

from .kit import evidence, forward, normal, parameter, told, weights
from .layers import NORM, Array, Map, f, layer_norm, softmax

W, B = normal((12, 12), 3), normal((12,), 4)
DENSE = (parameter("weight", W, "dense", ("in", "out")), parameter("bias", B, "dense"))
KERNEL = normal((4, 4, 3, 3))
CONV = (parameter("weight", KERNEL, "conv", ("out", "in", "h", "w")),)


def conv(x: Array) -> Array:
    """3 x 3, border 1, (B, C, H, W)."""
    from numpy.lib.stride_tricks import sliding_window_view

    seen = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    return np.einsum("bchwij,ocij->bohw", seen, KERNEL)


def pooled(x: Array) -> Array:
    return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).max((3, 5))


LAYERS: dict[str, tuple[Map, tuple[int, ...], Any]] = {
    "dense": (lambda x: x @ W + B, (4, 12), DENSE),
    "norm": (layer_norm, (6, 12), NORM),
    "gelu": (f("GELU (erf)"), (4, 12), ()),
    "softmax": (softmax, (2, 3, 5, 5), ()),
    "conv": (conv, (2, 4, 6, 6), CONV),
    "pool": (pooled, (2, 3, 6, 4), ()),
    "upsample": (lambda x: np.repeat(np.repeat(x, 2, 2), 2, 3), (2, 3, 4, 4), ()),
    "shuffle": (
        lambda x: x.reshape(2, 3, 2, 2, 3, 4).transpose(0, 1, 4, 2, 5, 3).reshape(2, 3, 6, 8),
        (2, 12, 3, 4),
        (),
    ),
}


def random_error(x: Array, y: Array, size: float, seed: int) -> Array:
    """Another function of the layer's input, drawn at random: no known mistake."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=3)
    mixed = np.sin(a * 5 * y + b) * np.cos(3 * c * np.roll(y, 1, -1)) + 0.3 * rng.normal()
    where = np.abs(np.sin(11 * y + seed)) < rng.uniform(0.2, 1.0)
    return np.asarray(y + size * mixed * where * (1.0 + 0.1 * float(x.reshape(-1)[0])))


@pytest.mark.parametrize("name", LAYERS)
def test_a_random_error_has_no_verified_cause(name: str) -> None:
    function, shape, known = LAYERS[name]
    for seed, size in enumerate((1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 3e-6)):

        def wrong(x: Array, seed: int = seed, size: float = size) -> Array:
            return random_error(x, function(x), size, seed)

        assert told(forward(function, wrong, shape, parameters=known)) == [], (name, seed, size)


@pytest.mark.parametrize("name", LAYERS)
def test_noise_has_no_verified_cause(name: str) -> None:
    """The same noise whatever the input, or other noise each time."""
    function, shape, known = LAYERS[name]
    for size, salt in itertools.product((1e-1, 1e-3, 1e-5), (0.0, 1e6)):

        def wrong(x: Array, size: float = size, salt: float = salt) -> Array:
            y = function(x)
            return y + size * normal(y.shape, 7 + int(salt * abs(float(x.reshape(-1)[0]))))

        assert told(forward(function, wrong, shape, parameters=known)) == [], (name, size, salt)


MISTAKES: dict[str, Callable[[Map], Map]] = {
    "a factor": lambda g: lambda x: 1.07 * g(x),
    "an odd power": lambda g: lambda x: g(x) + 0.2 * g(x) ** 3,
    "a clipped input": lambda g: lambda x: g(np.clip(x, -1.1, 1.4)),
    "a blurred input": lambda g: lambda x: g(0.8 * x + 0.2 * np.roll(x, 1, -1)),
    "a mixed batch": lambda g: lambda x: g(x) + 0.3 * np.roll(g(x), 1, 0) * g(x),
    "one place": lambda g: lambda x: g(x) + 0.1 * g(x) * (np.arange(g(x).shape[-1]) == 1),
}


@pytest.mark.parametrize("name", ["dense", "norm", "gelu", "conv", "pool"])
def test_two_mistakes_at_once_are_not_taken_for_one(name: str) -> None:
    function, shape, known = LAYERS[name]
    for one, two in itertools.combinations(MISTAKES, 2):
        wrong = MISTAKES[one](MISTAKES[two](function))
        assert told(forward(function, wrong, shape, parameters=known)) == [], (one, two)


def test_what_is_at_hand_explains_no_random_error() -> None:
    """Between layers there is much to try: sums, functions, attention of every value."""

    def at(seed: int) -> Any:
        q, k, v = (normal((2, 5, 12), 10 * seed + i) for i in range(3))
        heads = [a.reshape(2, 5, 3, 4).swapaxes(1, 2) for a in (q, k, v)]
        scores = softmax(heads[0] @ heads[1].swapaxes(-1, -2) / 2)
        right = (scores @ heads[2]).swapaxes(1, 2).reshape(2, 5, 12)
        wrong = random_error(q, right, 0.1, 5)
        nearby = {"q": q, "k": k, "v": v, "x (input)": normal((2, 5, 12), seed + 50)}
        return evidence("forward", right, wrong, kind="input", nearby=nearby)

    assert told(causes(at(0), lambda: at(1))) == []


def test_parameters_that_hold_something_else() -> None:
    for seed in range(6):
        other = normal((6, 6), 40 + seed)
        assert told(weights(W[:6, :6], other)) == []
        assert told(weights(W[:6, :6], W[:6, :6] + 1e-3 * other)) == []
        assert told(weights(W[:6, :6], W[:6, :6].T + 1e-3 * other)) == []
