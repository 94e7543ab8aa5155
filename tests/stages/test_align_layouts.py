"""Stage 5, layouts: learned once from values, then enforced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crosscheck.aligning.fingerprints import SAME_VALUE
from crosscheck.aligning.layout import (
    Layout,
    LayoutBook,
    between,
    cut_of,
    fitting,
    mergings,
    relative_error,
)
from tests.stages.graphs import Graph, Node, aligned, pairs

RNG = np.random.default_rng(0)
NHWC, NCHW = Layout((0, 3, 1, 2)), Layout((0, 2, 3, 1))
NLC = Layout((0, 2, 1))


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


# -- one layout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [Layout(), NHWC, NCHW, Layout((3, 0, 2, 1))])
def test_a_layout_and_its_inverse(layout: Layout) -> None:
    candidate = normal(2, 3, 4, 5)
    reference = layout.to_reference(candidate)
    assert layout.fits(reference.shape, candidate.shape)
    assert np.array_equal(layout.to_candidate(reference), candidate)
    assert np.shares_memory(reference, candidate)
    assert not layout.fits((9, 9, 9, 9), candidate.shape)
    assert not layout.fits(reference.shape[:3], candidate.shape)


def test_channels_last_is_what_it_says() -> None:
    images = normal(2, 5, 7, 3)  # (N, H, W, C)
    assert NHWC.to_reference(images).shape == (2, 3, 5, 7)
    assert NHWC.to_reference(images)[1, 2, 3, 4] == images[1, 3, 4, 2]
    assert str(NHWC) == "transposed (0, 3, 1, 2)" and str(Layout()) == "as it is"


@pytest.mark.parametrize(
    ("reference", "candidate", "layouts"),
    [
        ((2, 3), (2, 3), [Layout()]),
        ((2, 3), (3, 2), []),  # a matrix has no layout: transposed is wrong
        ((2, 3), (2, 3, 1), []),
        ((), (), [Layout()]),
        ((2, 5, 7), (2, 7, 5), [NLC]),
        ((2, 5, 5), (2, 5, 5), [Layout(), NLC]),
        ((2, 3, 5, 7), (2, 5, 7, 3), [NHWC]),
        ((2, 5, 7, 3), (2, 3, 5, 7), [NCHW]),
        ((2, 3, 5, 7), (2, 3, 7, 5), []),
        ((2, 4, 4, 4), (2, 4, 4, 4), [Layout(), NHWC, NCHW]),
        ((2, 3, 4, 5, 6), (2, 4, 5, 6, 3), [Layout((0, 4, 1, 2, 3))]),
    ],
)
def test_the_known_layouts_of_two_shapes(
    reference: tuple[int, ...], candidate: tuple[int, ...], layouts: list[Layout]
) -> None:
    assert fitting(reference, candidate) == layouts


# -- the book --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("few", "many", "merges"),
    [
        ((2, 13, 48), (2, 13, 4, 12), True),
        ((26, 48), (2, 13, 4, 12), True),
        ((2, 48), (2, 4, 13), False),
        ((12, 5), (5, 3, 4), False),
        # An axis of length 1 is broadcast otherwise, wherever it stands.
        ((7,), (7, 1), False),
        ((6,), (1, 6), False),
        ((6,), (2, 1, 3), False),
        ((1, 6), (1, 2, 3), True),
    ],
)
def test_neighbouring_axes_held_as_one(
    few: tuple[int, ...], many: tuple[int, ...], merges: bool
) -> None:
    for reference, candidate in ((few, many), (many, few)):
        layouts = [one for one in mergings(reference, candidate) if one.axes is None]
        assert len(layouts) == merges
        for layout in layouts:
            assert layout.to_reference(np.zeros(candidate)).shape == reference


@pytest.mark.parametrize("shape", [(5, 3, 4), (5, 3, 4, 2), (5, 3, 2, 4, 6)])
def test_sequences_first_is_a_layout_within_models(shape: tuple[int, ...]) -> None:
    swapped = (shape[1], shape[0], *shape[2:])
    assert fitting(shape, swapped) == []
    (layout,) = between(shape, swapped)
    value = normal(*shape)
    assert np.array_equal(layout.to_candidate(value), value.swapaxes(0, 1))
    learned = LayoutBook()
    assert learned.choose(shape, swapped) is None
    assert learned.choose(shape, swapped, merged=True) == layout
    square = (6, 6, *shape[2:])
    assert learned.choose(square, square, merged=True) == Layout()
    learned.vote([layout], len(shape), len(shape))
    assert learned.choose(square, square, merged=True) == layout
    assert learned.choose(square, square) == Layout()
    assert between((5, 3), (3, 5)) == []  # a matrix: transposed is wrong


HEADS, LAST, FIRST = (0, 2, 1, 3), (0, 2, 3, 1), (0, 3, 1, 2)


@pytest.mark.parametrize(
    ("few", "many", "orders"),
    [
        ((2, 35, 4), (2, 4, 5, 7), [LAST]),  # an image of patches, and a row of tokens
        ((70, 4), (2, 4, 5, 7), [LAST]),  # a convolution by hand, as a product of matrices
        ((2, 4, 35), (2, 5, 7, 4), [FIRST]),
        ((2, 13, 28), (2, 4, 13, 7), [HEADS]),
        ((26, 4, 7), (2, 4, 13, 7), [HEADS]),
        ((26, 5), (2, 5, 13), [(0, 2, 1)]),
        ((26, 5), (2, 13, 5), [None, (1, 0, 2)]),  # sequences first
        ((2, 16, 4), (2, 4, 4, 4), [None, LAST]),  # the first as it lies, which is tried first
        ((14, 4, 8, 9), (2, 7, 8, 9, 4), [(0, 1, 4, 2, 3)]),  # frames of a film
        ((14, 8, 9, 4), (2, 7, 4, 8, 9), [(0, 1, 3, 4, 2)]),
        ((14, 4, 9), (2, 7, 9, 4), [(0, 1, 3, 2)]),
        # A batch of one that the other side does without; what broadcasts otherwise stays.
        ((7, 5), (1, 7, 5), [None]),
        ((7, 5), (7, 1, 5), [(1, 0, 2)]),
        ((7, 12), (1, 4, 7, 3), [HEADS]),
        ((12, 8), (1, 8, 3, 4), [LAST]),
        ((8, 4, 4), (1, 8, 4, 4), [None]),
        ((8, 4), (8, 4, 1), []),
        # Channels flattened with the rest: their order is what would be hidden.
        ((2, 140), (2, 4, 5, 7), [None]),
        ((2, 20, 7), (2, 4, 5, 7), [None]),
        ((2, 28, 5), (2, 4, 5, 7), []),
    ],
)
def test_axes_turned_before_they_are_merged(
    few: tuple[int, ...], many: tuple[int, ...], orders: list[tuple[int, ...] | None]
) -> None:
    value = normal(*many)
    for reference, candidate in ((few, many), (many, few)):
        layouts = mergings(reference, candidate)
        assert [one.axes for one in layouts] == orders
        assert between(reference, candidate) == layouts
        for one in layouts:
            merged = value.transpose(one.axes or range(len(many))).reshape(few)
            ours, theirs = (value, merged) if reference == many else (merged, value)
            assert np.array_equal(one.to_reference(theirs), ours)
            assert np.array_equal(one.to_candidate(ours), theirs)
            assert one.fits(reference, candidate) and not one.fits(candidate, reference)


def test_how_axes_are_merged_is_learned_from_values() -> None:
    """Patches of as many rows as channels fit either way."""
    x = normal(2, 4, 4, 4)
    ours = cnn(["c0", "c1"], 1)
    theirs = Graph()
    tokens = lambda v: conv(0, 1)(v).transpose(0, 2, 3, 1).reshape(2, 16, 4)  # noqa: E731
    theirs.add("dense", "Conv", tokens, "input:x")
    image = lambda v: v.reshape(2, 4, 4, 4).transpose(0, 3, 1, 2)  # noqa: E731
    theirs.add("back", "", image, "dense")
    theirs.add("conv_1", "Conv", conv(1, 1), "back")
    ours.outputs, theirs.outputs = ("c1",), ("conv_1",)
    found = aligned(ours.run(x=x), theirs.run(x=x))
    pair = next(p for p in found.pairs if p.reference == "c0")
    assert pair.candidate == "dense" and pair.layout is not None
    assert pair.layout.axes == LAST and pair.layout.shapes == ((2, 4, 4, 4), (2, 16, 4))


@pytest.mark.parametrize(
    ("part", "cut"),
    [
        (np.s_[:, :, :9], True),
        (np.s_[:, :, 3:], True),
        (np.s_[:, :, 1:-2], True),  # the middle, as far as there is one
        (np.s_[:, :4, :], True),
        (np.s_[:, :, ::2], False),
        (np.s_[:, :, :0], None),
        (np.s_[...], None),  # all of it is no part
    ],
)
def test_a_part_of_a_value(part: Any, cut: bool | None) -> None:
    whole = normal(2, 5, 12)
    some = whole[part]
    for one in (some, some.transpose(0, 2, 1)):
        assert cut_of(one, whole, SAME_VALUE) is cut_of(whole, one, SAME_VALUE) is cut
    assert not cut_of(some + np.float32(0.1), whole, SAME_VALUE)
    assert cut_of(some[0], whole, SAME_VALUE) is None
    assert cut_of(normal(2, 13, 2), whole, SAME_VALUE) is None


def book(*pairs_: tuple[np.ndarray, np.ndarray]) -> LayoutBook:
    one = LayoutBook()
    for ours, theirs in pairs_:
        layouts = [
            layout
            for layout in fitting(ours.shape, theirs.shape)
            if relative_error(layout.to_reference(theirs), ours) <= SAME_VALUE
        ]
        one.vote(layouts, ours.ndim, theirs.ndim)
    return one


@pytest.mark.parametrize("shape", [(2, 6, 6), (2, 6, 6, 6), (2, 6, 6, 6, 6)])
def test_symmetric_shapes_are_settled_by_values(shape: tuple[int, ...]) -> None:
    ndim = len(shape)
    last = Layout((0, ndim - 1, *range(1, ndim - 1)))
    candidate = normal(*shape)
    learned = book((last.to_reference(candidate), candidate))
    assert learned.choose(shape, shape) == last
    assert book((candidate, candidate)).choose(shape, shape) == Layout()
    assert LayoutBook().choose(shape, shape) == Layout()


def test_ambiguous_pairs_abstain_and_the_majority_wins() -> None:
    flat = np.ones((2, 4, 4, 4), np.float32)
    one, two, three = normal(2, 4, 4, 4), normal(2, 4, 4, 4), normal(2, 3, 5, 7)
    learned = book(
        (flat, flat),
        (flat, flat),
        (one, one),
        (NHWC.to_reference(two), two),
        (three, NHWC.to_candidate(three)),
        (normal(2, 4, 4, 4), normal(2, 4, 4, 4)),
    )
    assert learned.choose((2, 4, 4, 4), (2, 4, 4, 4)) == NHWC


def test_a_layout_holds_for_its_number_of_dimensions_only() -> None:
    images = normal(2, 3, 5, 7)
    learned = book((images, NHWC.to_candidate(images)))
    assert learned.choose((2, 6, 6), (2, 6, 6)) == Layout()
    assert learned.choose((2, 4, 4, 4), (2, 4, 4, 4)) == NHWC
    assert learned.choose((2, 4, 9, 9), (2, 4, 9, 9)) == Layout()  # attention: forced by the shapes
    assert learned.choose((2, 4, 9, 9), (2, 4, 9, 8)) is None


@pytest.mark.parametrize(
    ("value", "truth", "error"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.5], [3.0, 4.0], 0.1),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 1e-30], [0.0, 0.0], np.inf),
        ([np.nan, 4.0], [np.nan, 4.0], 0.0),
        ([np.nan, 4.0], [3.0, 4.0], np.inf),
        ([-np.inf, 4.0], [-np.inf, 5.0], 0.2),
        ([-np.inf, 4.0], [np.inf, 4.0], np.inf),
    ],
)
def test_relative_error(value: list[float], truth: list[float], error: float) -> None:
    assert relative_error(np.array(value), np.array(truth)) == pytest.approx(error)


# -- whole models ----------------------------------------------------------------------------------

KERNELS = [normal(4, 4) for _ in range(4)]


def conv(i: int, axis: int):  # type: ignore[no-untyped-def]
    """A 1 x 1 convolution over the channels at ``axis``."""
    return lambda x: np.moveaxis(np.moveaxis(x, axis, -1) @ KERNELS[i], -1, axis)


def cnn(names: list[str], axis: int, *, broken: int | None = None) -> Graph:
    graph, here = Graph(), "input:x"
    for i, name in enumerate(names):
        function = conv(i, axis)
        if i == broken:
            function = lambda x, f=function: np.ascontiguousarray(f(x).swapaxes(1, 2))  # noqa: E731
        here = graph.add(name, "Conv", function, here)
    graph.outputs = (here,)
    return graph


@pytest.mark.parametrize("spatial", [(5, 7), (4, 4), (4, 6)])
def test_channels_last_against_channels_first(spatial: tuple[int, int]) -> None:
    x = normal(2, 4, *spatial)
    ours = cnn(["c0", "c1", "c2"], 1).run(x=x)
    theirs = cnn(["conv", "conv_1", "conv_2"], 3).run(x=NHWC.to_candidate(x))
    found = aligned(ours, theirs)
    assert pairs(found) == {"c0": "conv", "c1": "conv_1", "c2": "conv_2"}
    assert {p.layout for p in found.pairs} == {NHWC}
    assert {e.layout for e in found.edges} == {NHWC}
    forced = found.forced_on_candidate(ours)
    assert np.array_equal(
        forced["activation", "conv"], NHWC.to_candidate(ours.values["activation", "c0"])
    )
    assert forced.get(("cotangent", "conv")) is None  # the reference has none
    back = aligned(theirs, ours)
    assert {p.layout for p in back.pairs} == {NCHW}


def test_sequences_of_length_equal_to_their_width() -> None:
    x = normal(3, 4, 4)
    ours = cnn(["c0", "c1"], 1).run(x=x)
    theirs = cnn(["conv", "conv_1"], 2).run(x=x.transpose(0, 2, 1))
    found = aligned(ours, theirs)
    assert {p.layout for p in found.pairs} == {NLC}
    assert pairs(found) == {"c0": "conv", "c1": "conv_1"}


def test_a_layout_is_learned_behind_values_that_only_look_alike() -> None:
    x = normal(2, 4, 4, 4)
    theirs = cnn(["conv"], 3)
    theirs.nodes.insert(0, Node("shuffled", "S", lambda v: v[:, ::-1, ::-1].copy(), ("input:x",)))
    found = aligned(cnn(["c0"], 1).run(x=x), theirs.run(x=NHWC.to_candidate(x)))
    assert {p.layout for p in found.pairs} == {NHWC}


def test_a_transposed_tensor_is_not_a_layout() -> None:
    x = normal(2, 4, 4, 4)
    ours = cnn(["c0", "c1", "c2"], 1).run(x=x)
    theirs = cnn(["c0", "c1", "c2"], 1, broken=1).run(x=x)
    found = aligned(ours, theirs)
    assert {p.layout for p in found.pairs} == {Layout()}
    assert pairs(found) == {"c0": "c0"}
    assert found.unmatched_reference == ("c1",)  # c2 is the output, which is compared


def test_a_square_transposed_by_a_layout_of_its_own_is_no_pair() -> None:
    x = normal(2, 4, 4, 4)
    graph = cnn(["c0", "c1", "c2"], 1)
    wrong = cnn(["c0", "c1"], 1)
    wrong.add("c2", "Conv", lambda v: NHWC.to_candidate(conv(2, 1)(v)).copy(), "c1")
    wrong.outputs = ("c2",)
    found = aligned(graph.run(x=x), wrong.run(x=x))
    assert pairs(found) == {"c0": "c0", "c1": "c1"}
    assert next(p for p in found.pairs if p.by == "output").layout == Layout()


def test_outputs_whose_shapes_nothing_maps_are_paired_without_a_layout() -> None:
    x = normal(2, 3)
    ours, theirs = Graph(["fc"]), Graph(["fc"])
    ours.add("fc", "L", lambda v: v.copy(), "input:x")
    theirs.add("fc", "L", lambda v: v.T.copy(), "input:x")
    reference = ours.run(x=x)
    found = aligned(reference, theirs.run(x=x))
    output = next(p for p in found.pairs if p.by == "output")
    assert output.layout is None
    assert ("activation", "output") not in found.forced_on_candidate(reference)
    assert ("activation", "output") not in found.forced_on_reference(reference)
    assert set(found.forced_on_reference(reference)) == {("activation", "input:x")}


def test_each_type_of_layer_has_its_layout_where_shapes_do_not_tell() -> None:
    """A convolution's channels are first, those of the norm behind it last (ConvNeXt)."""
    x = normal(2, 4, 4, 4)
    scale = normal(4)
    norm = lambda v: v * scale  # noqa: E731
    ours, theirs = Graph(["c1"]), Graph(["conv_1"])
    here = there = "input:x"
    for i in range(2):
        ours.add(f"c{i}", "Conv", conv(i, 1), here)
        ours.add(f"last{i}", "", NHWC.to_candidate, f"c{i}")
        ours.add(f"norm{i}", "Norm", norm, f"last{i}")
        here = ours.add(f"first{i}", "", NHWC.to_reference, f"norm{i}")
        theirs.add(f"conv_{i}", "Convolution", conv(i, 3), there)
        wrong = (lambda v: v * (scale + np.float32(0.5))) if i else norm
        there = theirs.add(f"norm_{i}", "LayerNorm", wrong, f"conv_{i}")
    for graph, end in ((ours, "c2"), (theirs, "conv_2")):
        graph.add(end, "End", conv(2, 1 if graph is ours else 3), here if graph is ours else there)
        graph.outputs = (end,)
    reference = ours.run(x=x)
    found = aligned(reference, theirs.run(x=NHWC.to_candidate(x)), explicit={"norm1": "norm_1"})
    layouts = {p.reference: p.layout for p in found.pairs}
    assert layouts["c0"] == layouts["c1"] == NHWC
    assert layouts["norm0"] == layouts["norm1"] == Layout()  # though the second differs
    inputs = {e.reference: e.layout for e in found.edges}
    assert inputs["norm0"] == Layout() and inputs["c0"] == NHWC
