"""Stage 5: explicit pairs, skipped sites, outputs, and the work for large models."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pytest

from crosscheck.aligning import align, fingerprints
from crosscheck.aligning.align import Aligner, pair_outputs
from crosscheck.errors import CannotCompare, InvalidArgument
from crosscheck.trace import RunInfo, Trace
from tests.stages.graphs import X, aligned, pairs, tower

ABC = ["a", "b", "c"]

# -- explicit pairs and skipped sites --------------------------------------------------------------


def test_explicit_pairs_come_before_values() -> None:
    run = tower(ABC).run(x=X)
    found = aligned(run, run, explicit={"a": "b"})
    assert [(p.reference, p.candidate, p.by) for p in found.pairs if p.reference == "a"] == [
        ("a", "b", "explicit")
    ]
    assert "a" not in pairs(found).values()
    assert pairs(found)["c"] == "c"


def test_skipped_sites_of_either_side_are_left_out() -> None:
    ours, theirs = tower(ABC).run(x=X), tower(["a", "q", "c"]).run(x=X)
    found = aligned(ours, theirs, skip=["a", "q"])
    assert pairs(found) == {"c": "c"}
    assert (found.unmatched_reference, found.unmatched_candidate) == (("b",), ())
    assert [e.reference for e in found.edges] == ["c"]


def test_an_explicit_pair_is_stronger_than_skip() -> None:
    run = tower(ABC).run(x=X)
    assert pairs(aligned(run, run, explicit={"a": "b"}, skip=["b"])) == {"a": "b", "c": "c"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"explicit": {"layer_a": "a"}},
            r"sites= names `layer_a`, which is no site of that model; nearest: `a`, .*",
        ),
        ({"explicit": {"a": "z"}}, r"sites= names `z`, which is no site of that model; .*"),
        ({"skip": ["z"]}, r"skip= names `z`, which is no site of that model; nearest: .*"),
        (
            {"explicit": {"a": "c", "b": "c"}},
            r"sites= pairs `c` of the candidate with several reference sites; a site has one "
            r"counterpart",
        ),
    ],
)
def test_sites_that_do_not_exist(options: dict[str, dict[str, str]], message: str) -> None:
    run = tower(ABC).run(x=X)
    with pytest.raises(InvalidArgument) as caught:
        aligned(run, run, **options)
    assert re.fullmatch(message, str(caught.value)), str(caught.value)


# -- outputs ---------------------------------------------------------------------------------------


def returning(*outputs: str) -> Trace:
    values = {("activation", o): np.full((2, 2), i, np.float32) for i, o in enumerate(outputs)}
    return Trace(values, RunInfo((), outputs, {}, {}, {}), "")  # type: ignore[arg-type]


def outputs(ours: Trace, theirs: Trace, **options: object) -> list[tuple[str, str]]:
    return pair_outputs(ours, theirs, **{"explicit": {}, **options})  # type: ignore[arg-type]


def test_outputs_pair_by_name_whatever_their_order() -> None:
    ours = returning("output", "output:loss", "output:hidden")
    theirs = returning("output", "output:hidden", "output:loss")
    assert outputs(ours, theirs) == [
        ("output", "output"),
        ("output:loss", "output:loss"),
        ("output:hidden", "output:hidden"),
    ]


def test_outputs_pair_in_order_where_their_names_differ() -> None:
    assert outputs(returning("output", "output:1"), returning("output", "output:loss")) == [
        ("output", "output"),
        ("output:1", "output:loss"),
    ]


def holding(**outputs: np.ndarray) -> Trace:
    """The first output of a dict shows no name."""
    sites = ["output", *[f"output:{name}" for name in list(outputs)[1:]]]
    values = {("activation", s): v for s, v in zip(sites, outputs.values(), strict=True)}
    return Trace(values, RunInfo((), tuple(sites), {}, {}, {}), "")  # type: ignore[arg-type]


def test_outputs_with_other_names_on_both_sides_pair_by_what_they_hold() -> None:
    """The order of a dict means nothing: a decoder's states first, or an encoder's."""
    long, short = (np.random.default_rng(n).normal(size=(2, n, 3)) for n in (7, 5))
    ours = holding(last=short, encoder_last=long)
    pairs = [("output", "output:decoder"), ("output:encoder_last", "output")]
    assert outputs(ours, holding(encoder=long, decoder=short)) == pairs
    assert outputs(ours, holding(encoder=2 * long, decoder=0 * short)) == pairs  # by shapes
    other = short[::-1] + 1
    ours = holding(last=short, encoder_last=other)
    assert outputs(ours, holding(encoder=other, decoder=1.001 * short)) == pairs  # by values
    in_order = [("output", "output"), ("output:encoder_last", "output:decoder")]
    assert outputs(ours, holding(encoder=-short, decoder=-other)) == in_order
    assert outputs(ours, holding(encoder=short[:1], decoder=other[:1])) == in_order


def test_outputs_without_names_pair_in_order_whatever_they_hold() -> None:
    """The place of a tuple's element does mean something: to swap two is a mistake."""
    a, b = np.zeros((2, 3)), np.ones((4,))
    values = {("activation", "output"): b, ("activation", "output:1"): a}
    swapped = Trace(values, RunInfo((), ("output", "output:1"), {}, {}, {}), "")  # type: ignore[arg-type]
    assert outputs(holding(a=a, b=b), swapped) == [
        ("output", "output"),
        ("output:b", "output:1"),
    ]


def test_outputs_left_over_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(CannotCompare) as caught:
        outputs(returning("output", "output:1", "output:2"), returning("output"))
    assert str(caught.value) == (
        "the reference has 3 outputs, `output:1`, `output:2` without a counterpart.\n"
        "  Fix: skip=['output:1'] to leave it out, or sites={reference output: candidate output} "
        "to pair them"
    )
    with pytest.raises(CannotCompare, match="^the candidate has 2 outputs, `output:x` without a c"):
        outputs(returning("output"), returning("output", "output:x"))
    both = "^the reference has 2 outputs, `output`, .*; the candidate has 1 outputs, `output:x` "
    with pytest.raises(CannotCompare, match=both):
        outputs(returning("output", "output:1"), returning("output:x"), skip=["output:7"])


def test_skipped_and_explicit_outputs_are_no_longer_free() -> None:
    three, one = returning("output", "output:1", "output:2"), returning("output")
    assert outputs(three, one, skip=["output:1", "output:2"]) == [("output", "output")]
    two = returning("output", "output:1")
    assert outputs(two, two, explicit={"output": "output:1"}) == [("output:1", "output")]
    assert outputs(two, two, explicit={"output": "output:1", "output:1": "output"}) == []
    with pytest.raises(CannotCompare, match="^the candidate has 1 outputs, `output` without"):
        outputs(returning("output"), two, explicit={"output": "output:1"})


# -- large models ----------------------------------------------------------------------------------


def large(count: int, name: str, *, ndim: int, breaks: bool = False) -> Trace:
    values: dict[tuple[str, str], np.ndarray] = {}
    rng = np.random.default_rng(5)
    sources, layers = {}, {}
    shape = (2, 3, 4) if ndim == 3 else (4, 6)
    previous = "input:x"
    values["activation", previous] = rng.normal(size=shape)
    for i in range(count):
        site = f"{name}{i // 7}.{'abcdefg'[i % 7]}"
        values["input", site] = values["activation", previous]
        sources[site], layers[site] = previous, "abcdefg"[i % 7]
        value = rng.normal(size=shape)
        values["activation", site] = value * 1.5 if breaks and i >= count // 2 else value
        previous = site
    values["activation", "output"] = values["activation", previous]
    return Trace(values, RunInfo(("input:x",), ("output",), layers, sources, {}), "")  # type: ignore[arg-type]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("breaks", [False, True])
def test_the_work_grows_with_the_number_of_sites_and_not_with_its_square(
    ndim: int, breaks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 5000
    looked_at = compared = 0

    def looks_like(prints: np.ndarray, one: np.ndarray) -> np.ndarray:
        nonlocal looked_at
        looked_at += len(prints)
        return original_looks_like(prints, one)

    def differences(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[float]:
        nonlocal compared
        found = original_differences(pairs)
        compared += len(found)
        return found

    original_looks_like, original_differences = fingerprints.looks_like, align.differences
    monkeypatch.setattr(fingerprints, "looks_like", looks_like)
    monkeypatch.setattr(align, "differences", differences)
    ours = large(count, "blocks.", ndim=ndim)
    theirs = large(count, "block_", ndim=ndim, breaks=breaks)
    aligner = Aligner(ours, theirs, explicit={}, anchors=())
    found = aligner.alignment(theirs)
    if breaks:
        assert aligner.refine(theirs) == 1
    assert len(found.pairs) == (2502 if breaks else 5002)
    assert looked_at < 200 * count and compared < 5 * count
