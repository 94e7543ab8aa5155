"""Stage 7, n and scale: from shapes and axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from crosscheck.adapters.base import Parameter
from crosscheck.aligning.layout import Layout
from crosscheck.comparisons import Item
from crosscheck.judging.reductions import Reductions
from crosscheck.trace import RunInfo, Trace


def parameter(
    name: str, shape: tuple[int, ...], kind: str, axes: tuple[str, ...] | None, role: str = "weight"
) -> Parameter:
    return Parameter(name, np.ones(shape, np.float32), name.rpartition(".")[0], role, kind, axes)


PARAMETERS = (
    parameter("fc.weight", (5, 7), "dense", ("out", "in")),
    parameter("fc.bias", (5,), "dense", ("out",), "bias"),
    parameter("net.conv.weight", (6, 3, 2, 4), "conv", ("out", "in", "h", "w")),
    parameter("net.depthwise.weight", (2, 3, 6, 1), "conv", ("h", "w", "channel", "mult")),
    parameter("norm.weight", (768,), "norm", ("channel",)),
    parameter("emb.weight", (100, 8), "embedding", ("row", "dim")),
    parameter("mystery.W", (7, 9), "other", None),
    parameter("vector.scale", (9,), "other", None, "other"),
)
SHAPES = {
    "input:x": (4, 7),
    "fc": (4, 5),
    "fc#2": (4, 5),
    "net.conv": (4, 6, 8, 8),
    "net.depthwise": (4, 8, 8, 6),
    "net": (4, 10),
    "norm": (4, 3, 768),
    "emb": (4, 3, 8),
    "mystery": (4, 3, 9),
    "vector": (4, 3, 9),
    "pool": (4, 6),
}
INPUTS = {"fc": (4, 7), "pool": (4, 6, 8, 8), "net": (4, 3, 8, 8), "mystery": (4, 3, 7)}


def reductions(aligned: set[str] | None = None, **values: np.ndarray) -> Reductions:
    table: dict[Any, np.ndarray] = {("activation", s): np.ones(n) for s, n in SHAPES.items()}
    table |= {("input", s): np.full(n, -3.0) for s, n in INPUTS.items()}
    table |= {("cotangent", s): np.full(n, 2.0) for s, n in SHAPES.items()}
    info = RunInfo(("input:x",), (), dict.fromkeys(SHAPES, "L"), {}, {})
    known = set(SHAPES) if aligned is None else aligned
    return Reductions(PARAMETERS, Trace(table, info, ""), frozenset(known))


def length(site: str, phase: Any = "forward", kind: str = "activation", **options: Any) -> float:
    one = Item(phase, kind, site, site, Layout(), "value")
    return reductions(**options).length(one)


@pytest.mark.parametrize(
    ("site", "forward", "backward"),
    [
        ("fc", 7, 5),
        ("fc#2", 7, 5),
        ("net.conv", 3 * 2 * 4, 6 * 2 * 4),
        ("net.depthwise", 2 * 3, 2 * 3 * 1),
        ("norm", 1, 1),
        ("emb", 1, 1),
        ("mystery", 9, 9),
        ("vector", 1, 1),
        ("pool", 64, 1),
        ("input:x", 1, 1),
    ],
)
def test_terms_of_a_layer(site: str, forward: float, backward: float) -> None:
    assert length(site) == forward
    assert length(site, "backward", "input_cotangent") == backward
    assert length(site, "backward", "cotangent") == 4
    assert length(site, kind="input") == length(site, "weights", "parameter") == 1


def test_a_stretch_has_the_longest_sum_of_the_layers_inside_it() -> None:
    assert length("net") == max(4 * 3 * 8 * 8 / 40, 1)
    assert length("net", aligned={"net"}) == 24
    assert length("net.conv#2", aligned={"net.conv"}) == 24 if "net.conv#2" in SHAPES else True
    assert length("fc", aligned={"net"}) == 7 / 5  # the layer's own sum is not in this stretch


def gradient(name: str) -> tuple[float, float]:
    one = Item("parameter_gradient", "parameter", name, name, Layout(), "parameter")
    r = reductions()
    return r.length(one), r.scale(one)


@pytest.mark.parametrize(
    ("name", "n", "rms_x"),
    [
        ("fc.weight", 4, 3.0),
        ("fc.bias", 4, 1.0),
        ("norm.weight", 12, 1.0),
        ("net.conv.weight", 4 * 8 * 8, 1.0),
        ("mystery.W", 12, 1.0),
        ("vector.scale", 12, 1.0),
    ],
)
def test_terms_and_size_of_a_gradient(name: str, n: float, rms_x: float) -> None:
    size = next(p for p in PARAMETERS if p.name == name).value.size
    got, scale = gradient(name)
    assert got == n
    assert scale == pytest.approx(math.sqrt(size * n) * 2 * rms_x)


def test_an_embeddings_gradient_has_no_scale_of_its_own() -> None:
    assert gradient("emb.weight") == (1.0, 0.0)


def test_only_gradients_have_a_scale() -> None:
    one = Item("forward", "activation", "fc", "fc", Layout(), "value")
    assert reductions().scale(one) == 0.0


def test_scale_is_the_size_of_a_gradient_whose_terms_have_random_signs() -> None:
    rng = np.random.default_rng(1)
    ratios = []
    for _ in range(20):
        x, dy = rng.normal(size=(400, 7)), rng.normal(size=(400, 5))
        values: dict[Any, np.ndarray] = {
            ("activation", "fc"): dy,
            ("input", "fc"): x,
            ("cotangent", "fc"): dy,
        }
        info = RunInfo((), (), {"fc": "Linear"}, {}, {})
        r = Reductions(PARAMETERS[:1], Trace(values, info, ""), frozenset({"fc"}))
        one = Item("parameter_gradient", "parameter", "fc.weight", "k", Layout(), "parameter")
        ratios.append(np.linalg.norm(dy.T @ x) / r.scale(one))
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)
