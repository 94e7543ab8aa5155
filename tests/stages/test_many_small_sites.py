"""What a small site costs: counted in calls, which do not depend on the machine."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

from crosscheck.aligning import layout
from crosscheck.aligning.align import Aligner
from crosscheck.aligning.fingerprints import fingerprint, fingerprints
from crosscheck.aligning.layout import SAME
from crosscheck.collecting import seldom
from crosscheck.comparisons import Item, site_items
from crosscheck.judging.judge import Judge
from crosscheck.judging.reductions import Reductions
from crosscheck.structure import replace_leaves
from tests.stages.test_scale import calls, trace

DEPTH = 100


def aligner() -> Aligner:
    return Aligner(trace(DEPTH), trace(DEPTH), explicit={}, anchors=())


def test_no_small_value_is_compared_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = 0

    def compare(*both: Any) -> Any:
        nonlocal alone
        alone += 1
        return original(*both)

    original = layout.compare
    monkeypatch.setattr(layout, "compare", compare)
    one, other = aligner(), trace(DEPTH)
    assert one.refine(other) == 0
    assert len(one.alignment(other).pairs) == 2 * DEPTH + 2
    assert alone <= 2  # the model's input


def test_an_alignment_is_made_once_for_a_run() -> None:
    one, run = aligner(), trace(DEPTH)
    assert one.alignment(run) is one.alignment(run)
    assert one.alignment(run) is not one.alignment(trace(DEPTH))


def test_calls_for_each_comparison() -> None:
    one, run = aligner(), trace(DEPTH)
    items, _ = site_items(one.alignment(run), trace(DEPTH), run, backward=True)
    aligned = frozenset(p.reference for p in one.alignment(run).pairs)
    judge = Judge(trace(DEPTH), None, None, run, Reductions((), trace(DEPTH), aligned))
    assert len(judge.judge_many(items, run)) == len(items) > 4 * DEPTH
    assert calls(lambda: judge.judge_many(items, run)) < 60 * len(items)
    assert calls(aligner) < 150 * len(items)  # the two runs included


def test_fingerprints_are_those_of_one_value_each() -> None:
    rng = np.random.default_rng(1)
    values = [rng.standard_normal(shape) for shape in [(4, 6), (24,), (5, 5), (), (0,)] * 30]
    values[3:9] = [v * 1e200 for v in values[3:9]]
    values[10] = np.full((4, 6), np.nan)
    values[11] = np.where(values[11] > 1, np.inf, values[11]).astype(np.float32)
    alone = np.array([fingerprint(value) for value in values])
    assert np.array_equal(np.array(fingerprints(values)), alone, equal_nan=True)


def test_items_are_told_apart_by_all_that_they_are() -> None:
    one = Item("forward", "activation", "a", "b", SAME, "value")
    other = Item("forward", "activation", "a", "b", None, "value")
    assert {one: 1, other: 2} == {other: 2, one: 1} and one != other
    assert hash(one) == hash(Item("forward", "activation", "a", "b", SAME, "value"))


def test_what_is_done_to_a_nested_value_leaves_no_garbage() -> None:
    gc.collect()
    gc.disable()
    try:
        replace_leaves((1, [2, {"a": 3}]), lambda v: isinstance(v, int), lambda path, v: v + 1)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_the_collector_is_left_as_it_was() -> None:
    before = gc.get_threshold()
    seen = []

    def within() -> None:
        with seldom():
            seen.append(gc.get_threshold())

    with pytest.raises(ZeroDivisionError), seldom():
        seen.append(gc.get_threshold())
        thread = threading.Thread(target=within)
        thread.start()
        thread.join()
        raise ZeroDivisionError
    assert gc.get_threshold() == before
    assert seen[0] == seen[1] and seen[0][0] > before[0] and seen[0][1:] == before[1:]


def test_the_collector_waits_longer_while_it_finds_nothing() -> None:
    gc.collect()
    gc.disable()  # no collection but those of this test
    try:
        with seldom():
            waits = [gc.get_threshold()[0]]
            for garbage in (False, False, True):
                for _ in range(waits[0] if garbage else 0):
                    one: list[Any] = []
                    one.append(one)
                gc.collect()
                waits.append(gc.get_threshold()[0])
            assert waits[0] < waits[1] < waits[2] and waits[3] == waits[0]
        left = len(gc.callbacks)
        with seldom():
            assert len(gc.callbacks) == left + 1
        assert len(gc.callbacks) == left
    finally:
        gc.enable()
