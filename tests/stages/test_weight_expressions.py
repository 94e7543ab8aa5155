"""Stage 2: linear maps between parameters: run, backwards, shorter, and as text."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crosscheck.errors import InvalidArgument
from crosscheck.weights.expressions import (
    Applied,
    Blocks,
    Flip,
    Joined,
    Node,
    Part,
    Reshape,
    Source,
    Transpose,
    Zeros,
    pieces_of,
    replaced,
    sources,
)
from crosscheck.weights.simplify import simplified
from crosscheck.weights.spelling import load_map, parsed, spelled
from crosscheck.weights.transform import Transform

A, B = Source("a", (4, 6)), Source("b", (4, 6))
RNG = np.random.default_rng(0)
ARRAYS = {"a": RNG.normal(size=(4, 6)), "b": RNG.normal(size=(4, 6))}


def concat(axis: int, *nodes: Node) -> Node:
    return Joined("concat", axis, nodes)


def part(node: Node, axis: int, start: int, stop: int) -> Node:
    return Applied(Part(axis, start, stop), node)


NODES: list[Node] = [
    A,
    Zeros((2, 3)),
    Applied(Transpose((1, 0)), A),
    Applied(Reshape((2, 2, 6)), A),
    Applied(Blocks(0, (1, 0)), A),
    Applied(Blocks(1, (2, 0, 1)), A),
    Applied(Flip((0,)), A),
    part(A, 1, 2, 5),
    Applied(Transpose((2, 0, 1)), Applied(Reshape((2, 3, 4)), Applied(Transpose((1, 0)), A))),
    Joined("sum", 0, (A, B)),
    Joined("sum", 0, (A, A, B)),
    Joined("stack", 1, (A, B)),
    concat(0, A, Zeros((2, 6)), B),
    concat(1, part(A, 1, 0, 2), B, part(A, 1, 4, 6)),
    Applied(Transpose((1, 0)), concat(0, Joined("sum", 0, (A, B)), part(B, 0, 1, 3))),
]


@pytest.mark.parametrize("node", NODES, ids=str)
def test_shape_value_and_adjoint_belong_together(node: Node) -> None:
    value = node.value(ARRAYS)
    assert value.shape == node.shape
    gradient = RNG.normal(size=node.shape)
    into: dict[str, np.ndarray] = {}
    node.pull(gradient, into)
    assert set(into) == set(sources(node))
    assert all(into[name].shape == ARRAYS[name].shape for name in into)
    forward = float(np.sum(value * gradient))  # <L a, g> = <a, L* g>
    backward = sum(float(np.sum(ARRAYS[name] * share)) for name, share in into.items())
    assert forward == pytest.approx(backward, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("node", NODES, ids=str)
def test_simpler_is_the_same_and_simplest_stays(node: Node) -> None:
    short = simplified(node)
    assert np.array_equal(short.value(ARRAYS), node.value(ARRAYS))
    assert simplified(short) == short


@pytest.mark.parametrize("node", NODES, ids=str)
def test_text_reads_back(node: Node) -> None:
    text = repr(spelled(node))
    back = parsed(ast.literal_eval(text), {"a": A, "b": B}.__getitem__)
    assert back == node


@pytest.mark.parametrize(
    ("long", "short"),
    [
        (Applied(Transpose((1, 0)), Applied(Transpose((1, 0)), A)), A),
        (Applied(Reshape((4, 6)), Applied(Reshape((24,)), A)), A),
        (Applied(Flip((1,)), Applied(Flip((1,)), A)), A),
        (Applied(Blocks(0, (0, 1)), A), A),
        (part(A, 0, 0, 4), A),
        (part(part(A, 0, 1, 4), 0, 1, 2), part(A, 0, 2, 3)),
        (concat(0, part(A, 0, 0, 2), part(A, 0, 2, 4)), A),
        (concat(0, part(A, 0, 2, 4), part(A, 0, 0, 2)), Applied(Blocks(0, (1, 0)), A)),
        (concat(0, part(A, 0, 1, 2), part(A, 0, 2, 4)), part(A, 0, 1, 4)),
        (concat(0, concat(0, A, B), A), concat(0, A, B, A)),
        (concat(1, Zeros((2, 1)), Zeros((2, 2))), Zeros((2, 3))),
        (Joined("sum", 0, (Zeros((4, 6)), A)), A),
        (
            concat(
                0, *(Joined("sum", 0, (part(A, 0, k, k + 2), part(B, 0, k, k + 2))) for k in (0, 2))
            ),
            Joined("sum", 0, (A, B)),
        ),
        (
            concat(1, *(Applied(Transpose((1, 0)), part(A, 0, k, k + 2)) for k in (2, 0))),
            Applied(Transpose((1, 0)), Applied(Blocks(0, (1, 0)), A)),
        ),
    ],
)
def test_rules(long: Node, short: Node) -> None:
    assert simplified(long) == short
    assert np.array_equal(long.value(ARRAYS), short.value(ARRAYS))


def test_parts_that_do_not_cover_evenly_stay_apart() -> None:
    for axis, cuts in ((0, ((2, 4), (0, 1))), (0, ((3, 4), (0, 3))), (1, ((0, 2), (0, 2)))):
        node = concat(axis, *(part(A, axis, *cut) for cut in cuts))
        assert simplified(node) == node


def test_taking_apart_is_the_inverse_of_putting_together() -> None:
    slots = {name: Source(name, (2, 3)) for name in "pqr"}
    made = Applied(Transpose((1, 0)), concat(0, slots["q"], slots["p"]))
    stacked = Joined("stack", 0, (slots["r"], slots["p"]))
    arrays = {name: RNG.normal(size=(2, 3)) for name in "pqr"}
    for node, names in ((made, "qp"), (stacked, "rp")):
        whole = {"w": node.value(arrays)}
        pieces = pieces_of(node, Source("w", node.shape))
        assert set(pieces) == set(names)
        assert all(np.array_equal(pieces[n].value(whole), arrays[n]) for n in names)
        assert simplified(replaced(node, pieces)).value(whole).shape == node.shape
        assert np.array_equal(replaced(node, pieces).value(whole), whole["w"])


def test_the_simplest_form_of_a_transform() -> None:
    assert Transform.of(A) == Transform()
    turned = Applied(Transpose((1, 0)), A)
    assert Transform.of(turned) == Transform((1, 0))
    assert Transform((1, 0)).node("a", (4, 6)) == turned
    split = Transform.of(Applied(Reshape((2, 2, 6)), A))
    assert split.expression is not None and split.to_reference(np.zeros((2, 2, 6))) is None
    assert np.array_equal(split.to_candidate(ARRAYS["a"]), ARRAYS["a"].reshape(2, 2, 6))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (("a", "flop 1"), "'flop 1' is no step for 2 axes"),
        (("a", "axes 0 0"), "'axes 0 0' is no step for 2 axes"),
        (("a", "reshape 5 5"), r"\(4, 6\) cannot be reshaped to \(5, 5\)"),
        (("a", "part 0 2:9"), r"\(4, 6\) has no part 2:9 of axis 0"),
        (("a", "blocks 1 0 1 2 3"), "axis 1 of .* has no 4 equal blocks"),
        (("a", "blocks 1 0 2"), r"\(0, 2\) is no order of 2 blocks"),
        (("a", "flip 2"), "has no axes"),
        ((["a", "b"], "transpose"), "'transpose' does not join a list"),
        ((["a", ("b", "transpose")], "sum"), "cannot be joined by sum"),
        (([], "sum"), "the list of parameters is empty"),
    ],
)
def test_steps_that_cannot_be(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(value, {"a": A, "b": B}.__getitem__)


def test_a_file_of_weights(tmp_path: Path) -> None:
    file = tmp_path / "map.txt"
    file.write_text("# of a net\n{\n    'x': ('a', 'transpose'),  # turned\n}\n")
    assert load_map(file) == {"x": ("a", "transpose")}
    for text, message in (("[1]", "must hold a dict, not a list"), ("{'x': f()}", "dict literal")):
        file.write_text(text)
        with pytest.raises(InvalidArgument, match=message):
            load_map(file)
    with pytest.raises(InvalidArgument, match="there is no such file"):
        load_map(tmp_path / "none.txt")
