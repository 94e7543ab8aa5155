"""The candidate's forced run is judged while it is under way: what that saves, and that it finds
what a check finds that holds all values."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import crosscheck
from crosscheck import pipeline
from crosscheck.adapters import adapt
from crosscheck.comparisons import Item
from crosscheck.errors import SideFailed
from crosscheck.judging import left_out, sifting, sparing
from crosscheck.judging.evidence import Evidence
from crosscheck.judging.sifting import Sieve, _wanted_gradients
from crosscheck.memory import Recalled
from crosscheck.observers import Forcer
from crosscheck.request import Request
from crosscheck.results import SiteResult
from crosscheck.run import Runner
from crosscheck.single import run_once
from crosscheck.trace import Trace

from .kit import Run

X = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
DEPTH = 5
U = 2.0**-24


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.batch, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.batch(x))


def deep() -> Deep:
    torch.manual_seed(0)
    return Deep().eval()


def after(layer: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    layer.register_forward_hook(lambda module, args, y: change(y))


def sent_back(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same forward; backward, a factor more."""
    return lambda y: y.detach() + factor * (y - y.detach())


DEFECTS: dict[str, Callable[[Deep], None]] = {
    "forward": lambda m: after(m.blocks[2].up, lambda y: 1.01 * y),
    "forward, 60 roundings": lambda m: after(m.blocks[2].norm, lambda y: y * (1 + 60 * U)),
    "forward, 500 roundings": lambda m: after(m.blocks[2].norm, lambda y: y * (1 + 500 * U)),
    "backward": lambda m: after(m.blocks[2].down, sent_back(1.5)),
    "backward, 1e-5": lambda m: after(m.blocks[2].up, sent_back(1 + 1e-5)),
    "backward, one element": lambda m: after(m.blocks[3].up, _one_element),
    "backward, cut": lambda m: after(m.blocks[1].up, torch.Tensor.detach),
    "a parameter": lambda m: after(m.blocks[3].norm, lambda y: y + m.blocks[3].norm.bias),
}


def _one_element(y: torch.Tensor) -> torch.Tensor:
    weights = torch.ones_like(y)
    weights[1, 4] = 1.01
    return y.detach() + weights * (y - y.detach())


def blamed(report: crosscheck.Report) -> list[tuple[str, str | None, str | None]]:
    return [(d.phase, d.reference, d.candidate) for d in report.divergences]


@pytest.fixture
def gradients_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of any size are judged when they arrive."""
    monkeypatch.setattr(sifting, "SMALL", 0)


@pytest.mark.usefixtures("gradients_at_once")
@pytest.mark.parametrize(
    ("defect", "train"),
    [
        *((name, False) for name in DEFECTS),
        ("forward, 60 roundings", True),
        ("backward, 1e-5", True),
    ],
)
def test_planted_defects_are_found_and_located_as_with_all_values(
    defect: str, train: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = deep()
    DEFECTS[defect](candidate)
    options: dict[str, Any] = {"train": train, "explain": False, "blind_spots": False}
    found = crosscheck.check(deep(), candidate, X, **options)
    monkeypatch.setattr(pipeline, "sifted", lambda draft, backward: None)
    expected = crosscheck.check(deep(), candidate, X, **options)
    assert found.verdict == expected.verdict != "agree"
    assert blamed(found) == blamed(expected)
    assert {s.key: s.verdict for s in found.sites} == {s.key: s.verdict for s in expected.sites}
    where = [site for site in blamed(found)[0][1:] if site is not None]
    assert any(site.startswith("blocks.") for site in where)


def outcome(candidate: nn.Module) -> Any:
    sides = adapt(deep()), adapt(candidate)
    return run_once(sides, {"x": X}, Request())


class Far(nn.Linear):
    """Its numbers lie far from zero: what comes after the shift is off by a thousand roundings."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight) + (self.bias + 3000.0)


class InTwoSteps(Far):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight) + self.bias + 3000.0


class Shift(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - 3000.0


def test_rounding_that_adds_up_in_the_free_run_takes_no_further_forced_run(runs: list[Run]) -> None:
    """Every site has its partner: no forced run can bring another one."""
    first, second = Far(6, 9), InTwoSteps(6, 9)
    sides = (adapt(nn.Sequential(layer, Shift(), nn.Tanh())) for layer in (first, second))
    found = run_once((next(sides), next(sides)), {"x": X}, Request())
    assert found.report.verdict == "agree"
    assert found.evidence is not None and found.evidence.near
    (shift,) = [
        s
        for s in found.report.sites
        if s.key[:2] == ("forward", "activation") and s.reference == "1"
    ]
    free = found.evidence.free_reference.values["activation", "1"]
    off = found.evidence.free_candidate.values["activation", "1"] - free
    assert np.linalg.norm(off) > 200 * U * np.linalg.norm(free)
    assert shift.verdict == "agree"
    assert [run for run in runs if run[0] == "candidate"] == [
        ("candidate", False, False),
        ("candidate", False, True),
    ]


def test_an_honest_port_is_looked_at_in_three_runs(runs: list[Run]) -> None:
    found = outcome(deep())
    assert found.report.verdict == "agree"
    assert runs == [
        ("reference", False, True),
        ("candidate", False, False),
        ("candidate", False, True),
    ]


def test_what_is_certain_is_not_held_and_comes_back_when_asked_for(runs: list[Run]) -> None:
    evidence = outcome(deep()).evidence
    values, gradients = evidence.forced.values, evidence.forced.info.parameter_gradients
    assert isinstance(values, Recalled) and isinstance(gradients, Recalled)
    assert len(values._held) <= 6 < len(values)
    assert len(gradients._held) <= 3 < len(gradients)
    before = len(runs)
    whole = evidence.candidate.record(
        Forcer(evidence.alignment.forced_on_candidate(evidence.free_reference))
    )
    assert list(values) == list(whole.values)
    for key, value in whole.values.items():
        assert values.shape_of(key) == value.shape
        np.testing.assert_array_equal(values[key], value, err_msg=str(key))
    for name, value in whole.info.parameter_gradients.items():
        np.testing.assert_array_equal(gradients[name], value, err_msg=name)
    assert len(runs) == before + 2  # `whole`, and one run for all that had been dropped


@pytest.mark.usefixtures("gradients_at_once")
def test_gradients_judged_when_they_arrive_are_not_held(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[str] = []
    keep = Sieve.keep_gradients
    monkeypatch.setattr(Sieve, "keep_gradients", lambda s, g: (others.extend(g), keep(s, g))[1])
    at_once = outcome(deep())
    gradients = at_once.evidence.forced.info.parameter_gradients
    assert not others and isinstance(gradients, Recalled)
    assert 0 < len(gradients._held) <= 3 < len(gradients)
    assert len(runs) == 3  # nothing was dropped that somebody wanted

    monkeypatch.setattr(sifting, "SMALL", 1 << 15)
    later = outcome(deep())
    assert set(others) == set(gradients)
    assert at_once.report.sites == later.report.sites
    held = later.evidence.forced.info.parameter_gradients._held
    assert gradients._held.keys() == held.keys()
    for name, value in held.items():
        np.testing.assert_array_equal(gradients._held[name], value, err_msg=name)


@pytest.mark.usefixtures("gradients_at_once")
def test_a_wrong_gradient_is_held_as_it_was_first_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes after a layer whose results agree, and does not repeat."""
    candidate, seen = deep(), []

    def grow(gradient: torch.Tensor) -> torch.Tensor:
        seen.append(gradient)
        return gradient * (1.5 if len(seen) == 1 else 1.0)

    candidate.blocks[2].up.weight.register_hook(grow)
    monkeypatch.setattr(Runner, "run", _without_candidates_float64(Runner.run))
    report = crosscheck.check(deep(), candidate, X, explain=False, blind_spots=False)
    wrong = [s for s in report.sites if s.verdict != "agree"]
    assert [(s.phase, s.reference) for s in wrong] == [("parameter_gradient", "blocks.2.up.weight")]


def test_gradients_that_a_page_shows_are_held() -> None:
    """The three largest ratios, also where the oracle clears all that is not certain."""
    ratios = {"a": 7.0, "b": 2.9, "c": 6.0, "d": 1.0, "e": 5.0, "f": 0.5, "g": 2.0}
    near = {}
    for name, ratio in ratios.items():
        item = Item("parameter_gradient", "parameter", name, f"their {name}", None, "")
        names = "parameter_gradient", "parameter", name, f"their {name}"
        near[item] = SiteResult(*names, (3,), "float32", "agree", U, ratio, None, None)
    assert set(_wanted_gradients(near)) == {f"their {name}" for name in "acebdg"}


def test_rounds_of_alignment_go_forward_only(runs: list[Run]) -> None:
    candidate = deep()
    after(candidate.blocks[1].norm, lambda y: 1.5 * y)
    crosscheck.check(deep(), candidate, X, explain=False, blind_spots=False)
    forced = [run for run in runs if run[:2] == ("candidate", False)][1:]
    assert forced[0] == ("candidate", False, False)
    assert ("candidate", False, True) in forced


@pytest.mark.parametrize("sifting", [True, False])
def test_a_finding_that_does_not_repeat_is_looked_at_as_it_was_first_seen(
    sifting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where neither side has float64 it is unstable."""
    monkeypatch.setattr(Runner, "run", _without_candidates_float64(Runner.run))
    if not sifting:
        monkeypatch.setattr(pipeline, "sifted", lambda draft, backward: None)
    candidate, made = deep(), []

    def change(y: torch.Tensor) -> torch.Tensor:
        if not y.requires_grad:
            return y
        made.append(y)
        return sent_back(1.5)(y) if len(made) == 1 else y

    after(candidate.blocks[2].down, change)
    report = crosscheck.check(deep(), candidate, X, explain=False, blind_spots=False)
    assert report.verdict == "suspect"
    assert any("unstable" in note for site in report.sites for note in site.notes)


def _without_candidates_float64(original: Any) -> Any:
    def run(self: Runner, observer: Any, **options: Any) -> Any:
        if self.side == "candidate" and options.get("float64"):
            raise SideFailed("candidate", None, stage="forward", framework="", cause=TypeError())
        return original(self, observer, **options)

    return run


def test_the_oracle_computes_only_the_code_that_is_doubtful(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The product between two layers is summed in another order: the layers are left out, in
    float64, and the cotangents that arrive at them are those of the whole oracle."""

    class Mixing(nn.Module):
        def __init__(self, turned: bool) -> None:
            super().__init__()
            self.turned = turned
            self.a, self.b, self.c = nn.Linear(6, 64), nn.Linear(6, 64), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = self.a(x), self.b(x)
            if self.turned:
                return self.c(sum(a[:, i : i + 1] * b[:, i] for i in reversed(range(64))))
            return self.c(a @ b.T)

    def net(turned: bool) -> Mixing:
        torch.manual_seed(3)
        return Mixing(turned).eval()

    seen: list[frozenset[str]] = []
    original = left_out.needless

    def needless(*args: Any) -> frozenset[str]:
        seen.append(original(*args))
        return seen[-1]

    monkeypatch.setattr(left_out, "needless", needless)
    monkeypatch.setattr(sparing, "CERTAIN", 1.0 + 1e-9)  # whatever is not equal is doubtful
    report = crosscheck.check(net(False), net(True), X, blind_spots=False)
    assert report.verdict == "agree"
    assert seen == [frozenset({"a", "b", "c"})]


def test_parts_of_the_oracle_give_what_one_run_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = deep()
    for block in candidate.blocks:
        after(block.up, lambda y: y * (1 + 3 * U))
    monkeypatch.setattr(sparing, "CERTAIN", 1.0 + 1e-9)
    reports, parts = [], []
    original = sparing._parts
    for large in (1 << 25, 1):
        monkeypatch.setattr(sparing, "LARGE", large)
        monkeypatch.setattr(
            sparing, "_parts", lambda e, items: parts.append(original(e, items)) or parts[-1]
        )
        reports.append(crosscheck.check(deep(), candidate, X, blind_spots=False))
    assert len(parts[0]) == 1 < len(parts[1]) <= sparing.PARTS
    assert sorted(map(str, sum(parts[1], []))) == sorted(map(str, parts[0][0]))
    for one, other in zip(*(report.sites for report in reports), strict=True):
        assert one.key == other.key and one.verdict == other.verdict
        np.testing.assert_allclose(one.ratio, other.ratio, rtol=1e-6)


def test_free_ratios_are_bounds_where_nothing_departs_and_measured_where_it_does() -> None:
    honest = crosscheck.check(deep(), deep(), X, blind_spots=False)
    forward = [s for s in honest.sites if s.phase == "forward"]
    assert all(s.free_ratio is not None and 1.0 <= s.free_ratio <= 32.0 for s in forward)
    candidate = deep()
    after(candidate.blocks[0].norm, lambda y: 1.01 * y)
    report = crosscheck.check(deep(), candidate, X, explain=False, blind_spots=False)
    behind = [s for s in report.sites if s.reference == "blocks.4" and s.phase == "forward"]
    assert behind and all((s.free_ratio or 0.0) > 32.0 >= s.ratio for s in behind)


@pytest.mark.parametrize("change", [lambda m: None, DEFECTS["forward"]], ids=["agree", "defect"])
def test_a_check_holds_nothing_of_its_runs_when_it_is_over(change: Callable[[Deep], None]) -> None:
    """Not even until Python's collector looks: a cycle would hold every value of the check."""
    ours, theirs = deep(), deep()
    change(theirs)

    def held() -> int:
        return sum(type(one) in (Evidence, Trace, Recalled) for one in gc.get_objects())

    crosscheck.check(ours, theirs, X, blind_spots=False, explain=False)
    gc.collect()
    gc.disable()
    try:
        before = held()
        assert crosscheck.check(ours, theirs, X, blind_spots=False, explain=False).sites
        assert held() == before
    finally:
        gc.enable()
