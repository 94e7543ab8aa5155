"""Stages 4 to 6: which comparisons two traces make; observers and cotangents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from crosscheck.adapters.base import Parameter
from crosscheck.aligning.layout import SAME
from crosscheck.comparisons import (
    buffer_items,
    gradient_items,
    site_items,
    value_of,
    weight_items,
)
from crosscheck.cotangents import CandidateCotangents
from crosscheck.errors import CannotCompare
from crosscheck.observers import Comparer, Forcer, Recorder, chain
from crosscheck.weights import Match, Matched, Transform
from tests.stages.graphs import Graph, aligned, trace

RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=(5, 8))
REFERENCE = TRUTH.astype(np.float32)


# -- the list of comparisons -----------------------------------------------------------------------


def chain_of_two() -> Graph:
    graph = Graph(["b"])
    graph.add("a", "L", lambda x: x * 2, "input:x")
    graph.add("glue", "", lambda x: x + 1, "a")
    graph.add("b", "L", lambda x: x * 3, "glue")
    return graph


def test_inputs_are_compared_where_glue_lies_between() -> None:
    run = chain_of_two().run(x=REFERENCE)
    items, hidden = site_items(aligned(run, run), run, run, backward=False)
    assert [(i.kind, i.reference) for i in items] == [
        ("activation", "input:x"),
        ("activation", "a"),
        ("input", "b"),
        ("activation", "b"),
        ("activation", "output"),
    ]
    assert hidden == [] and {i.phase for i in items} == {"forward"}


def test_an_input_is_compared_where_its_producer_could_not_be() -> None:
    graph = Graph(["b"])
    graph.add("a", "L", lambda x: x * 2, "input:x")
    graph.add("b", "L", lambda x: x * 3, "a")
    run = graph.run(x=REFERENCE)
    found = aligned(run, run)
    items, _ = site_items(found, run, run, backward=False)
    assert ("input", "b") not in [(i.kind, i.reference) for i in items]
    pairs = tuple(replace(p, layout=None) if p.reference == "a" else p for p in found.pairs)
    items, _ = site_items(replace(found, pairs=pairs), run, run, backward=False)
    assert ("input", "b") in [(i.kind, i.reference) for i in items]


def test_backward_comes_in_reverse_with_every_layers_own_vjp() -> None:
    run = chain_of_two().run(x=REFERENCE)
    back: Any = {
        ({"activation": "cotangent", "input": "input_cotangent"}[k], s): v
        for (k, s), v in run.values.items()
        if s != "input:x"
    }
    hidden = frozenset({("input_cotangent", "a")})
    ours = replace(run, values={**run.values, **back}, info=replace(run.info, unobservable=hidden))
    ours.values.pop(("input_cotangent", "a"))  # type: ignore[attr-defined]
    items, lines = site_items(aligned(run, run), ours, ours, backward=True)
    assert [(i.kind, i.reference) for i in items if i.phase == "backward"] == [
        ("cotangent", "output"),
        ("cotangent", "b"),
        ("input_cotangent", "b"),
        ("cotangent", "a"),
    ]
    assert lines == ["cotangent at `a`: overwritten in place or without a backward pass of its own"]


def test_gradients_buffers_and_weights() -> None:
    def one(name: str, **options: Any) -> Parameter:
        return Parameter(name, REFERENCE, name, "weight", "dense", None, **options)

    function = Transform(function=lambda w: w)
    match = Match(
        (
            Matched(one("w"), one("W"), Transform()),
            Matched(one("frozen", trainable=False), one("F"), Transform()),
            Matched(one("lost"), one("L"), Transform()),
            Matched(one("made"), one("M"), function),
            Matched(one("mean", trainable=False, buffer=True), one("mu"), Transform()),
        ),
        (),
        (),
    )
    gradients = dict.fromkeys(["w", "frozen", "lost", "made"], REFERENCE)
    ours = trace(None, parameter_gradients=gradients, buffers={"mean": REFERENCE})
    theirs = trace(None, parameter_gradients={"W": TRUTH, "M": TRUTH}, buffers={"mu": TRUTH})
    items, missing = gradient_items(match, ours, theirs)
    assert [(i.phase, i.reference, i.candidate) for i in items] == [
        ("parameter_gradient", "w", "W")
    ]
    assert missing == [
        "gradient of `M`: its weight transform has no known inverse",
        "gradient of `L`: the candidate keeps none that is recognised",
    ]
    assert value_of(items[0], ours, side="reference") is REFERENCE
    assert value_of(items[0], theirs, side="candidate") is TRUTH
    (buffer,) = buffer_items(match, ours, theirs)
    assert (buffer.reference, buffer.candidate) == ("mean", "mu")
    assert value_of(buffer, theirs, side="candidate") is TRUTH
    assert len(weight_items(match)) == 5


# -- observers and cotangents ----------------------------------------------------------------------


def test_a_recorder_keeps_copies_in_order() -> None:
    recorder, value = Recorder(), np.arange(6.0).reshape(2, 3).T
    recorder("b", "activation", value)
    recorder("a", "input", value)
    value *= 0
    assert list(recorder.values) == [("activation", "b"), ("input", "a")]
    kept = recorder.values["activation", "b"]
    assert kept.flags.c_contiguous and kept.sum() == 15


def test_all_observers_see_the_value_and_the_first_replacement_wins() -> None:
    recorder = Recorder()
    comparer = Comparer(lambda key, value: (key, float(value.sum())), {("activation", "a")})
    forcers = [Forcer({("activation", "a"): np.full(2, n)}) for n in (1.0, 2.0)]
    observe = chain(recorder, comparer, *forcers)
    replaced = observe("a", "activation", np.zeros(2))
    assert replaced is not None and replaced.tolist() == [1, 1]
    assert observe("a", "cotangent", np.zeros(2)) is None
    assert observe("b", "activation", np.zeros(2)) is None
    assert recorder.values["activation", "a"].tolist() == [0, 0]
    assert comparer.results == {("activation", "a"): (("activation", "a"), 0.0)}


def test_cotangents_reach_the_candidate_in_its_own_names_and_layouts() -> None:
    image = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    ours = trace(None, outputs=("output", "output:1"))
    ours.values.update({("activation", "output"): image, ("activation", "output:1"): REFERENCE})  # type: ignore[attr-defined]
    given = {"output": image + 1, "output:1": REFERENCE + 1}
    last = image.transpose(0, 2, 3, 1)
    theirs = {"output": REFERENCE, "output:img": last}
    source = CandidateCotangents(ours, given, {"output": "output:img", "output:1": "output"})
    got = source(theirs)
    assert np.array_equal(got["output:img"], last + 1) and np.array_equal(
        got["output"], REFERENCE + 1
    )
    in_order = CandidateCotangents(ours, given, {})({"output": last, "output:1": REFERENCE})
    assert np.array_equal(in_order["output"], last + 1)
    integers = CandidateCotangents(ours, given, {})(
        {"output": last.astype(int), "output:1": REFERENCE}
    )
    assert list(integers) == ["output:1"]
    with pytest.raises(CannotCompare, match="^the reference has 2 outputs, `output:1` without"):
        CandidateCotangents(ours, given, {})({"output": last})
    decided = {("output", "output"): None, ("output:1", "output:1"): SAME}
    fixed = CandidateCotangents(ours, given, {}, decided=decided)
    assert list(fixed({"output": last, "output:1": REFERENCE})) == ["output:1"]
