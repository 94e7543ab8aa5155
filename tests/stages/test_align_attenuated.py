"""A defect whose effect has faded where the sides meet again is still found where it begins."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.stages.graphs import Graph, forced_alignment, pairs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 6)).astype(np.float32)
W = [np.float32(RNG.normal(size=(6, 6)) / 2) for _ in range(3)]
ANCHORS = [("norm", "norm"), ("proj", "proj")]


def block(
    function: Callable[[np.ndarray], np.ndarray] = np.tanh, scale: float = 1.0, stream: float = 300
) -> Graph:
    """A residual block: what its layers add is small beside the stream."""
    graph = Graph()
    graph.add("norm", "Norm", lambda x: np.float32(scale) * x, "input:x")
    graph.add("act", "Act", function, "norm")
    graph.add("proj", "Linear", lambda x: x @ W[0], "act")
    graph.add("", "", lambda x, y: np.float32(stream) * x + y, "input:x", "proj")
    graph.add("next", "Linear", lambda x: x @ W[1], "")
    graph.outputs = ("next",)
    return graph


@pytest.mark.parametrize("anchors", [ANCHORS, []], ids=["weights", "names"])
def test_a_wrong_scale_behind_a_large_residual(anchors: list[tuple[str, str]]) -> None:
    found = forced_alignment(block().run(x=X), block(scale=1.01), anchors, x=X)
    assert pairs(found) == {name: name for name in ("norm", "act", "proj", "next")}


def test_a_wrong_activation_behind_a_large_residual() -> None:
    def other(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.abs(x))

    found = forced_alignment(block().run(x=X), block(other), ANCHORS, x=X)
    assert {"norm", "proj", "next"} <= set(pairs(found))


def other_cut(factor: float) -> Graph:
    """The first layer returns something else, which the code behind it makes up for."""
    graph = Graph()
    graph.add("norm", "Norm", lambda x: x + np.float32(0.1), "input:x")
    graph.add("", "", lambda x: np.tanh((x - np.float32(0.1)) * np.float32(factor)), "norm")
    graph.add("proj", "Linear", lambda x: x @ W[0], "")
    graph.add("stream", "", lambda x, y: np.float32(30) * x + y, "input:x", "proj")
    graph.add("next", "Linear", lambda x: x @ W[1], "stream")
    graph.outputs = ("next",)
    return graph


@pytest.mark.parametrize("factor", [1.0, 1.0005], ids=["honest", "wrong"])
def test_another_cut_is_not_forced_together(factor: float) -> None:
    """Even with a small defect behind it: the wrong pair makes what follows worse."""
    found = forced_alignment(block(stream=30).run(x=X), other_cut(factor), ANCHORS, x=X)
    assert pairs(found) == {"proj": "proj", "next": "next"}
    assert found.unmatched_candidate == ("norm",)


def test_a_second_output_is_traced_to_its_layer() -> None:
    """All outputs are shown at the end: the first one is no bound for what made the second."""

    def pooled(scale: float) -> Graph:
        graph = Graph()
        graph.add("encoder", "Linear", lambda x: x @ W[0], "input:x")
        graph.add("dense", "Linear", lambda x: np.float32(scale) * (x @ W[1]), "encoder")
        graph.add("tanh", "Tanh", np.tanh, "dense")
        graph.outputs = ("encoder", "tanh")
        return graph

    found = forced_alignment(pooled(1.0).run(x=X), pooled(1.3), [("dense", "dense")], x=X)
    assert pairs(found) == {name: name for name in ("encoder", "dense", "tanh")}
