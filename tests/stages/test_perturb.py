"""Stage 7, e_pert: the noise itself, and what it makes of ill-conditioned functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from crosscheck.adapters.base import Adapter, ModelRaised, Parameter
from crosscheck.aligning.layout import Layout
from crosscheck.comparisons import Item
from crosscheck.judging.judge import Judge, Perturbation
from crosscheck.judging.perturb import Moved, _noise, measure
from crosscheck.judging.reductions import Reductions
from crosscheck.observers import Forcer, Recorder, chain
from crosscheck.run import Runner
from crosscheck.trace import RunInfo, Trace

U = 2.0**-24


# -- the noise -------------------------------------------------------------------------------------


def test_noise_has_mean_0_and_variance_1() -> None:
    for values in (np.random.default_rng(0).normal(size=200_000), np.arange(200_000.0)):
        noise = _noise(values, 5)
        n = noise.size
        assert abs(noise.mean()) < 4 / math.sqrt(n)
        assert abs(noise.var() - 1) < 4 * math.sqrt(2 / n)
        assert np.abs(noise).max() <= 2 * math.sqrt(3)
        assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 4 / math.sqrt(n)
        assert abs(np.corrcoef(noise, np.abs(values))[0, 1]) < 4 / math.sqrt(n)


def test_noise_is_a_function_of_value_and_seed_alone() -> None:
    values = np.array([[1.5, 2.5], [2.5, 1.5]])
    noise = _noise(values, 1)
    assert noise.shape == (2, 2)
    assert noise[0, 0] == noise[1, 1] != noise[0, 1] == noise[1, 0]
    assert np.array_equal(_noise(values.T, 1), noise.T)
    assert np.array_equal(_noise(values.reshape(-1)[::-1], 1), noise.reshape(-1)[::-1])
    assert not np.isclose(_noise(values, 2), noise).any()
    assert _noise(np.array(1.5), 1) == noise[0, 0]
    assert _noise(np.zeros((0, 3)), 1).shape == (0, 3)


def test_neighbouring_values_and_seeds_are_unrelated() -> None:
    values = 1 + np.arange(50_000) * 2.0**-52
    noise = _noise(values, 0)
    assert noise.std() == pytest.approx(1, abs=0.03)
    seeds = np.array([_noise(np.array([1.0]), s)[0] for s in range(4000)])
    assert abs(seeds.mean()) < 4 / math.sqrt(4000)
    assert seeds.std() == pytest.approx(1, abs=0.1)
    assert abs(np.corrcoef(_noise(values, 1), noise)[0, 1]) < 4 / math.sqrt(values.size)


def test_values_move_by_their_own_size() -> None:
    values = np.float32([0.0, 1e-30, 1.0, -3e30, np.inf])
    moved = Moved({("activation", "a"): values, ("activation", "i"): np.arange(3)}, 0, 2.0**-8)
    got = moved["activation", "a"]
    assert got.dtype == np.float64
    assert got[0] == 0.0 and got[4] == np.inf
    relative = np.abs(got[1:4] / values[1:4] - 1)
    assert (relative > 0).all() and (relative < 2.0**-8 * 2 * math.sqrt(3)).all()
    assert moved["activation", "i"].tolist() == [0, 1, 2]
    assert moved["activation", "i"].dtype == np.arange(3).dtype
    assert moved.get(("activation", "missing")) is None
    assert len(moved) == 2 and list(moved) == [("activation", "a"), ("activation", "i")]


def test_equal_numbers_of_one_array_stay_equal_in_every_dtype() -> None:
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        ties = np.array([2.5, 1.0, 2.5, -1.0], dtype)
        got = Moved({}, 3, U).move(ties, "x")
        assert got[0] == got[2] != 2.5
        assert np.array_equal(got, Moved({}, 3, U).move(ties, "x"))
        assert got[0] != Moved({}, 3, U).move(ties, "y")[0] != Moved({}, 4, U).move(ties, "y")[0]


# -- a model of functions, one after the other -----------------------------------------------------


class Chain(Adapter):
    """``site: function(value, weight)``; the observer may replace any value in between."""

    framework = "functions"
    version = "0"

    def __init__(self, functions: dict[str, Callable[..., Any]], weight: np.ndarray) -> None:
        self.functions, self.weight = functions, weight
        self.fail_when_moved = False

    def parameters(self) -> tuple[Parameter, ...]:
        return (Parameter("w", self.weight, "", "other", "other", None),)

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        raise NotImplementedError

    def run(self, inputs: Any, observer: Any, **options: Any) -> RunInfo:
        wide = np.float64 if options["float64"] else np.float32
        weight = (options["overrides"] or {}).get("w", self.weight).astype(wide)
        if self.fail_when_moved and options["overrides"]:
            raise ModelRaised("first", "forward") from ValueError("moved")
        value = self._seen(observer, "input:x", inputs["x"].astype(wide))
        for site, function in self.functions.items():
            value = self._seen(observer, site, function(value, weight).astype(wide))
        sites = dict.fromkeys(self.functions, "function")
        return RunInfo(("input:x",), (), sites, {}, {}, frozenset(), {"w": weight * 2}, {})

    @staticmethod
    def _seen(observer: Any, site: str, value: np.ndarray) -> np.ndarray:
        replacement = observer(site, "activation", value)
        return value if replacement is None else replacement.astype(value.dtype)


def item(site: str, phase: Any = "forward", kind: str = "activation") -> Item:
    return Item(phase, kind, site, site, Layout(), "value")


def measured(
    adapter: Chain, x: np.ndarray, items: list[Item], *, oracle: bool = True, draws: int = 16
) -> dict[Item, Perturbation]:
    runner = Runner("reference", adapter, {"x": x})
    free = runner.record()
    forced = {k: v for k, v in free.values.items() if k[1] != "last"}

    def recorded() -> Trace:
        recorder = Recorder()
        info = runner.run(chain(recorder, Forcer(forced)), float64=True)
        return Trace(recorder.values, info, "functions")

    judge = Judge(
        free, recorded() if oracle else None, None, free, Reductions((), free, frozenset())
    )
    return measure(
        runner, judge, items, forced, parameters=adapter.parameters(), seed=0, draws=draws
    )


X = np.random.default_rng(0).normal(1000, 1, size=(50, 256)).astype(np.float32)
ONE = np.ones(1, np.float32)


def one_pass(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return (x * x).mean(-1) - x.mean(-1) ** 2


def test_an_ill_conditioned_variance_is_measured() -> None:
    got = measured(Chain({"variance": one_pass}, ONE), X, [item("variance")])
    # δvar = (2/n) Σ (xᵢ − mean)·xᵢ·u·ξᵢ: standard deviation 2·1000·σ·u/√n in each element.
    wide = X.astype(float)
    expected = 2 * 1000 * U * wide.std(-1).mean() / math.sqrt(256)
    perturbation = got[item("variance")]
    assert perturbation.l2 == pytest.approx(expected * math.sqrt(50), rel=0.1)
    assert 1.5 * expected < perturbation.maximum < 4 * expected
    variance = one_pass(wide, ONE)
    assert perturbation.l2 / np.linalg.norm(variance) > 50 * U  # far above one rounding


def test_the_response_is_that_of_the_stretch_and_not_of_the_whole_run() -> None:
    both = Chain({"variance": one_pass, "double": lambda v, w: 2 * v}, ONE)
    got = measured(both, X, [item("double")])
    variance = one_pass(X.astype(float), ONE)
    assert got[item("double")].l2 == pytest.approx(2 * U * np.linalg.norm(variance), rel=0.1)


def test_weights_move_as_well() -> None:
    scale = Chain({"scaled": lambda v, w: 0 * v + w}, np.float32([3.0]))
    got = measured(scale, np.float32([[1.0]]), [item("scaled")], draws=200)
    assert got[item("scaled")].maximum == pytest.approx(3 * U, rel=0.2)


def test_gradients_are_measured_from_the_run_info() -> None:
    adapter = Chain({"scaled": lambda v, w: v * w}, np.float32([3.0]))
    one = item("w", "parameter_gradient", "parameter")
    got = measured(adapter, np.float32([[1.0]]), [one], draws=200)
    assert got[one].l2 == pytest.approx(6 * U, rel=0.2)


def test_without_an_oracle_float32_takes_its_place() -> None:
    got = measured(Chain({"double": lambda v, w: 2 * v}, ONE), X, [item("double")], oracle=False)
    expected = 2 * U * np.linalg.norm(X.astype(float))
    assert 0.3 * expected < got[item("double")].l2 < 3 * expected


def test_a_model_that_fails_when_moved_leaves_the_floor_as_it_is() -> None:
    adapter = Chain({"double": lambda v, w: 2 * v}, ONE)
    adapter.fail_when_moved = True
    assert measured(adapter, X, [item("double")]) == {}


def test_equal_maxima_stay_tied() -> None:
    ties = np.repeat(np.float32([[3.0, 5.0]]), 4, axis=0)

    def first_maximum(v: np.ndarray, w: np.ndarray) -> np.ndarray:
        return v.T.argmax(-1).astype(v.dtype)  # rows (3, 3, 3, 3) and (5, 5, 5, 5)

    got = measured(Chain({"choice": first_maximum}, ONE), ties, [item("choice")])
    assert got[item("choice")] == Perturbation(0.0, 0.0)
