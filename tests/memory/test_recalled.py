"""Values that were dropped come back, once, and only when somebody asks for them."""

from __future__ import annotations

import numpy as np
import pytest

from crosscheck.memory import Recalled

SHAPES = {"a": (2,), "b": (3,), "c": ()}


def made(held: dict[str, np.ndarray]) -> tuple[Recalled[str], list[int]]:
    runs: list[int] = []

    def again() -> dict[str, np.ndarray]:
        runs.append(len(runs))
        return {name: np.full(shape, 7.0) for name, shape in SHAPES.items()}

    return Recalled(held, SHAPES, again), runs


def test_keys_and_shapes_take_no_run() -> None:
    values, runs = made({"b": np.zeros(3)})
    assert list(values) == ["a", "b", "c"] and len(values) == 3 and "c" in values
    assert values.shape_of("a") == (2,) and "d" not in values
    np.testing.assert_array_equal(values["b"], np.zeros(3))
    assert not runs


def test_what_is_asked_for_takes_one_run_and_what_was_held_stays() -> None:
    values, runs = made({"b": np.zeros(3)})
    np.testing.assert_array_equal(values["a"], np.full(2, 7.0))
    np.testing.assert_array_equal(values["c"], 7.0)
    np.testing.assert_array_equal(values["b"], np.zeros(3))  # as the first run showed it
    assert runs == [0]


def test_a_value_that_never_was_is_none() -> None:
    values, runs = made({})
    assert values.get("d") is None and not runs
    with pytest.raises(KeyError):
        values["d"]


def test_dropping_frees_the_memory_for_everybody() -> None:
    held = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    values, runs = made(held)
    values.drop()
    assert not held
    np.testing.assert_array_equal(values["a"], np.full(2, 7.0))
    assert runs == [0]
