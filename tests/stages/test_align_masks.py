"""Stage 5: a mask that one side makes inside a layer and the other hands to it."""

from __future__ import annotations

import numpy as np

from tests.stages.graphs import Graph, aligned

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 6)).astype(np.float32)


def graph(*, factor: float = 1.0, mask_outside: bool = False) -> Graph:
    """A layer with two inputs that code between the layers makes, masked where x > 0."""
    made = Graph(outputs=("core",))
    made.add("left", "", lambda x: np.tanh(x), "input:x")
    made.add("right", "", lambda x: np.sin(x) * np.float32(factor), "input:x")
    made.add("mask", "", lambda x: x > 0, "input:x")
    if mask_outside:
        made.add("core", "C", lambda p, q, mask: p * q * mask, "left", "right", "mask")
    else:
        made.add("core", "C", lambda p, q: p * q * (X > 0), "left", "right")
    return made


def slots(candidate: Graph) -> list[tuple[str, str]]:
    found = aligned(graph().run(x=X), candidate.run(x=X), explicit={"core": "core"})
    return [(e.reference, e.candidate) for e in found.edges if e.pair.reference == "core"]


def test_a_mask_of_flags_takes_no_numbers_place() -> None:
    """The input that differs is paired with its counterpart, though the slots are two and three."""
    assert slots(graph(mask_outside=True)) == [("core", "core"), ("core:1", "core:1")]
    wrong = graph(mask_outside=True, factor=1.5)
    assert slots(wrong) == [("core", "core"), ("core:1", "core:1")]
