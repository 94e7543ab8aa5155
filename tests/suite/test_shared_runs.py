"""The reference's runs, made once for several candidates: equal results, and less work."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crosscheck
from crosscheck.adapters.numpy.adapter import NumpyAdapter
from crosscheck.errors import CannotCompare, SideFailed
from crosscheck.report.json import to_dict
from crosscheck.results import Report
from crosscheck.taps import Kind, Observer
from crosscheck.trace import RunInfo
from crosscheck.traces.shared import WAITS, sharing

X = {"x": "float32[7,6]"}


NUMBERS = itertools.count()
RUNS: Counter[tuple[int, str]] = Counter()
"""How often each net ran. (What a model itself holds, a check leaves as it was.)"""


class Layer:
    def __init__(self, rows: int, columns: int) -> None:
        size = rows * columns
        self.W = np.linspace(-1, 2, size).reshape(rows, columns).astype("float32")

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return x @ self.W

    def backward(self, d: np.ndarray) -> np.ndarray:
        self.dW = self.x.T @ d
        return d @ self.W.T


class Net:
    """Two layers by hand."""

    def __init__(self, factor: float = 1.0, shift: float = 0.0) -> None:
        self.one, self.two = Layer(6, 4), Layer(4, 3)
        self.factor, self.shift, self.number = factor, shift, next(NUMBERS)

    def forward(self, x: np.ndarray) -> np.ndarray:
        RUNS[self.number, "forward"] += 1
        self.h = np.tanh(self.one.forward(x))
        return self.two.forward(self.h * x.dtype.type(self.factor)) + x.dtype.type(self.shift)

    def backward(self, d: np.ndarray) -> np.ndarray:
        RUNS[self.number, "backward"] += 1
        return self.one.backward(self.two.backward(d) * d.dtype.type(self.factor) * (1 - self.h**2))


def runs(net: Net) -> tuple[int, int]:
    return RUNS[net.number, "forward"], RUNS[net.number, "backward"]


def document(report: Report) -> dict[str, Any]:
    found = to_dict(report)
    found.pop("created", None)
    return found


def shared(path: str | None, run: Callable[[], Report], here: str = "") -> Report:
    with sharing(path, here=here):
        return run()


def check(candidate: Any, reference: Any = None, **options: Any) -> Callable[[], Report]:
    model = reference or Net()
    return lambda: crosscheck.check(model, candidate, X, **{"blind_spots": False, **options})


def runs_of_a_check(effort: str) -> tuple[int, int]:
    reference = Net()
    check(Net(), reference, effort=effort)()
    return runs(reference)


@pytest.mark.parametrize("effort", ["quick", "thorough"])
def test_made_once_for_several_candidates(tmp_path: Path, effort: str) -> None:
    path = str(tmp_path / "runs")
    references = [Net() for _ in range(4)]
    candidates = [Net(), Net(), Net(1.001), Net(1.01)]
    for reference, candidate in zip(references, candidates, strict=True):
        report = shared(path, check(candidate, reference, effort=effort))
        alone = check(Net(candidate.factor), effort=effort)()
        assert document(report) == document(alone)
    first, second, *others = map(runs, references)
    assert first == runs_of_a_check(effort) and second == (1, 0)
    assert others[-1][0] > 1  # a divergence is looked into with the reference itself


def test_a_training_loss_and_train_mode(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    loss = {"loss": "mse", "targets": np.ones((7, 3), "float32"), "seed": 3}
    alone = check(Net(), **loss)()
    for _ in range(2):
        assert document(shared(path, check(Net(), **loss))) == document(alone)


@pytest.fixture(autouse=True)
def counted_anew() -> None:
    RUNS.clear()


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"gradients": False},
        {"here": "another processor"},
        {"reference": "moved"},
    ],
)
def test_what_is_not_of_this_check_is_not_used(tmp_path: Path, other: dict[str, Any]) -> None:
    path = str(tmp_path / "runs")
    shared(path, check(Net()), here="this processor")
    reference = Net()
    if other.pop("reference", ""):
        reference.one.W = reference.one.W * np.float32(2)
    here = other.pop("here", "this processor")
    report = shared(path, check(Net(), reference, **other), here=here)
    assert report.verdict == "agree"
    assert runs(reference)[1] or "gradients" in other  # without them there is nothing to count
    before = os.stat(path)
    assert (before.st_mtime_ns, before.st_size) == (os.stat(path).st_mtime_ns, before.st_size)


def test_what_neither_weights_nor_inputs_show(tmp_path: Path) -> None:
    """A number that every process draws anew, on both of its sides: no divergence."""
    path = str(tmp_path / "runs")
    shared(path, check(Net(shift=1.0), Net(shift=1.0)))
    reference = Net(shift=2.0)
    report = shared(path, check(Net(shift=2.0), reference))
    assert report.verdict == "agree" and runs(reference)[1]
    assert document(report) == document(check(Net(shift=2.0), Net(shift=2.0))())


class Compiled(NumpyAdapter):
    """With another program for free runs than for forced ones, which shows no layer's own VJP."""

    def __init__(self, model: Net) -> None:
        super().__init__(model)
        self.capabilities = replace(self.capabilities, transparent=False)

    def run(
        self, inputs: Any, observer: Observer, *, passive: bool = False, **options: Any
    ) -> RunInfo:
        def ends(site: str, kind: Kind, value: np.ndarray) -> np.ndarray | None:
            return None if kind == "input_cotangent" else observer(site, kind, value)

        return super().run(inputs, ends if passive else observer, passive=passive, **options)


def test_what_a_compiled_reference_shares(tmp_path: Path) -> None:
    """The run that shows each layer's own VJP; the free one shows that it is the same reference."""
    path = str(tmp_path / "runs")
    alone = document(check(Net(), Compiled(Net()))())
    references = [Net() for _ in range(3)]
    for reference in references:
        assert document(shared(path, check(Net(), Compiled(reference)))) == alone
    first, second, third = map(runs, references)
    assert second == third == (first[0] - 1, first[1] - 1)
    moved = Net(shift=2.0)
    report = shared(path, check(Net(shift=2.0), Compiled(moved)))
    assert report.verdict == "agree" and runs(moved) == first


class Raises(Net):
    def forward(self, x: np.ndarray) -> np.ndarray:
        super().forward(x)
        raise RuntimeError("out of luck")


def test_what_raises(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    failures = []
    for place in (path, path, None):
        with pytest.raises(SideFailed) as raised:
            shared(place, check(Raises()))
        failures.append(str(raised.value))
    assert failures[0] == failures[1] == failures[2] and "4 of 4 sites" in failures[0]
    with pytest.raises(SideFailed, match="reference"):
        shared(str(tmp_path / "broken"), check(Net(), Raises()))
    assert os.path.getsize(tmp_path / "broken") == 0  # the others need not wait for each other
    wide = Net()
    wide.two = Layer(4, 5)
    with pytest.raises(CannotCompare):
        shared(path, check(wide))


def test_limited_memory_is_not_shared(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    shared(str(path), check(Net(), max_memory="1MiB"))
    assert not path.exists()


def _hold(path: str, started: Any, seconds: float) -> None:
    class Slow(Net):
        def forward(self, x: np.ndarray) -> np.ndarray:
            started.set()
            import time

            time.sleep(seconds)
            if seconds > 5:
                os._exit(1)
            return super().forward(x)

    shared(path, check(Net(), Slow()))


@pytest.mark.parametrize("seconds", [0.5, 6.0])
def test_another_process_makes_them(tmp_path: Path, seconds: float) -> None:
    """Waited for; and not for longer than it lives."""
    path = str(tmp_path / "runs")
    context = multiprocessing.get_context("fork")
    started = context.Event()
    child = context.Process(target=_hold, args=(path, started, seconds))
    child.start()
    assert started.wait(30)
    if seconds > 5:
        child.kill()
        child.join()
    said: list[str] = []
    reference = Net()
    report = shared(path, check(Net(), reference, progress=said.append))
    child.join()
    assert report.verdict == "agree" and os.path.getsize(path)
    assert bool(runs(reference)[1]) == (seconds > 5) == (WAITS not in said)
