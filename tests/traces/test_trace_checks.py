"""`check` where a side is a recorded run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crosscheck
from crosscheck import CannotCompare, InvalidArgument, RecordedTrace, SideFailed, Tolerance
from crosscheck.trace import Trace
from crosscheck.traces.file import TensorFile, write_tensors
from crosscheck.traces.judging import MEASURED, RECKONED
from crosscheck.traces.recorded import Rounding
from tests.traces.kit import Linear, Net, X, found


def wrong_forward(net: Net) -> None:
    net.act1.factor = 1 + 1e-5


def wrong_backward(net: Net) -> None:
    net.act1.backward_factor = 1 + 1e-4


class HalfGradient(Linear):
    def backward(self, d: Any) -> Any:
        dx = super().backward(d)
        self.dW = self.dW / 2
        return dx


def wrong_gradient(net: Net) -> None:
    net.second.__class__ = HalfGradient


def other_bias(net: Net) -> None:
    net.second.b = net.second.b + np.float32(1)


DEFECTS: dict[str, tuple[Callable[[Net], None], tuple[str, str, str]]] = {
    "forward": (wrong_forward, ("forward", "act1", "act1")),
    "backward": (wrong_backward, ("backward", "act1", "act1")),
    "gradient": (wrong_gradient, ("parameter_gradient", "second.W", "second.W")),
}


@pytest.fixture
def reference() -> RecordedTrace:
    return crosscheck.record(Net(), X, parameters=True)


def made(plant: Callable[[Net], None] | None = None, seed: int = 0) -> Net:
    net = Net(seed)
    if plant is not None:
        plant(net)
    return net


# -- a recorded reference, a candidate that runs ---------------------------------------------------


def test_a_live_candidate_is_given_the_recorded_inputs_and_weights(
    reference: RecordedTrace, tmp_path: Path
) -> None:
    reference.save(tmp_path / "r.safetensors")
    net = Net(seed=9)
    report = crosscheck.check(tmp_path / "r.safetensors", net)
    assert report.verdict == "agree", str(report)
    assert report.coverage.parameters_matched == 6 and report.coverage.not_compared == ()
    assert {s.phase for s in report.sites} == {
        "weights",
        "forward",
        "backward",
        "parameter_gradient",
    }
    np.testing.assert_array_equal(net.second.W, Net().second.W)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_live_candidate_is_forced_so_that_later_sites_are_clean(
    reference: RecordedTrace, name: str
) -> None:
    plant, place = DEFECTS[name]
    report = crosscheck.check(reference, made(plant))
    assert found(report) == [place], str(report)
    bad = [s for s in report.sites if s.verdict != "agree"]
    assert len(bad) == 1 and bad[0].verdict == "diverge"
    assert MEASURED in bad[0].notes
    if name != "gradient":
        assert any((s.free_ratio or 0) > 32 for s in report.sites if s is not bad[0])


def test_two_defects_are_told_apart(reference: RecordedTrace) -> None:
    def plant(net: Net) -> None:
        net.act1.factor, net.act2.factor = 1.01, 1.02

    report = crosscheck.check(reference, made(plant), gradients=False)
    assert [d.candidate for d in report.divergences] == ["act1", "act2"]


def test_without_parameters_the_candidate_keeps_its_own() -> None:
    bare = crosscheck.record(Net(), X)
    report = crosscheck.check(bare, Net())
    assert report.verdict == "agree", str(report)
    assert "weights" not in {s.phase for s in report.sites}
    assert "parameter_gradient" in {s.phase for s in report.sites}
    assert any("holds no parameters" in note for note in report.notes)
    other = crosscheck.check(bare, Net(seed=5))
    assert other.verdict == "diverge"
    assert "weights were neither given nor compared" in _headline(other)
    with pytest.raises(InvalidArgument, match="--parameters"):
        crosscheck.check(bare, Net(), weights={"first.W": "first.W"})


@pytest.mark.parametrize("recorded", ["both", "candidate"])
def test_two_runs_without_parameters_say_so(recorded: str) -> None:
    ours = crosscheck.record(Net(), X) if recorded == "both" else Net()
    report = crosscheck.check(ours, crosscheck.record(Net(seed=5), X))
    assert report.verdict == "diverge"
    assert "weights were neither given nor compared" in _headline(report)


def test_weights_that_were_given_or_compared_are_not_called_unknown(
    reference: RecordedTrace,
) -> None:
    def plant(net: Net) -> None:
        net.act1.factor = 1.01

    bad = made(plant)
    sketch = crosscheck.record(Net(), X, sketch=True)
    for ours, theirs in [
        (reference, bad),
        (reference, crosscheck.record(bad, X, parameters=True)),
        (sketch, bad),
        (crosscheck.record(lambda x: 2 * x, X), lambda x: 3 * x),
    ]:
        report = crosscheck.check(ours, theirs)
        assert report.verdict == "diverge"
        assert "weights were neither" not in _headline(report)


def _headline(report: crosscheck.Report) -> str:
    return " ".join(str(report).partition("ratio to the")[0].split())


def test_without_measured_rounding_the_floor_is_reckoned_and_says_so(
    reference: RecordedTrace,
) -> None:
    bare = dataclasses.replace(reference, rounding={})
    report = crosscheck.check(bare, Net())
    assert report.verdict == "agree"
    assert all(s.notes == (RECKONED,) for s in report.sites if s.phase != "weights")
    report = crosscheck.check(bare, made(wrong_forward))
    assert found(report) == [("forward", "act1", "act1")]


def test_a_candidate_that_raises_is_not_a_divergence(reference: RecordedTrace) -> None:
    net = Net()
    net.act2.forward = lambda x: 1 / 0
    with pytest.raises(SideFailed, match="6 of 6|5 of 5|4 of 4"):
        crosscheck.check(reference, net)


def test_train_mode_and_seed_are_those_of_the_trace() -> None:
    trace = crosscheck.record(Net(), X, parameters=True, seed=7)
    assert crosscheck.check(trace, Net()).seed == 7
    with pytest.raises(CannotCompare, match="recorded in eval mode"):
        crosscheck.check(trace, Net(), train=True)


def test_inputs_given_must_be_the_recorded_ones(reference: RecordedTrace) -> None:
    assert crosscheck.check(reference, Net(), X).verdict == "agree"
    for inputs in ("float32[4,6]", {"y": X}, np.ones((5, 6), np.float32)):
        with pytest.raises(CannotCompare, match="not those of the recorded trace"):
            crosscheck.check(reference, Net(), inputs)


def test_a_trace_without_inputs_asks_for_them(reference: RecordedTrace) -> None:
    bare = dataclasses.replace(reference, inputs={})
    assert crosscheck.check(bare, Net()).verdict == "agree"  # they were seen at `input:x`
    values = {k: v for k, v in reference.values.items() if k != ("activation", "input:x")}
    info = dataclasses.replace(reference.info, inputs=())
    bare = dataclasses.replace(bare, values=values, info=info)
    with pytest.raises(InvalidArgument, match="give inputs"):
        crosscheck.check(bare, Net())
    assert crosscheck.check(bare, Net(), X).verdict == "agree"


def test_a_bare_record_of_a_run_is_no_side_of_a_check(reference: RecordedTrace) -> None:
    bare = Trace(reference.values, reference.info, "numpy")
    with pytest.raises(InvalidArgument, match="the reference: .*crosscheck.record"):
        crosscheck.check(bare, Net(), X)


def test_models_still_need_inputs() -> None:
    with pytest.raises(InvalidArgument, match="give an array or a spec"):
        crosscheck.check(Net(), Net())


def test_a_trace_cannot_be_recorded_or_forced_or_loaded(reference: RecordedTrace) -> None:
    with pytest.raises(InvalidArgument, match="recorded run already"):
        crosscheck.record(reference, X)
    with pytest.raises(InvalidArgument, match='must be "cpu" or "cuda"'):
        crosscheck.record(Net(), X, device="tpu")
    adapter = crosscheck.adapt(reference)
    with pytest.raises(InvalidArgument, match="cannot be forced"):
        adapter.run({}, lambda site, kind, value: value)
    with pytest.raises(InvalidArgument, match="takes no parameters"):
        adapter.load({})
    with pytest.raises(InvalidArgument, match="takes no options"):
        crosscheck.adapt(reference, params={})


def test_a_forced_candidate_answers_for_its_own_stretches_only(reference: RecordedTrace) -> None:
    """With an accumulated error so large that it would excuse the defect."""
    large = {key: Rounding(1e3 * r.l2, 1e3 * r.maximum) for key, r in reference.rounding.items()}
    trace = dataclasses.replace(reference, rounding=large)
    assert found(crosscheck.check(trace, made(wrong_forward))) == [("forward", "act1", "act1")]
    recorded = crosscheck.record(made(wrong_forward), X)
    assert crosscheck.check(trace, recorded).verdict == "agree"
    assert crosscheck.check(trace, made(wrong_forward), skip=["second"]).verdict == "agree"


def test_the_local_rounding_is_that_of_the_layer_alone(reference: RecordedTrace) -> None:
    sites = [key for key in reference.local if key[0] == "activation"]
    assert len(sites) == 7 and set(reference.local) == set(reference.rounding)
    assert reference.local["activation", "third"].l2 < 3 * reference.rounding[sites[-1]].l2
    assert all(0 <= r.l2 < 1e-5 and r.maximum <= r.l2 for r in reference.local.values())


# -- a recorded candidate --------------------------------------------------------------------------


@pytest.mark.parametrize("live", [False, True], ids=["two traces", "live reference"])
def test_equal_runs_agree(reference: RecordedTrace, live: bool) -> None:
    report = crosscheck.check(Net() if live else reference, crosscheck.record(Net(), X))
    assert report.verdict == "agree" and report.divergences == ()
    assert report.coverage.aligned == 7 and report.coverage.not_compared == ()


@pytest.mark.parametrize("live", [False, True], ids=["two traces", "live reference"])
@pytest.mark.parametrize("name", DEFECTS)
def test_the_first_departure_is_blamed_and_nothing_behind_it(
    reference: RecordedTrace, name: str, live: bool
) -> None:
    plant, place = DEFECTS[name]
    report = crosscheck.check(Net() if live else reference, crosscheck.record(made(plant), X))
    assert report.verdict == "diverge" and found(report) == [place], str(report)
    first = report.first_divergence
    assert first is not None and "agree" in first.statement
    assert any("cannot be forced" in line for line in report.coverage.not_compared)
    behind = [s for s in report.sites if s.verdict == "suspect"]
    assert [s for s in report.sites if s.verdict == "diverge"] != []
    assert (behind != []) == (name != "gradient")
    assert all("inherited" in s.notes[-1] for s in behind)


def test_what_differs_behind_the_first_departure_is_never_passed(reference: RecordedTrace) -> None:
    def plant(net: Net) -> None:
        net.act1.factor, net.act2.factor = 1.01, 1.02

    report = crosscheck.check(reference, crosscheck.record(made(plant), X))
    assert [d.candidate for d in report.divergences] == ["act1"]
    verdicts = {s.reference: s.verdict for s in report.sites if s.phase == "forward"}
    assert verdicts["first"] == "agree" and verdicts["act2"] == verdicts["output"] == "suspect"


def test_weights_of_both_traces_are_compared(reference: RecordedTrace) -> None:
    other = crosscheck.record(made(other_bias), X, parameters=True)
    report = crosscheck.check(reference, other)
    assert found(report) == [
        ("weights", "second.b", "second.b"),
        ("forward", "second", "second"),
    ]


def test_different_inputs_refuse(reference: RecordedTrace) -> None:
    for seed, inputs in ((1, X), (0, "float32[4,6]")):
        with pytest.raises(CannotCompare, match="traces are of different inputs.*inputs_sha256"):
            crosscheck.check(reference, crosscheck.record(Net(), inputs, seed=seed))


def test_different_modes_refuse(reference: RecordedTrace) -> None:
    with pytest.raises(CannotCompare, match="eval mode and the candidate in train"):
        crosscheck.check(reference, crosscheck.record(Net(), X, train=True))


def test_different_cotangents_are_not_compared(reference: RecordedTrace) -> None:
    values = dict(reference.values)
    values["cotangent", "output"] = values["cotangent", "output"] * 2
    report = crosscheck.check(reference, dataclasses.replace(reference, values=values))
    assert {s.phase for s in report.sites} == {"weights", "forward"}
    assert any("other cotangents" in line for line in report.coverage.not_compared)


def test_a_forward_trace_compares_forward(reference: RecordedTrace) -> None:
    report = crosscheck.check(reference, crosscheck.record(Net(), X, gradients=False))
    assert report.verdict == "agree"
    assert any("does not hold the cotangents" in line for line in report.coverage.not_compared)
    report = crosscheck.check(reference, crosscheck.record(Net(), X), gradients=False)
    assert "backward: gradients=False" in report.coverage.not_compared


def test_a_record_that_is_not_there_is_listed_and_not_taken_for_zero(
    reference: RecordedTrace,
) -> None:
    values = {k: v for k, v in reference.values.items() if k != ("cotangent", "act1")}
    less = dataclasses.replace(reference, values=values)
    for sides in ((reference, less), (less, reference), (less, Net())):
        report = crosscheck.check(*sides)
        assert report.verdict == "agree", str(report)
        assert any("cotangent of `act1`" in line for line in report.coverage.not_compared)


def test_an_explicit_tolerance_replaces_the_floor(reference: RecordedTrace) -> None:
    other = crosscheck.record(made(wrong_forward), X)
    assert crosscheck.check(reference, other, tolerance=Tolerance(1e-3, 1e-3)).verdict == "agree"


def test_sites_and_skip(reference: RecordedTrace) -> None:
    other = crosscheck.record(made(wrong_forward), X)
    report = crosscheck.check(reference, other, skip=["act1"], sites={"second": "second"})
    assert report.coverage.skipped == ("act1",)
    first = report.first_divergence
    assert first is not None and first.after == "first"
    with pytest.raises(InvalidArgument, match="zoom"):
        crosscheck.check(reference, other, zoom=True)
    with pytest.raises(InvalidArgument, match="candidate_inputs"):
        crosscheck.check(reference, other, candidate_inputs={"x": 1})


def test_a_suspicion_that_grows_into_a_divergence_is_blamed_where_it_begins(
    reference: RecordedTrace,
) -> None:
    """9 x, 20 x, 3000 x in a row: one departure, which begins at 9 x."""
    values, rng = dict(reference.values), np.random.default_rng(0)
    for site, ratio in (("act1", 12), ("second", 12), ("act2", 3000)):
        value = values["activation", site]
        floor = max(reference.rounding["activation", site].l2, 2**-24 * np.linalg.norm(value))
        noise = rng.normal(size=value.shape)
        moved = value.astype(np.float64) + noise * (ratio * floor / np.linalg.norm(noise))
        values["activation", site] = moved.astype(np.float32)
    report = crosscheck.check(
        reference, dataclasses.replace(reference, values=values), gradients=False
    )
    first = report.first_divergence
    assert first is not None and (first.candidate, first.verdict) == ("act1", "diverge")
    assert len(report.divergences) == 1 and report.verdict == "diverge"


def test_a_trace_of_another_program_needs_little(reference: RecordedTrace, tmp_path: Path) -> None:
    """Only activations, cotangents and gradients, under plain names; no structure at all."""
    reference.save(tmp_path / "r.safetensors")
    whole = TensorFile(tmp_path / "r.safetensors")
    kept = {
        name.removeprefix("activation/"): np.array(value)
        for name, value in whole.items()
        if name.startswith(("activation/", "cotangent/", "gradient/")) and "input:" not in name
    }
    order = [n.removeprefix("activation/") for n in _order(whole)]
    strings = {
        "order": _dumped([n for n in order if n in kept]),
        "inputs_sha256": reference.inputs_sha256,
    }
    write_tensors(tmp_path / "c.safetensors", kept, strings)
    report = crosscheck.check(reference, tmp_path / "c.safetensors")
    assert report.verdict == "agree", str(report)
    assert report.coverage.aligned == 6 and report.candidate.framework == "trace"
    kept["act1"] = kept["act1"] * np.float32(1.0005)
    write_tensors(tmp_path / "c.safetensors", kept, strings)
    report = crosscheck.check(reference, tmp_path / "c.safetensors")
    assert found(report)[0] == ("forward", "act1", "act1")
    report = crosscheck.check(tmp_path / "c.safetensors", Net(), X)
    assert ("forward", "act1", "act1") in found(report)


def _order(file: TensorFile) -> list[str]:
    import json

    return list(json.loads(file.metadata["order"]))


def _dumped(value: Any) -> str:
    import json

    return json.dumps(value)
