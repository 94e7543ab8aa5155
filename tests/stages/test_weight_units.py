"""Stage 2: recurrent cells and attention, recognised by the names and shapes people give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from crosscheck.adapters.base import Parameter
from crosscheck.errors import CannotCompare
from crosscheck.weights import Match, match_parameters
from crosscheck.weights.recurrent import units

Shape = tuple[int, ...]


def cell(
    layer: str, kind: str, shapes: Mapping[str, Shape], axes: Mapping[str, tuple[str, ...]] = {}
) -> list[Parameter]:
    """Parameters ``layer.NAME``, each with values of its own."""
    found = []
    for k, (name, shape) in enumerate(shapes.items()):
        value = np.random.default_rng(k).normal(size=shape).astype(np.float32)
        role = "bias" if name.lower().startswith("b") else "weight"
        found.append(Parameter(f"{layer}.{name}", value, layer, role, kind, axes.get(name)))
    return found


def packed(
    layer: str = "lstm", gates: str = "ifgo", n_in: int = 3, hidden: int = 5
) -> list[Parameter]:
    """As PyTorch packs them."""
    rows, kind = len(gates) * hidden, {4: "lstm", 3: "gru", 1: "rnn"}[len(gates)]
    shapes = {
        "weight_ih_l0": (rows, n_in),
        "weight_hh_l0": (rows, hidden),
        "bias_ih_l0": (rows,),
        "bias_hh_l0": (rows,),
    }
    axes = {n: (f"gates:{gates}", "in")[: len(s)] for n, s in shapes.items()}
    return cell(layer, kind, shapes, axes)


def rows_of(parameters: list[Parameter], name: str, gate: str, gates: str) -> np.ndarray:
    value = next(p.value for p in parameters if p.name.endswith(name))
    return np.split(value, len(gates))[gates.index(gate)]


BY_GATE = {
    "W_f, U_f, b_f": ("W_{}", "U_{}", "b_{}"),
    "Wxf, Whf, bf": ("Wx{}", "Wh{}", "b{}"),
    "W_xf, W_hf, b_f": ("W_x{}", "W_h{}", "b_{}"),
    "W_fx, W_fh, b_f": ("W_{}x", "W_{}h", "b_{}"),
}


@pytest.mark.parametrize("style", BY_GATE)
@pytest.mark.parametrize("third", ["g", "c"])
def test_a_matrix_for_each_gate(style: str, third: str) -> None:
    ours = packed()
    w, u, b = BY_GATE[style]
    letters = {"i": "i", "f": "f", third: "g", "o": "o"}
    shapes: dict[str, Shape] = {}
    for letter in letters:
        shapes |= {w.format(letter): (3, 5), u.format(letter): (5, 5), b.format(letter): (5,)}
    match = match_parameters(ours, cell("net", "other", shapes))
    match.require_complete()
    values = match.choosing({m.candidate.name: m.transform for m in match.ambiguous()}).values()
    for letter, gate in letters.items():
        expected = rows_of(ours, "weight_ih_l0", gate, "ifgo").T
        assert np.array_equal(values[f"net.{w.format(letter)}"], expected)
        biases = [rows_of(ours, f"bias_{s}_l0", gate, "ifgo") for s in ("ih", "hh")]
        assert np.allclose(values[f"net.{b.format(letter)}"], biases[0] + biases[1])


PACKED = {
    "W_x, W_h, b": {"W_x": (3, 20), "W_h": (5, 20), "b": (20,)},
    "Wx, Wh, b": {"Wx": (3, 20), "Wh": (5, 20), "b": (20,)},
    "W_ih, W_hh, b_ih, b_hh": {"W_ih": (20, 3), "W_hh": (20, 5), "b_ih": (20,), "b_hh": (20,)},
    "W, U, b": {"W": (3, 20), "U": (5, 20), "b": (20,)},
    "kernel, recurrent_kernel": {"kernel": (3, 20), "recurrent_kernel": (5, 20), "bias": (20,)},
    "without bias": {"W_x": (3, 20), "W_h": (5, 20)},
}


@pytest.mark.parametrize("style", PACKED)
def test_packed_gates_of_unknown_order(style: str) -> None:
    ours = packed() if "without" not in style else packed()[:2]
    match = match_parameters(ours, cell("net", "other", PACKED[style]))
    match.require_complete()
    options = {1 + len(m.alternatives) for m in match.pairs}
    assert options == {24}  # every order of four gates
    assert len({m.decision for m in match.pairs}) == 1
    assert all(m.make().shape == m.candidate.value.shape for m in match.pairs)


def test_known_orders_leave_nothing_open() -> None:
    ours = packed(gates="rzn")
    axes = {"kernel": ("in", "gates:zrn"), "recurrent_kernel": ("in", "gates:zrn")}
    shapes = {"kernel": (3, 15), "recurrent_kernel": (5, 15), "bias": (2, 15)}
    match = match_parameters(
        ours, cell("gru_cell", "gru", shapes, axes | {"bias": ("x", "gates:zrn")})
    )
    match.require_complete()
    assert match.ambiguous() == []
    kernel = match.values()["gru_cell.kernel"]
    gates = dict(zip("zrn", np.split(kernel, 3, axis=1), strict=True))
    for gate in "rzn":
        assert np.array_equal(gates[gate].T, rows_of(ours, "weight_ih_l0", gate, "rzn"))


def test_concatenated_inputs_need_a_layer_that_is_called_recurrent() -> None:
    shapes = {"W": (8, 20), "b": (20,)}
    assert units(cell("net", "dense", shapes)) == []
    match = match_parameters(packed(), cell("net", "lstm", shapes))
    match.require_complete()
    kernel = next(m for m in match.pairs if m.candidate.name == "net.W")
    assert {p.name for p in kernel.references} == {"lstm.weight_ih_l0", "lstm.weight_hh_l0"}
    assert 1 + len(kernel.alternatives) == 48  # 24 orders, [x, h] or [h, x]


@pytest.mark.parametrize(
    "shapes",
    [
        {"W": (4, 6), "b": (6,)},
        {"weight": (8, 8), "bias": (8,)},
        {"Wq": (8, 8), "Wk": (8, 8), "Wv": (8, 8), "Wo": (8, 8)},
        {"W1": (4, 6), "b1": (6,), "W2": (6, 3), "b2": (3,)},
        {"W_x": (3, 20), "W_h": (6, 20)},
        {"W_x": (3, 5), "W_h": (4, 5), "b": (5,)},
    ],
    ids=str,
)
def test_what_is_no_recurrent_cell(shapes: dict[str, Shape]) -> None:
    assert units(cell("net", "other", shapes)) == []


def test_other_parameters_of_the_class_are_left_to_the_other_rules() -> None:
    ours = [*packed(), *cell("head", "dense", {"weight": (7, 5)}, {"weight": ("out", "in")})]
    theirs = cell("net", "other", {"W_x": (3, 20), "W_h": (5, 20), "b": (20,), "W_y": (5, 7)})
    match = match_parameters(ours, theirs)
    match.require_complete()
    head = next(m for m in match.pairs if m.candidate.name == "net.W_y")
    assert head.reference.name == "head.weight"


def test_both_directions_keep_theirs_whatever_the_order_of_definition() -> None:
    def renamed(part: list[Parameter], tail: str) -> list[Parameter]:
        return [replace(p, name=p.name + tail, value=p.value + len(tail)) for p in part]

    ours = packed() + renamed(packed(), "_reverse")
    shapes = {"kernel": (3, 20), "recurrent_kernel": (5, 20), "bias": (20,)}
    axes = {"kernel": ("in", "gates:ifgo"), "recurrent_kernel": ("in", "gates:ifgo")}
    for order in (("backward", "forward"), ("forward", "backward")):
        theirs = [p for way in order for p in cell(f"bi/{way}_lstm", "lstm", shapes, axes)]
        match = match_parameters(ours, theirs)
        match.require_complete()
        for m in match.pairs:
            assert ("backward" in m.candidate.name) == m.reference.name.endswith("_reverse")


def test_a_bias_that_only_one_of_two_holds() -> None:
    ours = packed(gates="rzn")
    shapes: dict[str, Shape] = {}
    for gate in "rzn":
        shapes |= {f"W_{gate}": (5, 3), f"U_{gate}": (5, 5), f"b_{gate}": (5,)}
    match: Match = match_parameters(ours, cell("net", "gru", shapes))
    assert not match.complete
    with pytest.raises(CannotCompare, match="the new state has one bias, here two"):
        match.require_complete()
    zero = [*ours[:2], *(replace(p, value=0 * p.value) for p in ours[2:])]
    left = match_parameters(zero, cell("net", "gru", shapes))
    assert left.complete and left.partial == {"lstm.bias_hh_l0"}


def gate_and_up(layers: int, names: tuple[str, str] = ("gate_proj", "up_proj")) -> list[Parameter]:
    found = []
    for k in range(layers):
        for name in (*names, "down_proj"):
            shape = (5, 8) if name == "down_proj" else (8, 5)
            value = np.random.default_rng(len(found)).standard_normal(shape).astype(np.float32)
            path = f"layers.{k}.mlp.{name}"
            found.append(Parameter(f"{path}.weight", value, path, "weight", "dense", ("out", "in")))
    return found


def gated_kernels(layers: int) -> list[Parameter]:
    found = []
    for k in range(layers):
        for name, shape in {"wi": (5, 16), "wo": (8, 5)}.items():
            path = f"h/{k}/{name}"
            kernel = np.zeros(shape, np.float32)
            found.append(
                Parameter(f"{path}/kernel", kernel, path, "weight", "dense", ("in", "out"))
            )
    return found


@pytest.mark.parametrize("names", [("gate_proj", "up_proj"), ("w1", "w3"), ("wi_0", "wi_1")])
def test_a_gate_and_what_it_multiplies_in_one_kernel(names: tuple[str, str]) -> None:
    ours = gate_and_up(2, names)
    match = match_parameters(ours, gated_kernels(2))
    assert match.complete
    held = {p.name: p.value for p in ours}
    gate, up = (held[f"layers.1.mlp.{name}.weight"].T for name in names)
    np.testing.assert_array_equal(match.values()["h/1/wi/kernel"], np.hstack([gate, up]))
    (options,) = (m.alternatives for m in match.pairs if m.candidate.name == "h/1/wi/kernel")
    made = [option.make(held) for option in options]
    np.testing.assert_array_equal(made, [np.hstack([up, gate])])
    back = match_parameters(gated_kernels(2), ours)
    assert back.complete and len(back.ambiguous()) == 4


def test_gates_that_both_sides_have_apart_are_packed_with_nothing() -> None:
    """Though a layer behind them has a shape that would do."""
    head = Parameter(
        "head.weight", np.zeros((16, 5), np.float32), "head", "weight", "dense", ("out", "in")
    )
    sides = [*gate_and_up(2), head], [*gate_and_up(2), head]
    match = match_parameters(*sides)
    assert match.complete and all(m.reference.name == m.candidate.name for m in match.pairs)
