"""Layers that the two sides cut differently, with something wrong between them."""

from __future__ import annotations

import numpy as np
import pytest

from crosscheck.aligning.align import Aligner
from tests.stages.graphs import Graph, forced_alignment, pairs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 6)).astype(np.float32)
W = [np.float32(RNG.normal(size=(6, 6)) / 2) for _ in range(3)]


def heads(split: bool, factor: float = 1.0) -> Graph:
    """A projection of heads that come split or joined, and what makes them is no layer."""
    shape = (5, 2, 3) if split else (5, 6)
    graph = Graph()
    graph.add("value", "Linear", lambda x: x @ W[0], "input:x")
    graph.add("", "", lambda v: np.float32(factor) * np.tanh(v).reshape(shape), "value")
    graph.add("proj", "Linear", lambda h: h.reshape(5, 6) @ W[1], "")
    graph.outputs = ("proj",)
    return graph


def test_a_wrong_input_that_one_side_has_split() -> None:
    """The layer is not to blame: its input is compared though it differs."""
    anchors = [("value", "value"), ("proj", "proj")]
    found = forced_alignment(heads(False).run(x=X), heads(True, 1.5), anchors, x=X)
    assert pairs(found) == {"value": "value", "proj": "proj"}
    (edge,) = [e for e in found.edges if e.reference == "proj"]
    assert edge.layout.shapes is not None


def whole(factor: float = 1.0, parts: bool = False) -> Graph:
    """Two cells in one layer, or each in its own with another shape."""
    graph = Graph()
    graph.add("embed", "Linear", lambda x: x @ W[2], "input:x")
    first = np.float32(factor) * W[0]
    if parts:
        graph.add("forth", "Cell", lambda x: (x @ first)[:, :4], "embed")
        graph.add("back", "Cell", lambda x: (x @ W[1])[:, :4], "embed")
        graph.add("", "", lambda a, b: np.concatenate([a, b], 1), "forth", "back")
    else:
        graph.add(
            "rnn", "LSTM", lambda x: np.concatenate([x @ W[0][:, :4], x @ W[1][:, :4]], 1), "embed"
        )
    graph.add("head", "Linear", lambda h: h[:, :6] @ W[2], "" if parts else "rnn")
    graph.outputs = ("head",)
    return graph


def test_a_whole_is_not_paired_with_one_of_its_parts() -> None:
    """Their shapes differ because of the cut, which is no finding."""
    anchors = [("embed", "embed"), ("rnn", "forth"), ("rnn", "back"), ("head", "head")]
    reference = whole().run(x=X)
    found = forced_alignment(reference, whole(1.5, parts=True), anchors, x=X)
    assert pairs(found) == {"embed": "embed", "head": "head"}
    assert found.unmatched_reference == ("rnn",)


def test_a_layer_of_another_shape_is_paired_all_the_same() -> None:
    """One layer against one layer: here the shape is the finding."""

    def narrow(width: int) -> Graph:
        graph = Graph()
        graph.add("fc", "Linear", lambda x: (x @ W[0])[:, :width], "input:x")
        graph.add("head", "Linear", lambda h: h[:, :3] @ W[1][:3], "fc")
        graph.outputs = ("head",)
        return graph

    reference, anchors = narrow(6).run(x=X), [("fc", "fc"), ("head", "head")]
    wrong = narrow(5)
    aligner = Aligner(reference, wrong.run(x=X + 1), explicit={}, anchors=anchors)
    given = wrong.run(x=X + 1)
    assert aligner.refine(given) == 1  # what goes in differs, and is compared first
    assert [e.reference for e in aligner.alignment(given).edges] == ["fc"]
    assert aligner.refine(given) == 1  # what made it
    assert aligner.refine(given) == 1
    assert pairs(aligner.alignment())["fc"] == "fc"


def recurrent(cells: bool, factor: float = 1.0) -> Graph:
    """A layer of three steps, or a layer that calls a cell three times."""
    graph = Graph(["fc"])
    first = np.float32(factor) * W[0]
    if cells:
        for t in range(3):
            call = f"gru.cell#{t + 1}" if t else "gru.cell"
            step = lambda x, t=t: np.tanh(x[t] @ first)  # noqa: E731
            graph.add(call, "Cell", step, "input:x", parent="gru")
        steps = [n.site for n in graph.nodes]
        graph.add("gru", "Recurrent", lambda *h: np.stack(h), *steps)
    else:
        graph.add("gru", "GRU", lambda x: np.tanh(x[:3] @ first), "input:x")
    graph.add("", "", lambda h: h[-1], "gru")
    graph.add("fc", "Linear", lambda h: h @ W[1], "")
    return graph


@pytest.mark.parametrize("cut_reference", [False, True])
def test_a_layer_is_not_paired_with_the_cell_that_it_calls_at_each_step(
    cut_reference: bool,
) -> None:
    """Their shapes differ, which is no finding: the whole layers belong together."""
    anchors = [("gru.cell", "gru") if cut_reference else ("gru", "gru.cell"), ("fc", "fc")]
    reference = recurrent(cut_reference).run(x=X)
    found = forced_alignment(reference, recurrent(not cut_reference, -1.0), anchors, x=X)
    assert pairs(found) == {"gru": "gru", "fc": "fc"}


def attention(cut: bool, factor: float = 1.0, packed: int = 12) -> Graph:
    """A layer with a projection of its own that holds another one's weights, or all in layers."""
    first = np.concatenate([W[0], W[1]], axis=1)[:, :packed]
    own = np.float32(factor)
    graph = Graph()
    graph.add("norm", "Norm", lambda x: x / 2, "input:x")
    if cut:
        graph.add("attn.packed", "Linear", lambda x: x @ first, "norm", parent="attn")
        graph.add("", "", lambda v: np.tanh(own * v)[:, :6], "attn.packed")
        graph.add("attn.last", "Linear", lambda h: h @ W[2], "", parent="attn")
        graph.add("attn", "SelfAttention", lambda y: y, "attn.last")
    else:
        graph.add("attn", "Attention", lambda x: np.tanh(own * (x @ first))[:, :6] @ W[2], "norm")
    graph.add("head", "Linear", lambda h: h @ W[0], "attn")
    graph.outputs = ("head",)
    return graph


@pytest.mark.parametrize("packed", [6, 12], ids=["same shape", "another shape"])
@pytest.mark.parametrize("cut_reference", [False, True])
def test_a_container_is_not_paired_with_its_first_layer(cut_reference: bool, packed: int) -> None:
    """A layer that holds others' weights too does more than the layer that its own went to."""
    anchors = [("attn", "attn.packed"), ("attn.out", "attn.last"), ("head", "head")]
    if cut_reference:
        anchors = [(c, r) for r, c in anchors]
    reference = attention(cut_reference, packed=packed).run(x=X)
    candidate = attention(not cut_reference, 1.5, packed=packed)
    found = pairs(forced_alignment(reference, candidate, anchors, x=X))
    found = {c: r for r, c in found.items()} if cut_reference else found
    assert found["attn"] in ("attn", "attn.last")


def gated(amplitude: float, fused: bool) -> Graph:
    """A layer without parameters, then two with; the first of these with its activation, or that
    in the code between."""

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    graph = Graph(["fc"])
    graph.add("act", "ELU", lambda x: np.where(x > 0, x, amplitude * np.expm1(x)), "input:x")
    if fused:
        graph.add("se1", "Linear", lambda x: silu(x @ W[0]), "act")
        graph.add("se2", "Linear", lambda x: x @ W[1], "se1")
    else:
        graph.add("se1", "Linear", lambda x: x @ W[0], "act")
        graph.add("", "", silu, "se1")
        graph.add("se2", "Linear", lambda x: x @ W[1], "")
    graph.add("hs", "Sigmoid", lambda x: 1 / (1 + np.exp(-x)), "se2")
    graph.add("fc", "Linear", lambda a, b: (a * b) @ W[2], "act", "hs")
    return graph


@pytest.mark.parametrize("fused", [False, True])
def test_a_guess_is_made_anew_behind_a_layer_found_later(fused: bool) -> None:
    """`se1` was paired for its parameters while what lies before it was wrong: on right inputs its
    pair is seen to hold two quantities, and what goes into the layer is compared all the same."""
    anchors = [("se1", "se1"), ("se2", "se2"), ("fc", "fc")]
    reference = gated(0.7, fused).run(x=X)
    found = forced_alignment(reference, gated(1.0, not fused), anchors, x=X)
    assert pairs(found) == {site: site for site in ("act", "se2", "hs", "fc")}
    assert [e.reference for e in found.edges] == ["act", "se2", "hs", "fc", "fc:1", "se1"]


@pytest.mark.parametrize("fused", [False, True])
def test_what_goes_into_a_layer_that_ends_elsewhere_is_compared(fused: bool) -> None:
    """Wrong as it is: the layer cannot be paired, since one side has its activation in it too."""
    anchors = [("fc", "fc"), ("last", "last")]

    def net(factor: float, fused: bool) -> Graph:
        graph = Graph(["last"])
        graph.add("", "", lambda x: np.float32(factor) * np.sin(x), "input:x")
        graph.add("fc", "Linear", lambda x: np.maximum(x @ W[0], 0) if fused else x @ W[0], "")
        graph.add("", "", lambda x: np.maximum(x, 0), "fc")
        graph.add("last", "Linear", lambda x: x @ W[1] + 3, "")
        return graph

    found = forced_alignment(net(1.0, fused).run(x=X), net(-2.0, not fused), anchors, x=X)
    assert pairs(found) == {"last": "last"}
    assert [e.reference for e in found.edges] == ["last", "fc"]
