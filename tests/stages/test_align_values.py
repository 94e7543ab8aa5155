"""Stage 5, align by value: names, aliases, repeats, branches, constants, residual streams."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from crosscheck.aligning.fingerprints import SAME_VALUE, differences, fingerprint, looks_like
from crosscheck.aligning.layout import relative_error
from tests.stages.graphs import Graph, W, X, aligned, pairs


def linear(i: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: x @ W[i]


def split_linear(i: int) -> Callable[[np.ndarray], np.ndarray]:
    """The same up to rounding."""
    return lambda x: x[:, 3:] @ W[i][3:] + x[:, :3] @ W[i][:3]


def same(x: np.ndarray) -> np.ndarray:
    return x.copy()


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def tower(
    names: list[str], kinds: tuple[str, str] = ("Linear", "ReLU"), port: bool = False
) -> Graph:
    """linear, relu, linear, relu, ..."""
    graph, here = Graph(), "input:x"
    layer = split_linear if port else linear
    for i, name in enumerate(names):
        function = relu if i % 2 else layer(i)
        here = graph.add(name, kinds[i % 2], function, here)
    graph.outputs = (here,)
    return graph


TORCH = [f"layers.{i}" for i in range(6)]
KERAS = ["dense", "re_lu", "dense_1", "re_lu_1", "dense_2", "re_lu_2"]


def test_same_names() -> None:
    found = aligned(tower(TORCH).run(x=X), tower(TORCH, port=True).run(x=X))
    assert pairs(found) == {n: n for n in TORCH}
    assert [p.by for p in found.pairs] == ["input"] + ["value"] * 6 + ["output"]
    assert found.unmatched_reference == found.unmatched_candidate == ()
    assert [(e.reference, e.candidate) for e in found.edges] == [(n, n) for n in TORCH]


def test_different_names() -> None:
    found = aligned(tower(TORCH).run(x=X), tower(KERAS, ("Dense", "ReLU"), port=True).run(x=X))
    assert pairs(found) == dict(zip(TORCH, KERAS, strict=True))


def test_inputs_pair_by_name_else_in_order() -> None:
    graph = Graph(["sum"])
    graph.add("sum", "Add", lambda a, b: a + 2 * b, "input:a", "input:b")
    other = Graph(["sum"])
    other.add("sum", "Add", lambda a, b: a + 2 * b, "input:left", "input:right")
    ab = graph.run(a=X, b=X + 1)
    ba = graph.run(b=X + 1, a=X)
    assert [(p.reference, p.candidate) for p in aligned(ab, ba).pairs[:2]] == [
        ("input:a", "input:a"),
        ("input:b", "input:b"),
    ]
    renamed = aligned(ab, other.run(left=X, right=X + 1))
    assert [(p.candidate, p.by) for p in renamed.pairs[:2]] == [
        ("input:left", "input"),
        ("input:right", "input"),
    ]


def test_extra_sites_on_either_side_stay_alone() -> None:
    ours, theirs = tower(TORCH), tower(KERAS, ("Dense", "ReLU"), port=True)
    ours.add("probe", "Probe", lambda x: x * 3, "layers.2")
    theirs.add("metric", "Metric", lambda x: x.sum(0), "dense_1")
    found = aligned(ours.run(x=X), theirs.run(x=X))
    assert pairs(found) == dict(zip(TORCH, KERAS, strict=True))
    assert (found.unmatched_reference, found.unmatched_candidate) == (("probe",), ("metric",))


def test_aliases_are_compared_in_effect_and_not_listed() -> None:
    ours, theirs = Graph(["block"]), Graph(["dense"])
    ours.add("block.fc", "Linear", linear(0), "input:x", parent="block")
    ours.add("block.dropout", "Dropout", same, "block.fc", parent="block")
    ours.add("block", "Block", same, "block.dropout")
    theirs.add("dense", "Dense", split_linear(0), "input:x")
    found = aligned(ours.run(x=X), theirs.run(x=X))
    assert pairs(found) == {"block.fc": "dense"}
    assert found.unmatched_reference == ()
    back = aligned(theirs.run(x=X), ours.run(x=X))
    assert pairs(back) == {"dense": "block.fc"}
    assert back.unmatched_candidate == ()


def test_wrappers_pair_with_wrappers() -> None:
    def wrapped(block: str, fc: str, port: bool) -> Graph:
        graph, here = Graph(), "input:x"
        for i in range(3):
            layer = (split_linear if port else linear)(i)
            inner = graph.add(f"{block}{i}{fc}", "L", layer, here, parent=f"{block}{i}")
            here = graph.add(f"{block}{i}", "B", same, inner)
        graph.outputs = (here,)
        return graph

    found = aligned(
        wrapped("blocks.", ".fc", False).run(x=X), wrapped("block_", "/dense", True).run(x=X)
    )
    assert pairs(found) == {
        f"blocks.{i}{r}": f"block_{i}{c}"
        for i in range(3)
        for r, c in ((".fc", "/dense"), ("", ""))
    }


def test_repeated_calls_of_one_layer() -> None:
    graph, here = Graph(), "input:x"
    for i in range(4):
        here = graph.add(
            "cell" + (f"#{i + 1}" if i else ""), "Cell", lambda x: relu(x @ W[0]) + 1, here
        )
    graph.outputs = (here,)
    sites = ["cell", "cell#2", "cell#3", "cell#4"]
    assert pairs(aligned(graph.run(x=X), graph.run(x=X))) == {s: s for s in sites}


def test_parallel_branches_in_another_order() -> None:
    ours, theirs = Graph(["merge"]), Graph(["join"])
    for i in (0, 1, 2):
        ours.add(f"branch{i}", "Linear", linear(i), "input:x")
    ours.add("merge", "Add", lambda a, b, c: a + b + c, "branch0", "branch1", "branch2")
    for letter, i in (("a", 2), ("b", 0), ("c", 1)):
        theirs.add(f"path_{letter}", "Dense", split_linear(i), "input:x")
    theirs.add("join", "Add", lambda a, b, c: a + b + c, "path_a", "path_b", "path_c")
    found = aligned(ours.run(x=X), theirs.run(x=X))
    assert pairs(found) == {
        "branch0": "path_b",
        "branch1": "path_c",
        "branch2": "path_a",
        "merge": "join",
    }
    slots = {e.reference: e.candidate for e in found.edges if e.pair.reference == "merge"}
    assert slots == {"merge": "join:1", "merge:1": "join:2", "merge:2": "join"}


def zero(x: np.ndarray) -> np.ndarray:
    return 0 * x


def test_zeros_pair_with_their_namesakes() -> None:
    sites = ["a.gate", "b.gate", "c.gate"]
    ours, theirs = tower(TORCH), tower(TORCH, port=True)
    for i, site in enumerate(sites):
        ours.add(site, "Gate", zero, TORCH[i])
        theirs.add(sites[2 - i], "Gate", zero, TORCH[2 - i])
    found = pairs(aligned(ours.run(x=X), theirs.run(x=X)))
    assert {s: found.get(s) for s in sites} == {s: s for s in sites}


def test_zeros_do_not_pair_with_just_any_zeros() -> None:
    ours, theirs = tower(TORCH), tower(TORCH, port=True)
    ours.add("aux.gate", "Gate", zero, "layers.1")
    theirs.add("mask", "Mask", zero, "layers.4")
    found = aligned(ours.run(x=X), theirs.run(x=X))
    assert pairs(found) == {n: n for n in TORCH}
    assert (found.unmatched_reference, found.unmatched_candidate) == (("aux.gate",), ("mask",))


def test_another_zero_is_no_repeat_of_a_matched_one() -> None:
    ours, theirs = tower(TORCH), tower(TORCH, port=True)
    ours.add("a.gate", "Gate", zero, "layers.1")
    theirs.add("a.gate", "Gate", zero, "layers.1")
    ours.add("other", "Mask", zero, "layers.2")
    found = aligned(ours.run(x=X), theirs.run(x=X))
    assert pairs(found)["a.gate"] == "a.gate"
    assert found.unmatched_reference == ("other",)


def test_sites_of_integers_and_booleans() -> None:
    def graph(ids: str, mask: str) -> Graph:
        g = Graph(["fc"])
        g.add(ids, "Argmax", lambda x: x.argsort(-1), "input:x")
        g.add(mask, "Greater", lambda x: x > 0, "input:x")
        g.add("fc", "Linear", linear(0), "input:x")
        return g

    found = aligned(graph("ids", "mask").run(x=X), graph("tokens", "positive").run(x=X))
    assert pairs(found) == {"ids": "tokens", "mask": "positive", "fc": "fc"}


@pytest.mark.parametrize("kinds", [("int64", "float32"), ("bool", "float32"), ("bool", "int32")])
def test_equal_numbers_of_another_kind_are_no_pair(kinds: tuple[str, str]) -> None:
    graphs = []
    for kind in kinds:
        graph = Graph(["fc"])
        graph.add("mask", "Greater", lambda x, kind=kind: (x > 0).astype(kind), "input:x")
        graph.add("fc", "Linear", linear(0), "input:x")
        graphs.append(graph.run(x=X))
    assert pairs(aligned(*graphs)) == {"fc": "fc"}
    assert aligned(*graphs).unmatched_reference == ("mask",)


def stream(names: list[str], scale: float, *, port: bool, front: int = 0) -> Graph:
    """x + scale · branch(x), again and again; ``front`` sites of something else come before."""
    graph, here = Graph(), "input:x"
    for i in range(front):
        graph.add(f"front{i}", "Front", lambda x, i=i: np.cos(x * (i + 2)), "input:x")
    for i, name in enumerate(names):
        layer = (split_linear if port else linear)(i)
        here = graph.add(name, "Block", lambda x, f=layer: x + np.float32(scale) * f(x), here)
    graph.outputs = (here,)
    return graph


@pytest.mark.parametrize("scale", [1e-4, 3e-5, 1e-6])
@pytest.mark.parametrize("front", [0, 20])
def test_a_residual_stream_that_hardly_changes_pairs_by_name(scale: float, front: int) -> None:
    ours = [f"blocks.{i}" for i in range(12)]
    theirs = [f"encoder/block_{i + 3}" for i in range(12)]
    free = stream(ours, scale, port=False).run(x=X)
    increment = relative_error(
        free.values["activation", ours[1]], free.values["activation", ours[0]]
    )
    assert increment < SAME_VALUE
    found = aligned(free, stream(theirs, scale, port=True, front=front).run(x=X))
    assert pairs(found) == dict(zip(ours, theirs, strict=True))


@pytest.mark.parametrize("front", [0, 20])
def test_a_residual_stream_without_useful_names_pairs_by_how_equal_it_is(front: int) -> None:
    ours = [f"blocks.{i}" for i in range(9)]
    theirs = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibex"]
    free = stream(ours, 2e-4, port=False).run(x=X)
    found = aligned(free, stream(theirs, 2e-4, port=True, front=front).run(x=X))
    assert pairs(found) == dict(zip(ours, theirs, strict=True))


DEFECTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda x: x,
    "offset": lambda x: x + 3e-4 * np.abs(x).mean(),
    "scale": lambda x: x * 1.0009,
    "noise": lambda x: x + 3e-4 * x.std() * np.cos(1e3 * x),
    "curve": lambda x: x + 9e-4 * np.abs(x) * x / np.abs(x).max(),
    "one element": lambda x: np.where(x == x.max(), x - 8e-4 * np.sqrt((x**2).sum()), x),
}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("size", [10, 1000, 50_000])
def test_a_small_defect_does_not_change_the_fingerprint(defect: str, size: int) -> None:
    rng = np.random.default_rng(1)
    for draw in (rng.normal, rng.exponential, rng.uniform, rng.standard_t):
        x = draw(2, size=(size,)) if draw == rng.standard_t else draw(size=(size,))
        y = DEFECTS[defect](x)
        assert relative_error(y, x) < SAME_VALUE
        turned = np.ascontiguousarray(y.reshape(2, -1).T)
        assert looks_like(fingerprint(turned)[None], fingerprint(x)).all()
        assert differences([(y, x)]) == [relative_error(y, x)]


def test_fingerprints_tell_unrelated_values_apart() -> None:
    rng = np.random.default_rng(2)
    prints = np.array([fingerprint(rng.normal(size=2000)) for _ in range(300)])
    close = sum(int(looks_like(prints, one).sum()) - 1 for one in prints)
    assert close < 0.01 * 300 * 299
    x, y = rng.normal(size=(2, 40_000))
    assert differences([(y, x), (-x, x)]) == [np.inf, np.inf]


def test_fingerprints_tell_signs_and_non_finite_values_apart() -> None:
    x = np.random.default_rng(2).exponential(size=50)
    y = x.copy()
    y[3] = np.nan
    assert not looks_like(fingerprint(x)[None], fingerprint(-x)).any()
    assert not looks_like(fingerprint(x)[None], fingerprint(y)).any()
    assert not looks_like(fingerprint(x - x.mean())[None], fingerprint(x.mean() - x)).any()
    assert np.isfinite(fingerprint(np.full(4, np.inf))).all()
    assert fingerprint(np.full(4, -np.inf))[-1] == 4
    assert fingerprint(np.zeros(0)).tolist() == [0] * 7
    assert np.isfinite(fingerprint(np.full(4, np.finfo(np.float64).min))).all()
