"""Weights of several layers that one side holds in one array, and the other under numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from crosscheck.adapters.base import Parameter
from crosscheck.weights import Match, match_parameters
from crosscheck.weights.gradients import gradient_map, gradient_pairs

LAYERS, WIDTH, INNER = 3, 6, 10


def parameter(name: str, shape: Sequence[int], kind: str = "other", axes: str = "") -> Parameter:
    layer, _, leaf = name.rpartition(".")
    role = {"weight": "weight", "scale": "weight", "kernel": "weight", "bias": "bias"}
    seed = sum(map(ord, name))
    value = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return Parameter(name, value, layer, role.get(leaf, "other"), kind, tuple(axes.split()) or None)


def one_by_one(layers: int = LAYERS, experts: int = 0) -> list[Parameter]:
    """As PyTorch holds them."""
    found = [parameter("first.weight", (WIDTH, WIDTH), "dense", "out in")]
    for k in range(layers):
        for name, width in ("norm", WIDTH), ("inner_norm", INNER):
            found.append(parameter(f"layers.{k}.{name}.weight", (width,), "norm", "channel"))
            found.append(parameter(f"layers.{k}.{name}.bias", (width,), "norm", "channel"))
        shapes = {"fc1": (INNER, WIDTH), "fc2": (WIDTH, INNER), "gate": (WIDTH, WIDTH)}
        for name, shape in shapes.items():
            found.append(parameter(f"layers.{k}.{name}.weight", shape, "dense", "out in"))
        for e in range(experts):
            name = f"layers.{k}.experts.{e}.up.weight"
            found.append(parameter(name, (INNER, WIDTH), "dense", "out in"))
    return [*found, parameter("norm.weight", (WIDTH,), "norm", "channel")]


def stacked(layers: int = LAYERS) -> list[Parameter]:
    """As Flax holds a scan; its adapter takes the axis that is too many for one of a head."""
    found = [
        parameter("layers.fc1.kernel", (layers, WIDTH, INNER), "dense", "in out/0 out/1"),
        parameter("layers.fc2.kernel", (layers, INNER, WIDTH), "dense", "in out/0 out/1"),
        parameter("layers.gate.kernel", (layers, WIDTH, WIDTH), "dense", "in out/0 out/1"),
    ]
    for name, width in ("norm", WIDTH), ("inner_norm", INNER):
        found.append(parameter(f"layers.{name}.bias", (layers, width), "norm"))
        found.append(parameter(f"layers.{name}.scale", (layers, width), "norm"))
    found.append(parameter("norm.scale", (WIDTH,), "norm", "channel"))
    return [parameter("first.kernel", (WIDTH, WIDTH), "dense", "in out"), *found]


def made(match: Match) -> dict[str, np.ndarray]:
    assert match.complete, (match.unmatched_reference, match.unmatched_candidate, match.lost)
    return match.values()


def held(parameters: Sequence[Parameter]) -> dict[str, np.ndarray]:
    return {p.name: p.value for p in parameters}


def test_a_stack_is_made_of_a_series() -> None:
    ours = one_by_one()
    values, given = made(match_parameters(ours, stacked())), held(ours)
    for k in range(LAYERS):
        for twin, name, turned in (
            ("fc1.kernel", "fc1.weight", True),
            ("gate.kernel", "gate.weight", True),
            ("norm.scale", "norm.weight", False),
            ("inner_norm.bias", "inner_norm.bias", False),
        ):
            truth = given[f"layers.{k}.{name}"]
            np.testing.assert_array_equal(values[f"layers.{twin}"][k], truth.T if turned else truth)


def test_a_series_is_made_of_a_stack() -> None:
    ours = stacked()
    values, given = made(match_parameters(ours, one_by_one())), held(ours)
    for k in range(LAYERS):
        np.testing.assert_array_equal(
            values[f"layers.{k}.fc2.weight"], given["layers.fc2.kernel"][k].T
        )
        np.testing.assert_array_equal(values[f"layers.{k}.norm.bias"], given["layers.norm.bias"][k])


@pytest.mark.parametrize("turned", [False, True])
def test_gradients_go_the_way_back(turned: bool) -> None:
    sides = (one_by_one(), stacked())
    ours, theirs = sides[::-1] if turned else sides
    match = match_parameters(ours, theirs)
    gradients = {m.candidate.name: m.make() * 2.0 for m in match.pairs}
    for p, holders in gradient_pairs(match):
        layout, pullback = gradient_map(p, holders)
        twin = holders[0].candidate.name
        back = (
            layout.to_reference(gradients[twin])
            if pullback is None
            else pullback.of_candidate(gradients)
        )
        assert back is not None
        np.testing.assert_array_equal(back, p.value * 2.0, err_msg=p.name)


@pytest.mark.parametrize("turned", [False, True])
def test_layers_go_with_calls(turned: bool) -> None:
    sides = (one_by_one(), stacked())
    anchors = match_parameters(*(sides[::-1] if turned else sides)).anchors()
    for k in range(LAYERS):
        anchor = f"layers.{k}.norm", f"layers.norm#{k + 1}"
        assert (anchor[::-1] if turned else anchor) in anchors
    assert ("first", "first") in anchors and ("norm", "norm") in anchors


def test_a_stack_that_the_caller_spells_goes_with_calls_too() -> None:
    names = [f"layers.{k}.gate.weight" for k in range(LAYERS)]
    spelled = {"layers.gate.kernel": (names, "stack 0 | axes 0 2 1")}
    anchors = match_parameters(one_by_one(), stacked(), given=spelled).anchors()
    assert (f"layers.{LAYERS - 1}.gate", f"layers.gate#{LAYERS}") in anchors


def test_experts_of_each_layer() -> None:
    """The inner number counts what is stacked, or both do."""
    ours = one_by_one(experts=4)
    given = held(ours)
    per_layer = [p for p in one_by_one() if p.name != "norm.weight"]
    per_layer += [
        parameter(f"layers.{k}.experts.up.kernel", (4, WIDTH, INNER)) for k in range(LAYERS)
    ]
    values = made(match_parameters(ours, [*per_layer, ours[-1]]))
    truth = given["layers.1.experts.2.up.weight"].T
    np.testing.assert_array_equal(values["layers.1.experts.up.kernel"][2], truth)
    whole = parameter("layers.experts.up.kernel", (LAYERS, 4, WIDTH, INNER))
    values = made(match_parameters(ours, [*stacked(), whole]))
    np.testing.assert_array_equal(values["layers.experts.up.kernel"][1, 2], truth)


def test_as_many_layers_as_a_matrix_has_rows() -> None:
    """Nothing is taken apart where everything has a counterpart as it is."""
    sides = one_by_one(WIDTH), one_by_one(WIDTH)
    match = match_parameters(*sides)
    assert match.complete and all(m.reference_name == m.candidate.name for m in match.pairs)
    odd = one_by_one(WIDTH), [*one_by_one(WIDTH), parameter("further", (WIDTH, 7))]
    match = match_parameters(*odd)
    assert [p.name for p in match.unmatched_candidate] == ["further"]
    assert all(m.reference_name == m.candidate.name for m in match.pairs)


def test_other_lengths_are_no_stack() -> None:
    match = match_parameters(one_by_one(LAYERS), stacked(LAYERS + 1))
    left = {p.name for p in match.unmatched_candidate}
    assert {"layers.fc1.kernel", "layers.norm.scale"} <= left


def test_many_members_are_told_by_the_first_and_the_last() -> None:
    match = match_parameters(one_by_one(12), stacked(12))
    (pair,) = (m for m in match.pairs if m.candidate.name == "layers.norm.scale")
    assert pair.reference_name == "layers.0.norm.weight, ..., layers.11.norm.weight"


def experts(
    names: Sequence[str], packed: str = "", layers: int = 2, count: int = 4
) -> list[Parameter]:
    """Gated experts in one array for each product: (E, in, out), or gate and up packed, and as
    PyTorch has them."""
    gate, up, down = names
    shapes = {gate: (WIDTH, INNER), up: (WIDTH, INNER), down: (INNER, WIDTH)}
    if packed:
        shapes = {packed: (2 * INNER, WIDTH), down: (WIDTH, INNER)}
    return [
        parameter(f"layers.{k}.experts.{name}", (count, *shape))
        for k in range(layers)
        for name, shape in shapes.items()
    ]


@pytest.mark.parametrize(
    "names",
    [
        ("gate", "up", "down"),
        ("w1", "w3", "w2"),
        ("ffn_gate_dense", "ffn_intermediate_dense", "ffn_out"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_packed_projections_of_experts(names: tuple[str, str, str], turned: bool) -> None:
    """Both sides hold all experts in one array, and one of them two products in one."""
    ours = experts(("gate", "up", "down"), packed="gate_up")
    theirs = experts(names)
    pair = (theirs, ours) if turned else (ours, theirs)
    values = made(match_parameters(*pair))
    source = held(pair[0])
    for k in range(2):
        at = f"layers.{k}.experts."
        gate, up, down = (at + name for name in names)
        swapped = lambda name: source[name].transpose(0, 2, 1)  # noqa: E731
        if turned:
            both = np.concatenate([swapped(gate), swapped(up)], axis=1)
            np.testing.assert_array_equal(values[at + "gate_up"], both)
            np.testing.assert_array_equal(values[at + "down"], swapped(down))
        else:
            both = swapped(at + "gate_up")
            np.testing.assert_array_equal(values[gate], both[..., :INNER])
            np.testing.assert_array_equal(values[up], both[..., INNER:])
            np.testing.assert_array_equal(values[down], swapped(at + "down"))
