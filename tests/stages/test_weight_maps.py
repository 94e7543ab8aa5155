"""Stage 2: what the caller decides, what is left open, and what is said about what is left over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crosscheck.adapters.base import Parameter
from crosscheck.errors import CannotCompare, InvalidArgument
from crosscheck.weights import Match, Transform, layout_choices, match_parameters
from crosscheck.weights.gradients import gradient_map, gradient_pairs


def parameter(
    name: str, shape: tuple[int, ...], role: str = "weight", kind: str = "other"
) -> Parameter:
    value = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    return Parameter(name, value, name.rpartition(".")[0], role, kind, None)


OURS = [
    parameter("a.weight", (4, 6)),
    parameter("b.weight", (4, 6)),
    parameter("c.bias", (6,), "bias"),
]
THEIRS = [parameter("x.W", (6, 4)), parameter("y.W", (4, 6)), parameter("z.b", (6,), "bias")]


def given(weights: Any, ours: list[Parameter] = OURS, theirs: list[Parameter] = THEIRS) -> Match:
    return match_parameters(ours, theirs, given=weights)


def transform_of(match: Match, name: str) -> Transform:
    return next(m.transform for m in match.pairs if m.candidate.name == name)


# -- forms of a WeightMap --------------------------------------------------------------------------


def test_a_name_alone_lets_the_shapes_decide() -> None:
    match = given({"x.W": "b.weight"})
    assert [(m.candidate.name, m.reference.name) for m in match.pairs] == [
        ("x.W", "b.weight"),
        ("y.W", "a.weight"),
        ("z.b", "c.bias"),
    ]
    assert transform_of(match, "x.W") == Transform((1, 0))


@pytest.mark.parametrize("rule", ["transpose", (1, 0), [1, 0], np.transpose, lambda w: w.T.copy()])
def test_transforms(rule: Any) -> None:
    match = given({"x.W": ("a.weight", rule)})
    assert np.array_equal(match.values()["x.W"], OURS[0].value.T)
    back = transform_of(match, "x.W").to_reference(match.values()["x.W"])
    if callable(rule):
        assert back is None
    else:
        assert back is not None and np.array_equal(back, OURS[0].value)


def test_a_function_may_change_the_values_but_not_the_reference() -> None:
    def overwrite(w: np.ndarray) -> np.ndarray:
        w *= 2
        return w

    before = OURS[0].value.copy()
    match = given({"y.W": ("a.weight", overwrite)})
    assert np.array_equal(match.values()["y.W"], 2 * before)
    assert np.array_equal(OURS[0].value, before)


def test_one_reference_parameter_may_feed_two() -> None:
    tied = [parameter("x.W", (4, 6)), parameter("y.W", (4, 6))]
    match = given({"x.W": "a.weight", "y.W": "a.weight"}, OURS[:1], tied)
    match.require_complete()
    assert set(match.values()) == {"x.W", "y.W"}


def test_three_axes_in_a_given_order() -> None:
    ours, theirs = [parameter("k.weight", (2, 3, 4))], [parameter("k.W", (4, 2, 3))]
    match = given({"k.W": ("k.weight", (2, 0, 1))}, ours, theirs)
    assert np.array_equal(match.values()["k.W"], ours[0].value.transpose(2, 0, 1))
    back = match.pairs[0].transform.to_reference(match.values()["k.W"])
    assert back is not None and np.array_equal(back, ours[0].value)


def test_one_parameter_of_several_and_several_of_one() -> None:
    weights = {
        "x.W": (["a.weight", "b.weight"], "sum | transpose"),
        "y.W": ([("a.weight", "part 0 2:4"), "zeros(2, 6)"], "concat 0"),
    }
    match = given(weights)
    match.require_complete()
    first, second = (m for m in match.pairs if m.candidate.name in weights)
    total = OURS[0].value + OURS[1].value
    assert np.array_equal(match.values()["x.W"], total.T)
    assert first.reference_name == "a.weight + b.weight" and second.reference_name == "a.weight"
    assert np.array_equal(match.values()["y.W"][:2], OURS[0].value[2:])
    assert not match.values()["y.W"][2:].any()


def test_gradients_go_back_through_every_use() -> None:
    """x = (a + b)ᵀ and y = a's lower half over zeros: by the chain rule, a collects from both."""
    match = given(
        {
            "x.W": (["a.weight", "b.weight"], "sum | transpose"),
            "y.W": ([("a.weight", "part 0 2:4"), "zeros(2, 6)"], "concat 0"),
        }
    )
    rng = np.random.default_rng(0)
    dx, dy = rng.normal(size=(6, 4)), rng.normal(size=(4, 6))
    expected = {"a.weight": dx.T.copy(), "b.weight": dx.T}
    expected["a.weight"][2:] += dy[:2]
    found = dict.fromkeys(expected, 0)
    for parameter, held in gradient_pairs(match):
        layout, pullback = gradient_map(parameter, held)
        if pullback is not None:
            back = pullback.of_candidate({"x.W": dx, "y.W": dy})
            assert layout == Transform() and back is not None
            np.testing.assert_allclose(back, expected[parameter.name])
            found[parameter.name] += 1
            assert pullback.of_candidate({"x.W": dx}) is None or parameter.name == "b.weight"
    assert found == {"a.weight": 1, "b.weight": 1}


NOT_A_TRANSFORM = (
    'weights=: the transform of `x.W` is {}; give "transpose", an order of the 2 axes, a function '
    "of an array, or steps as `crosscheck weights` prints them"
)
NOT_A_STEP = (
    'weights=: the transform of `x.W` is {!r}: {}; give "transpose", an order of axes, a '
    "function of an array, or steps as `crosscheck weights` prints them"
)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"x.V": "a.weight"},
            "weights= names the candidate parameter `x.V`, which does not exist; nearest: ",
        ),
        (
            {"x.W": "a.weigth"},
            "weights= names the reference parameter `a.weigth`, which does not exist; nearest: "
            "`a.weight`, ",
        ),
        (
            {"x.W": ["a.weight"]},
            "weights= names the reference parameter `['a.weight']`, which does not exist; near",
        ),
        (
            {"x.W": ("a.weight", "flip")},
            NOT_A_STEP.format("flip", "'flip' is no step for 2 axes"),
        ),
        (
            {"x.W": ("a.weight", "part 0 3:6")},
            NOT_A_STEP.format("part 0 3:6", "(4, 6) has no part 3:6 of axis 0"),
        ),
        (
            {"x.W": (["a.weight", "b.weight"], "concat 0")},
            "weights=: `a.weight` (4, 6), `b.weight` (4, 6) becomes (8, 6) for `x.W`, which is "
            "(6, 4)",
        ),
        (
            {"x.W": (["a.weight", "b.wight"], "sum | transpose")},
            "weights= names the reference parameter `b.wight`, which does not exist; nearest: "
            "`b.weight`, ",
        ),
        ({"x.W": ("a.weight", (0, 2))}, NOT_A_TRANSFORM.format("(0, 2)")),
        ({"x.W": ("a.weight", (0, 1, 1))}, NOT_A_TRANSFORM.format("(0, 1, 1)")),
        ({"x.W": ("a.weight", ("in", 1))}, NOT_A_TRANSFORM.format("('in', 1)")),
        ({"x.W": ("a.weight", 7)}, NOT_A_TRANSFORM.format("7")),
        (
            {"x.W": ("a.weight", (0, 1))},
            "weights=: `a.weight` (4, 6) becomes (4, 6) for `x.W`, which is (6, 4)",
        ),
        (
            {"y.W": ("a.weight", "transpose")},
            "weights=: `a.weight` (4, 6) becomes (6, 4) for `y.W`, which is (4, 6)",
        ),
        (
            {"z.b": "a.weight"},
            "weights=: `a.weight` (4, 6) becomes (4, 6) for `z.b`, which is (6,)",
        ),
        (
            {"z.b": ("a.weight", lambda w: w.sum())},
            "weights=: `a.weight` (4, 6) becomes () for `z.b`, which is (6,)",
        ),
    ],
)
def test_what_a_weight_map_must_not_say(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        given(weights)
    assert str(caught.value).startswith(message)


# -- left over -------------------------------------------------------------------------------------


def left_over(ours: list[Parameter], theirs: list[Parameter]) -> str:
    with pytest.raises(CannotCompare) as caught:
        given({}, ours, theirs).require_complete()
    return str(caught.value)


def test_a_parameter_without_counterpart_and_the_nearest_free_one() -> None:
    theirs = [parameter("a.weight", (4, 6)), parameter("dense.kernel", (64, 10))]
    ours = [parameter("a.weight", (4, 6)), parameter("head.weight", (12, 64))]
    assert left_over(ours, theirs) == (
        "candidate parameter `dense.kernel` (64, 10) has no counterpart; 1 of 2 matched.\n"
        "  Nearest free reference parameter: `head.weight` (12, 64).\n"
        '  Fix: weights={"dense.kernel": "head.weight"} (with a transform where layouts differ), '
        'or weights="keep" if they are equal already.'
    )


def test_a_parameter_of_the_same_name_in_another_size() -> None:
    text = left_over([parameter("a.weight", (4, 6))], [parameter("a.weight", (5, 6))])
    assert text.endswith(
        "  Nearest free reference parameter: `a.weight` (4, 6).\n"
        "  Fix: build both models in the same size; no layout makes one of the other."
    )


def test_a_reference_parameter_that_the_candidate_lacks() -> None:
    ours = [parameter("a.weight", (4, 6)), *(parameter(f"e{i}.weight", (9,)) for i in range(8))]
    assert left_over(ours, [parameter("a.weight", (4, 6))]) == (
        "reference parameter `e0.weight` (9,) has no counterpart; 1 of 9 matched.\n"
        "  Also without: `e1.weight`, `e2.weight`, `e3.weight`, `e4.weight`, `e5.weight` and 2 "
        "more.\n"
        "  Every candidate parameter is in use.\n"
        "  Fix: does the candidate lack a layer or a bias that the reference has? "
        'weights="keep" compares the models with their own weights.'
    )


def test_a_side_that_shows_no_parameter_at_all() -> None:
    text = left_over([parameter("a.weight", (4, 6))], [])
    assert text.startswith(
        "reference parameter `a.weight` (4, 6) has no counterpart; 0 of 1 matched.\n"
        "  The candidate shows no parameter at all.\n  Fix: is it the model itself? "
    )


def test_the_fix_names_the_candidate_first_whichever_side_is_short() -> None:
    ours = [parameter("a.weight", (4, 6)), parameter("b.weight", (5,))]
    match = given({}, ours, [parameter("a.weight", (4, 6)), parameter("c.weight", (7,))])
    reference_only = Match(match.pairs, match.unmatched_reference, ())
    with pytest.raises(CannotCompare, match=r"^reference parameter `b.weight` \(5,\) has no"):
        reference_only.require_complete()
    with pytest.raises(CannotCompare, match=r'weights=\{"c.weight": "b.weight"\}'):
        match.require_complete()


# -- open layouts ----------------------------------------------------------------------------------


def test_layouts_of_one_kind_are_decided_together() -> None:
    ours = [parameter(f"{n}.weight", (5, 5), kind="dense") for n in "abc"]
    ours += [parameter("e.weight", (7, 7), kind="embedding")]
    match = given({}, ours, ours)
    choices = layout_choices(match)
    same, turned = Transform(), Transform((1, 0))
    assert len(choices) == 4
    assert choices[0] == {f"{n}.weight": same for n in "abce"}
    assert {(c["a.weight"], c["e.weight"]) for c in choices} == {
        (same, same),
        (same, turned),
        (turned, same),
        (turned, turned),
    }
    assert all(c["a.weight"] == c["b.weight"] == c["c.weight"] for c in choices)
    assert len(layout_choices(match, limit=3)) == 3


def test_nothing_open_is_one_choice() -> None:
    assert layout_choices(given({}, OURS[:1], [parameter("x.W", (6, 4))])) == [{}]


def test_conventions_that_exclude_each_other_leave_the_first_of_each() -> None:
    ours = [parameter("a.weight", (3, 3, 5)), parameter("b.weight", (3, 3, 5))]
    theirs = [parameter("a.weight", (3, 5, 3)), parameter("b.weight", (5, 3, 3))]
    match = given({}, ours, theirs)
    (choice,) = layout_choices(match)
    for name, value in match.choosing(choice).values().items():
        assert value.shape == next(p.value.shape for p in theirs if p.name == name)
