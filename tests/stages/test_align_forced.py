"""Stage 5: what a forced run adds to an alignment, and what it takes back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crosscheck.aligning.align import Aligner
from crosscheck.aligning.layout import Layout
from tests.stages.graphs import Graph, W, X, aligned, forced_alignment, linear, pairs, tower

ABC = ["a", "b", "c"]
SIX = ["a", "b", "c", "d", "e", "f"]
OTHER = ["ant", "bee", "cat", "dog", "eel", "fox"]


def test_behind_a_divergence_values_match_again() -> None:
    ours = tower(SIX).run(x=X)
    port = tower(OTHER, {2: 1.5})
    assert pairs(aligned(ours, port.run(x=X))) == {"a": "ant", "b": "bee"}
    found = forced_alignment(ours, port, [("c", "cat")], x=X)
    assert pairs(found) == dict(zip(SIX, OTHER, strict=True))
    by = {p.reference: p.by for p in found.pairs}
    assert by["c"] == "anchor" and by["d"] == by["e"] == "value"


def test_without_anchors_the_producers_of_a_differing_input_are_paired() -> None:
    ours = tower(SIX).run(x=X)
    found = forced_alignment(ours, tower(OTHER, {2: 1.5}, "Other"), x=X)
    assert pairs(found) == dict(zip(SIX, OTHER, strict=True))


def test_two_divergences_are_both_narrowed_down() -> None:
    ours = tower(SIX).run(x=X)
    port = tower(OTHER, {1: 1.5, 4: 0.7})
    found = forced_alignment(ours, port, [("b", "bee"), ("e", "eel")], x=X)
    assert pairs(found) == dict(zip(SIX, OTHER, strict=True))
    assert [e.reference for e in found.edges] == SIX


def test_calls_of_an_anchored_layer_are_told_apart() -> None:
    def recurrent(name: str, factor: float) -> Graph:
        graph, here = Graph(), "input:x"
        for i in range(4):
            here = graph.add(name + (f"#{i + 1}" if i else ""), "L", linear(0, factor), here)
        graph.outputs = (here,)
        return graph

    found = forced_alignment(
        recurrent("rnn", 1).run(x=X), recurrent("gru", 1.5), [("rnn", "gru")], x=X
    )
    assert pairs(found) == {f"rnn{s}": f"gru{s}" for s in ("", "#2", "#3", "#4")}
    assert {p.by for p in found.pairs if p.reference.startswith("rnn")} == {"anchor"}


def test_a_port_without_the_layer_leaves_an_interval() -> None:
    ours = tower(SIX)
    fused = Graph(["rest"])
    fused.add("ant", "L", linear(0), "input:x")
    fused.add("hidden", "", lambda x: linear(2)(linear(1, 1.5)(x)), "ant")
    fused.add("rest", "L", lambda x: linear(5)(linear(4)(linear(3)(x))), "hidden")
    found = forced_alignment(ours.run(x=X), fused, x=X)
    assert pairs(found) == {"a": "ant", "f": "rest"}
    assert found.unmatched_reference == ("b", "c", "d", "e")


def test_refine_asks_for_nothing_where_nothing_differs() -> None:
    ours = tower(SIX)
    ours.add("probe", "P", lambda x: x * 3, "a")
    theirs = tower(OTHER)
    theirs.add("metric", "M", lambda x: x.sum(0), "bee")
    reference, free = ours.run(x=X), theirs.run(x=X)
    aligner = Aligner(reference, free, explicit={}, anchors=[("probe", "metric")])
    forced = aligner.alignment(free).forced_on_candidate(reference)
    assert aligner.refine(theirs.run(forced, x=X)) == 0


def test_a_forced_run_may_take_a_branch_of_its_own() -> None:
    ours, port = tower(ABC), tower(["ant", "bee", "cat"], {1: 1.5})
    reference, free = ours.run(x=X), port.run(x=X)
    aligner = Aligner(reference, free, explicit={}, anchors=())
    port.add("new", "L", linear(1), "ant")
    assert aligner.match_values(port.run(x=X)) == 0
    assert "b" not in {p.reference for p in aligner.alignment(free).pairs}


def test_inputs_in_another_order_find_their_slots() -> None:
    ours, theirs = Graph(["attn"]), Graph(["attn"])
    for graph, order in ((ours, "qkv"), (theirs, "vqk")):
        for name in order:
            graph.add(name, "L", linear("qkv".index(name)), "input:x")
        graph.add("attn", "A", lambda a, b, c: a + b + c, *order)
    found = aligned(ours.run(x=X), theirs.run(x=X))
    slots = {e.reference: e.candidate for e in found.edges if e.pair.reference == "attn"}
    assert slots == {"attn": "attn:1", "attn:1": "attn:2", "attn:2": "attn"}


def test_an_extra_input_does_not_shift_the_others() -> None:
    ours, theirs = Graph(["attn"]), Graph(["attn"])
    ours.add("attn", "A", lambda x, m: x * 2, "input:x", "input:mask")
    theirs.add("attn", "A", lambda m, x, extra: x * 2, "input:mask", "input:x", "input:x")
    inputs = {"x": X, "mask": (X > 0).astype(np.float32)}
    found = aligned(ours.run(**inputs), theirs.run(**inputs))
    slots = {e.reference: e.candidate for e in found.edges}
    assert slots == {"attn": "attn:1", "attn:1": "attn"}


def double(x: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    return x * 2


def flags(x: np.ndarray) -> np.ndarray:
    return (x > 0).astype(np.int32)


def row(x: np.ndarray) -> np.ndarray:
    return np.tanh(x[:1])


@pytest.mark.parametrize(
    ("before", "compared"),
    [
        ({}, False),  # a layer that makes it of the first input
        ({"made": ("", linear(1), "stem")}, False),  # and so may the code between
        ({"made": ("", row, "stem")}, True),  # not of another shape: a mask, or such
        ({"made": ("Flags", flags, "stem")}, True),  # sends nothing back
        ({"made": ("L", linear(1), "input:x")}, True),  # there before the first input
    ],
    ids=["layer", "between", "mask", "flags", "earlier"],
)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("between", [False, True])
def test_an_input_beside_one_that_may_be_made_of_it(
    before: dict[str, tuple[str, Any, str]], compared: bool, turned: bool, between: bool
) -> None:
    """``mix(x, f(x))`` against ``mix(x)``: only the second gets all that comes back to x."""
    kind, function, of = before.get("made", ("L", linear(1), "stem"))
    sides = Graph(["mix"]), Graph(["mix"])
    for graph, others in zip(sides, (("made",), ()), strict=True):
        if of == "input:x" and others:
            graph.add("made", kind, function, of)
        first = graph.add("stem", "L", linear(0), "input:x")
        if between:
            first = graph.add("code", "", double, "stem")
        if of != "input:x" and others:
            graph.add("made", kind, function, first)
        graph.add("mix", "Mix", double, first, *others)
    traces = [graph.run(x=X) for graph in (sides[::-1] if turned else sides)]
    edge = next(e for e in aligned(*traces).edges if e.reference == "mix")
    assert edge.sends_back is compared


@pytest.mark.parametrize("turned", [False, True])
def test_an_input_of_the_model_is_made_of_no_other(turned: bool) -> None:
    sides = Graph(["mix"]), Graph(["mix"])
    sides[0].add("mix", "Mix", double, "input:x", "input:z")
    sides[1].add("mix", "Mix", double, "input:x")
    traces = [graph.run(x=X, z=X + 1) for graph in (sides[::-1] if turned else sides)]
    assert [(e.reference, e.sends_back) for e in aligned(*traces).edges] == [("mix", True)]


def test_a_slot_is_used_once() -> None:
    ours, theirs = Graph(["add"]), Graph(["add"])
    ours.add("add", "Add", lambda a, b: a + b, "input:x", "input:x")
    theirs.add("two", "", lambda x: 2 * x, "input:x")
    theirs.add("add", "Add", lambda a, b: a / 2 + b, "two", "input:x")
    found = aligned(ours.run(x=X), theirs.run(x=X), explicit={"add": "add"})
    assert {e.reference: e.candidate for e in found.edges} == {"add": "add:1", "add:1": "add"}


def test_no_telling_which_of_unequally_many_inputs_differs() -> None:
    def layer(name: str, *factors: float) -> Graph:
        graph = Graph([name])
        for i, factor in enumerate(factors):
            graph.add(f"in{i}", "", lambda x, f=factor: x * np.float32(f), "input:x")
        sources = [f"in{i}" for i in range(len(factors))]
        graph.add(
            name,
            "A",
            lambda x, *rest: np.ones_like(x) + 0 * x + np.float32(0.1) * W[0][:4],
            *sources,
        )
        return graph

    def edges(ours: Graph, theirs: Graph) -> list[str]:
        return [e.reference for e in aligned(ours.run(x=X), theirs.run(x=X), **how).edges]

    how: dict[str, dict[str, str]] = {"explicit": {"mix": "mix"}}
    assert edges(layer("mix", 1, 2), layer("mix", 1, 3)) == ["mix", "mix:1"]
    assert edges(layer("mix", 1, 2), layer("mix", 1, 3, 5)) == ["mix"]


def fused(factor: float = 1.0) -> Graph:
    """Two layers in one, twice, against four."""
    graph = Graph(["s1"])
    graph.add("s0", "Fused", lambda x: linear(1)(linear(0)(x)) * np.float32(factor), "input:x")
    graph.add("s1", "Fused", lambda x: linear(3)(linear(2)(x)), "s0")
    return graph


def test_a_fused_layer_is_no_edge_of_the_layer_that_ends_it() -> None:
    four = tower(["a", "b", "c", "d"])
    found = aligned(four.run(x=X), fused().run(x=X))
    assert pairs(found) == {"b": "s0", "d": "s1"}
    assert found.edges == ()
    assert [e.reference for e in aligned(fused().run(x=X), four.run(x=X)).edges] == []


def test_a_layer_that_undoes_a_defect_keeps_its_edge() -> None:
    """A norm gives the same output for a scaled input: the difference before it must be seen."""

    def net(names: str, factor: float) -> Graph:
        graph = Graph([names[2]])
        graph.add(names[0], "L", linear(0), "input:x")
        graph.add(names[1], "Scale", lambda x: x * np.float32(factor), names[0])
        norm = lambda x: x / np.sqrt((x * x).sum(-1, keepdims=True))  # noqa: E731
        graph.add(names[2], "Norm", norm, names[1])
        return graph

    reference, port = net("abc", 1).run(x=X), net("pqr", 1.5)
    found = aligned(reference, port.run(x=X))
    assert pairs(found) == {"a": "p", "c": "r"}
    assert [e.reference for e in found.edges] == ["a", "c"]
    assert pairs(forced_alignment(reference, port, x=X)) == {"a": "p", "b": "q", "c": "r"}


def test_a_layer_with_its_activation_is_not_the_layer_without() -> None:
    """The activation is a function call in the reference; the candidate errs behind both layers."""

    def reference() -> Graph:
        graph = Graph(["fc"])
        graph.add("c1", "Conv", lambda x: x @ W[0], "input:x")
        graph.add("relu1", "", lambda x: np.maximum(x, 0), "c1")
        graph.add("c2", "Conv", lambda x: x @ W[1], "relu1")
        graph.add("relu2", "", lambda x: np.maximum(x, 0), "c2")
        graph.add("fc", "Linear", lambda x: x @ W[2], "relu2")
        return graph

    port = Graph(["dense"])
    port.add("conv1", "Conv", lambda x: np.maximum(x @ W[0], 0), "input:x")
    port.add("conv2", "Conv", lambda x: np.maximum(x @ W[1], 0), "conv1")
    port.add("flatten", "", lambda x: x[:, ::-1], "conv2")
    port.add("dense", "Dense", lambda x: x @ W[2], "flatten")
    anchors = [("c1", "conv1"), ("c2", "conv2"), ("fc", "dense")]
    found = forced_alignment(reference().run(x=X), port, anchors, x=X)
    assert pairs(found) == {"fc": "dense"}
    assert [e.reference for e in found.edges] == ["fc", "c1", "c2"]
    assert (found.unmatched_reference, found.unmatched_candidate) == (
        ("c1", "c2"),
        ("conv1", "conv2"),
    )
    turned = [(c, r) for r, c in anchors]
    assert pairs(forced_alignment(port.run(x=X), reference(), turned, x=X)) == {"dense": "fc"}


@pytest.mark.parametrize("factor", [1.01, 0.9])
def test_a_wrong_fused_layer_is_paired_where_it_ends(factor: float) -> None:
    four, anchors = tower(["a", "b", "c", "d"]), [("a", "s0"), ("c", "s1")]
    found = forced_alignment(four.run(x=X), fused(factor), anchors, x=X)
    assert pairs(found) == {"b": "s0", "d": "s1"}
    turned = [(c, r) for r, c in anchors]
    found = forced_alignment(fused(factor).run(x=X), four, turned, x=X)
    assert pairs(found) == {"s0": "b", "s1": "d"}


@pytest.mark.parametrize(
    ("anchors", "by", "compared"),
    [
        ([], "order", True),
        ([("k", "key"), ("q", "query")], "order", True),
        ([("q", "query")], "value", False),
        ([("k", "key")], "value", False),
    ],
    ids=["neither", "both", "reference", "candidate"],
)
def test_only_a_layer_with_parameters_and_one_without_may_be_ends_of_a_fused_layer(
    anchors: list[tuple[str, str]], by: str, compared: bool
) -> None:
    """The port hands a wrong layer on: two layers are compared with what each is given, which
    differs; of one end of a fused layer that says nothing."""
    ours, port = Graph(["end"]), Graph(["last"])
    ours.add("stem", "Stem", linear(0), "input:x")
    ours.add("k", "L", linear(1), "input:x")
    ours.add("q", "L", linear(2), "stem")
    ours.add("end", "End", np.sin, "q")
    port.add("root", "Stem", linear(0), "input:x")
    port.add("query", "L", linear(2, 1.5), "root")
    port.add("key", "L", linear(1, 1.5), "input:x")
    port.add("last", "End", np.sin, "key")
    found = forced_alignment(ours.run(x=X), port, [*anchors, ("end", "last")], x=X)
    assert [(p.candidate, p.by) for p in found.pairs if p.reference == "q"] == [("key", by)]
    assert (("q", "key") in [(e.reference, e.candidate) for e in found.edges]) == compared


def test_further_outputs_of_a_layer_have_no_inputs_of_their_own() -> None:
    graph = Graph(["rnn", "rnn:1"])
    graph.add("rnn", "RNN", lambda x: (x + 1, x.sum(0)), "input:x")
    found = aligned(graph.run(x=X), graph.run(x=X))
    assert pairs(found) == {"rnn": "rnn", "rnn:1": "rnn:1"}
    assert [(e.reference, e.layout) for e in found.edges] == [("rnn", Layout())]
