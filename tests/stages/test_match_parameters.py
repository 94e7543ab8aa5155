"""Stage 2, transfer: which parameter belongs to which, and in which layout."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from crosscheck.adapters.base import Parameter
from crosscheck.errors import CannotCompare
from crosscheck.weights import Match, Transform, match_parameters

ROLES = {"weight": "weight", "kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}
AXES = {
    "torch": {"dense": ("out", "in"), "conv": ("out", "in", "h", "w")},
    "keras": {"dense": ("in", "out"), "conv": ("h", "w", "in", "out")},
    "": {},
}


def parameter(name: str, shape: Sequence[int], kind: str = "dense", side: str = "") -> Parameter:
    """The layer is all but the last part of the name; W1, b2 and the like have roles too."""
    layer, _, leaf = name.replace("/", ".").rpartition(".")
    layer = name[: len(layer)]
    role = ROLES.get(leaf, {"W": "weight", "b": "bias"}.get(leaf[:1], "other"))
    axes = AXES[side].get(kind) if role == "weight" else ("out",) if side else None
    value = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    return Parameter(name, value, layer, role, kind, axes)


def dense(name: str, n_in: int, n_out: int, side: str = "", bias: bool = True) -> list[Parameter]:
    keras = side == "keras"
    separator, leaves = ("/", ("kernel", "bias")) if keras else (".", ("weight", "bias"))
    shape = (n_in, n_out) if side != "torch" else (n_out, n_in)
    found = [parameter(f"{name}{separator}{leaves[0]}", shape, "dense", side)]
    return (
        [*found, parameter(f"{name}{separator}{leaves[1]}", (n_out,), "dense", side)]
        if bias
        else found
    )


def names(match: Match) -> dict[str, str]:
    """reference name -> candidate name."""
    return {m.reference.name: m.candidate.name for m in match.pairs}


def layers(match: Match) -> dict[str, str]:
    return dict(match.anchors())


def flat(groups: Sequence[Sequence[Parameter]]) -> list[Parameter]:
    return [p for group in groups for p in group]


@pytest.mark.parametrize(
    "keras",
    [
        ["dense_1", "dense_2", "dense_3", "dense_4", "dense_5"],
        ["dense", "dense_1", "dense_2", "dense_3", "dense_4"],
        ["dense_7", "dense_8", "dense_9", "dense_10", "dense_11"],
        ["seq/fc1", "seq/fc2", "seq/fc3", "seq/fc4", "seq/fc5"],
    ],
)
def test_a_sequential_against_numbered_layers_of_one_shape(keras: list[str]) -> None:
    ours = flat([dense(f"layers.{2 * i}", 8, 8, "torch") for i in range(5)])
    theirs = flat([dense(name, 8, 8, "keras") for name in keras])
    match = match_parameters(ours, theirs)
    assert layers(match) == {f"layers.{2 * i}": keras[i] for i in range(5)}
    assert all(
        m.transform == Transform((1, 0)) for m in match.pairs if m.reference.role == "weight"
    )
    match.require_complete()


@pytest.mark.parametrize("order", list(itertools.permutations("qkv")))
def test_q_k_v_in_another_order_of_definition(order: tuple[str, ...]) -> None:
    words = {"q": "query", "k": "key", "v": "value"}
    ours = flat([dense(f"attn.{n}_proj", 8, 8, "torch") for n in "qkvo"])
    theirs = flat([dense(f"attention/{words[n]}", 8, 8, "keras") for n in order])
    theirs += dense("attention/output", 8, 8, "keras")
    found = layers(match_parameters(ours, theirs))
    assert found == {
        "attn.q_proj": "attention/query",
        "attn.k_proj": "attention/key",
        "attn.v_proj": "attention/value",
        "attn.o_proj": "attention/output",
    }


def test_blocks_keep_together_whatever_their_inner_order() -> None:
    ours = flat(
        [
            dense(f"blocks.{i}.{n}", 8, 8, "torch")
            for i in range(4)
            for n in ("fc1", "fc2", "shortcut")
        ]
    )
    theirs = flat(
        [
            dense(f"block_{i}/{n}", 8, 8, "keras")
            for i in range(4)
            for n in ("downsample", "dense_1", "dense_2")
        ]
    )
    found = layers(match_parameters(ours, theirs))
    expected = {"fc1": "dense_1", "fc2": "dense_2", "shortcut": "downsample"}
    assert found == {
        f"blocks.{i}.{r}": f"block_{i}/{c}" for i in range(4) for r, c in expected.items()
    }


def test_numbers_count_layers_of_one_kind() -> None:
    """features.0 conv, .1 norm, .3 conv, .4 norm against one list of each."""
    ours, theirs = [], []
    for i in range(4):
        ours.append(parameter(f"layers.{3 * i}.weight", (8, 8, 3, 3), "conv", "torch"))
        ours.append(parameter(f"layers.{3 * i + 1}.weight", (8,), "norm", "torch"))
    for kind, shape in (("norm", (8,)), ("conv", (3, 3, 8, 8))):
        theirs += [parameter(f"{kind}/layers_{i}/kernel", shape, kind, "keras") for i in range(4)]
    found = layers(match_parameters(ours, theirs))
    assert found == {
        f"layers.{3 * i + k}": f"{kind}/layers_{i}"
        for i in range(4)
        for k, kind in enumerate(("conv", "norm"))
    }


def test_names_that_do_not_decide_leave_it_to_the_order() -> None:
    ours = flat([dense(f"net.enc.top.{n}", 8, 8, "torch") for n in ("left", "right")])
    theirs = flat([dense(f"net/enc/top/{n}", 8, 8, "keras") for n in ("one", "two")])
    assert layers(match_parameters(ours, theirs)) == {
        "net.enc.top.left": "net/enc/top/one",
        "net.enc.top.right": "net/enc/top/two",
    }


def test_shapes_come_before_names() -> None:
    ours = dense("first", 4, 8, "torch") + dense("second", 8, 3, "torch")
    theirs = dense("second", 4, 8, "keras") + dense("first", 8, 3, "keras")
    assert layers(match_parameters(ours, theirs)) == {"first": "second", "second": "first"}


# -- layouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((6, 3, 2, 5), None), ((2, 5, 3, 6), (2, 3, 1, 0)), ((6, 2, 5, 3), (0, 2, 3, 1))],
)
def test_convolution_layouts(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> None:
    """OIHW against OIHW, HWIO and OHWI, without axis names on the candidate's side."""
    reference = parameter("conv.weight", (6, 3, 2, 5), "conv", "torch")
    match = match_parameters([reference], [parameter("c.kernel", shape, "conv")])
    (pair,) = match.pairs
    assert pair.transform == Transform(axes) and not pair.alternatives
    assert match.values()["c.kernel"].shape == shape
    back = pair.transform.to_reference(match.values()["c.kernel"])
    assert back is not None and np.array_equal(back, reference.value)


def test_named_axes_leave_nothing_open() -> None:
    ours = [parameter("c.weight", (3, 3, 3, 3), "conv", "torch")]
    theirs = [parameter("c/kernel", (3, 3, 3, 3), "conv", "keras")]
    (pair,) = match_parameters(ours, theirs).pairs
    assert pair.transform == Transform((2, 3, 1, 0)) and not pair.alternatives


def test_a_square_matrix_follows_the_other_layers_of_its_kind() -> None:
    ours = dense("a", 4, 6, "torch") + dense("b", 6, 6, "torch")
    for layout, expected in (("torch", Transform()), ("", Transform((1, 0)))):
        shape = (6, 4) if layout == "torch" else (4, 6)
        theirs = [parameter("a.weight", shape), parameter("a.bias", (6,))]
        theirs += [parameter("b.weight", (6, 6)), parameter("b.bias", (6,))]
        match = match_parameters(ours, theirs)
        assert {m.transform for m in match.pairs if m.reference.role == "weight"} == {expected}
        assert match.ambiguous() == []


def test_a_square_matrix_alone_stays_open() -> None:
    match = match_parameters(dense("b", 6, 6, "torch"), dense("b", 6, 6))
    (open_,) = match.ambiguous()
    assert (open_.transform, open_.alternatives) == (Transform(), (Transform((1, 0)),))
    settled = match.choosing({"b.weight": Transform((1, 0))})
    assert settled.ambiguous() == [] and match.ambiguous() == [open_]
    assert np.array_equal(settled.values()["b.weight"], open_.reference.value.T)


def test_contradicting_conventions_settle_nothing() -> None:
    ours = dense("a", 4, 6, "torch") + dense("c", 4, 7, "torch") + dense("b", 6, 6, "torch")
    theirs = [
        parameter("a.weight", (6, 4)),
        parameter("c.weight", (4, 7)),
        parameter("b.weight", (6, 6)),
    ]
    match = match_parameters([p for p in ours if p.role == "weight"], theirs)
    assert [m.candidate.name for m in match.ambiguous()] == ["b.weight"]


# -- unequal sides ---------------------------------------------------------------------------------


def test_a_missing_bias_leaves_the_weights_matched() -> None:
    ours = dense("a", 4, 6, "torch") + dense("b", 6, 5, "torch")
    theirs = dense("a", 4, 6, "keras", bias=False) + dense("b", 6, 5, "keras")
    match = match_parameters(ours, theirs)
    assert names(match) == {"a.weight": "a/kernel", "b.weight": "b/kernel", "b.bias": "b/bias"}
    assert [p.name for p in match.unmatched_reference] == ["a.bias"]
    assert match.unmatched_candidate == ()


def test_an_extra_layer_is_left_over_on_either_side() -> None:
    ours = flat([dense(f"fc{i}", 8, 8, "torch") for i in (1, 2, 3)])
    theirs = flat([dense(f"fc{i}", 8, 8, "keras") for i in (1, 3)])
    match = match_parameters(ours, theirs)
    assert len(match.pairs) == 4 and len(match.unmatched_reference) == 2
    match = match_parameters(theirs, ours)
    assert len(match.pairs) == 4 and len(match.unmatched_candidate) == 2
    auxiliary = dense("aux_head", 8, 8, "torch")
    match = match_parameters(
        ours + auxiliary, flat([dense(f"fc{i}", 8, 8, "keras") for i in (1, 2, 3)])
    )
    assert [p.layer for p in match.unmatched_reference] == ["aux_head"] * 2


def test_a_layer_prefers_the_one_that_has_all_its_parameters() -> None:
    ours = dense("last", 8, 8, "torch")
    theirs = dense("x", 8, 8, "keras", bias=False) + dense("y", 8, 8, "keras")
    assert layers(match_parameters(ours, theirs)) == {"last": "y"}
    assert layers(match_parameters(ours, theirs[1:] + theirs[:1])) == {"last": "y"}


def test_a_flat_dictionary_of_parameters() -> None:
    ours = (
        dense("net.0", 4, 6, "torch")
        + dense("net.2", 6, 6, "torch")
        + dense("net.4", 6, 3, "torch")
    )
    shapes = {"W1": (4, 6), "b1": (6,), "W2": (6, 6), "b2": (6,), "W3": (6, 3), "b3": (3,)}
    for order in (list(shapes), sorted(shapes, key=lambda n: n[0]), sorted(shapes)):
        theirs = [parameter(name, shapes[name]) for name in order]
        match = match_parameters(ours, theirs)
        assert names(match) == {
            "net.0.weight": "W1",
            "net.0.bias": "b1",
            "net.2.weight": "W2",
            "net.2.bias": "b2",
            "net.4.weight": "W3",
            "net.4.bias": "b3",
        }
        square = next(m for m in match.pairs if m.candidate.name == "W2")
        assert square.reference.value.shape == (6, 6)


@pytest.mark.parametrize(("shape", "how"), [((4, 3, 6), "stack 1"), ((12, 6), "concat 0")])
def test_several_layers_that_the_candidate_holds_in_one_are_named(
    shape: tuple[int, ...], how: str
) -> None:
    ours = flat([dense(f"experts.{i}.up", 6, 4, "torch") for i in range(3)])
    match = match_parameters(ours, [parameter("w1", shape)])
    with pytest.raises(CannotCompare) as caught:
        match.require_complete()
    text = str(caught.value)
    assert "the 3 of this shape: `experts.0.up.weight`, `experts.1.up.weight`, " in text
    start = 'Fix: weights={"w1": (["experts.0.up.weight", "experts.1.up.weight", ...], '
    assert f'{start}"{how}")}}' in text


def test_nothing_on_one_side() -> None:
    match = match_parameters([], dense("a", 2, 3))
    assert match.pairs == () and len(match.unmatched_candidate) == 2
    assert match_parameters([], []).values() == {}


# -- layers of another kind, and parameters without one --------------------------------------------


def bare(name: str, layer: str, role: str = "other", kind: str = "other") -> Parameter:
    value = np.random.default_rng(len(name)).normal(size=5).astype(np.float32)
    return Parameter(name, value, layer, role, kind, ("channel",))


@pytest.mark.parametrize("space", ["w", "hw"])
def test_a_convolution_with_windows_of_one_pixel_is_a_dense_layer(space: str) -> None:
    """As in squeeze-and-excitation."""
    rng, ones = np.random.default_rng(3), (1,) * len(space)
    value = rng.normal(size=(4, 6)).astype(np.float32)

    def weight(name: str, value: np.ndarray, kind: str, axes: tuple[str, ...]) -> Parameter:
        return Parameter(f"{name}.weight", value, name, "weight", kind, axes)

    conv = weight("se", value.reshape(4, 6, *ones), "conv", ("out", "in", *space))
    dense = weight("se", value.T, "dense", ("in", "out"))
    for ours, theirs in ((conv, dense), (dense, conv)):
        match = match_parameters([ours], [theirs])
        match.require_complete()
        assert np.array_equal(match.values()["se.weight"], theirs.value)


@pytest.mark.parametrize("space", ["w", "hw", "dhw"])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_convolution_over_windows_side_by_side_is_a_dense_layer_on_patches(
    space: str, backwards: bool
) -> None:
    """How a patch holds its channels, first or last, no shape tells: both are offered."""
    sizes = (3, 5, 2)[: len(space)]
    value = np.random.default_rng(4).normal(size=(4, 6, *sizes)).astype(np.float32)
    axes = ("out", "in", *space)
    conv = Parameter("patch.weight", value, "patch", "weight", "conv", axes)
    first = value.reshape(4, -1).T
    last = np.moveaxis(value, 1, -1).reshape(4, -1).T
    for number, matrix in enumerate((first, last)):
        dense = Parameter("patch.kernel", matrix, "patch", "weight", "dense", ("in", "out"))
        ours, theirs = (dense, conv) if backwards else (conv, dense)
        (matched,) = match_parameters([ours], [theirs]).pairs
        made = [matched.transform, *matched.alternatives][number]
        assert len(matched.alternatives) == 1
        assert np.array_equal(made.make({ours.name: ours.value}), theirs.value)
    short = Parameter("patch.kernel", first[1:], "patch", "weight", "dense", ("in", "out"))
    assert not match_parameters([conv], [short]).pairs


@pytest.mark.parametrize("turned", [False, True])
def test_a_bare_parameter_of_each_block_belongs_to_a_layer_of_the_other_side(turned: bool) -> None:
    ours = [bare(f"stage.{i}.gamma", f"stage.{i}") for i in range(3)]
    theirs = [bare(f"b{i}_scale/gamma", f"b{i}_scale", "weight") for i in range(1, 4)]
    match = match_parameters(ours, theirs[::-1] if turned else theirs)
    assert names(match) == {p.name: q.name for p, q in zip(ours, theirs, strict=True)}
    match.require_complete()


def test_bare_parameters_of_unequal_number_stay_open() -> None:
    ours = [bare(f"stage.{i}.gamma", f"stage.{i}") for i in range(3)]
    theirs = [bare(f"b{i}_scale/gamma", f"b{i}_scale", "weight") for i in range(2)]
    assert not match_parameters(ours, theirs).pairs


def test_bare_parameters_that_are_held_belong_to_their_equals() -> None:
    ours = [bare(n, "") for n in ("one", "fifth", "another")]
    theirs = [bare(n, n, "weight") for n in ("c", "b", "a")]
    theirs = [
        Parameter(q.name, p.value, q.layer, q.role, q.kind, q.axes)
        for p, q in zip(ours[::-1], theirs, strict=True)
    ]
    match = match_parameters(ours, theirs, held=True)
    assert names(match) == {"one": "a", "fifth": "b", "another": "c"}


def test_a_tree_of_plain_arrays_names_its_weights_as_layers_are_named() -> None:
    reference = [
        *(
            parameter(f"block.{i}.attn.{n}.weight", (6, 4), side="torch")
            for i in (0, 1)
            for n in "qg"
        ),
        parameter("final.weight", (6,), "norm"),
    ]
    candidate = [
        *(parameter(f"block.{i}.{n}", (4, 6), "other") for i in (0, 1) for n in "qg"),
        parameter("final", (6,), "other"),
        parameter("table", (6,), "other"),
    ]
    match = match_parameters(reference, candidate)
    assert {m.candidate.name: m.reference.name for m in match.pairs} == {
        **{f"block.{i}.{n}": f"block.{i}.attn.{n}.weight" for i in (0, 1) for n in "qg"},
        "final": "final.weight",
    }
    assert [p.name for p in match.unmatched_candidate] == ["table"]
