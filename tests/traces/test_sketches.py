"""Sketches: what they hold, what they see, and where they say it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crosscheck
from crosscheck import CannotCompare, InvalidArgument, TraceFormatError
from crosscheck.sketches.file import load_sketch
from crosscheck.sketches.make import Sketch, parse_bytes
from tests.traces.kit import Linear, Net, X, found
from tests.traces.test_trace_checks import DEFECTS, made, other_bias

BIG = "float32[300,6]"  # activations of 2400 elements, of which a sketch keeps a part


@pytest.fixture(scope="module")
def sketch() -> Sketch:
    return crosscheck.record(Net(), BIG, parameters=True).sketch(12_000)


def test_an_equal_run_agrees_and_everything_is_compared(sketch: Sketch) -> None:
    assert 16 <= sketch.plan.rows < 100 and sketch.inputs == {}
    report = crosscheck.check(sketch, Net(), BIG)
    assert report.verdict == "agree" and max(s.ratio for s in report.sites) == 0.0
    assert {s.phase for s in report.sites} == {
        "weights",
        "forward",
        "backward",
        "parameter_gradient",
    }
    assert report.coverage.aligned == 7 and report.coverage.not_compared == ()
    assert report.sites[6].shape == (300, 6) and report.sites[6].dtype == "float32"
    assert any("what a sketch cannot see" in note for note in report.notes)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_blamed_where_it_is(sketch: Sketch, name: str) -> None:
    plant, place = DEFECTS[name]
    report = crosscheck.check(sketch, made(plant), BIG)
    assert report.verdict == "diverge" and found(report) == [place], str(report)
    assert any("cannot" in line or "no values" in line for line in report.coverage.not_compared)
    first = next(s for s in report.sites if s.verdict == "diverge")
    assert "norm" in first.notes[0] and first.metrics is not None


def test_the_estimate_is_near_the_true_ratio(sketch: Sketch) -> None:
    trace = crosscheck.record(Net(), BIG, parameters=True)
    other = made(DEFECTS["forward"][0])
    whole = crosscheck.check(trace, crosscheck.record(other, BIG)).first_divergence
    few = crosscheck.check(sketch, other, BIG).first_divergence
    assert whole is not None and few is not None
    assert 0.5 < few.ratio / whole.ratio < 1.5


def test_another_weight_is_named_first(sketch: Sketch) -> None:
    report = crosscheck.check(sketch, made(other_bias), BIG)
    assert found(report)[0] == ("weights", "second.b", "second.b")


def test_one_wrong_element_among_thousands_is_seen(sketch: Sketch) -> None:
    net = Net()
    forward = net.act1.forward

    def wrong(x: Any) -> Any:
        y = forward(x)
        y[137, 3] += np.float32(1e-3)
        return y

    net.act1.forward = wrong
    report = crosscheck.check(sketch, net, BIG, gradients=False)
    assert found(report) == [("forward", "act1", "act1")]


def test_a_nan_is_a_divergence(sketch: Sketch) -> None:
    net = Net()
    forward = net.act2.forward

    def wrong(x: Any) -> Any:
        y = forward(x)
        y[5, 5] = np.nan
        return y

    net.act2.forward = wrong
    report = crosscheck.check(sketch, net, BIG, gradients=False)
    first = report.first_divergence
    assert first is not None and first.candidate == "act2" and first.ratio == float("inf")


def test_other_names_are_aligned_by_value(sketch: Sketch) -> None:
    class Renamed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.dense0, self.nonlinear0 = self.first, self.act1
            self.dense1, self.nonlinear1, self.head = self.second, self.act2, self.third
            for name in ("first", "act1", "second", "act2", "third"):
                delattr(self, name)

        def layers(self) -> list[Any]:
            return [self.dense0, self.nonlinear0, self.dense1, self.nonlinear1, self.head]

    net = Renamed()
    report = crosscheck.check(sketch, net, BIG)
    assert report.verdict == "agree" and report.coverage.aligned == 7
    net.nonlinear0.factor = 1 + 1e-5
    assert found(crosscheck.check(sketch, net, BIG)) == [("forward", "act1", "nonlinear0")]


class Pointwise:
    """y = x W over the channels, in either layout."""

    axes = {"W": ("in", "out")}

    def __init__(self, rule: str, back: str, weight: str) -> None:
        rng = np.random.default_rng(3)
        self.W = rng.normal(size=(4, 4)).astype(np.float32)
        self.rules = rule, back, weight

    def forward(self, x: Any) -> Any:
        self.x = x
        return np.einsum(self.rules[0], x, self.W)

    def backward(self, d: Any) -> Any:
        self.dW = np.einsum(self.rules[2], self.x, d)
        return np.einsum(self.rules[1], d, self.W)


class Images:
    def __init__(self, *, last: bool) -> None:
        axes = "nhwc" if last else "nchw"
        out = axes.replace("c", "o")
        rules = f"{axes},co->{out}", f"{out},co->{axes}", f"{axes},{out}->co"
        self.one, self.two = Pointwise(*rules), Pointwise(*rules)
        self.factor = 1.0

    def forward(self, x: Any) -> Any:
        return self.two.forward(self.one.forward(x) * np.float32(self.factor))

    def backward(self, d: Any) -> Any:
        return self.one.backward(self.two.backward(d) * np.float32(self.factor))


def test_channels_last_is_transposed_before_it_is_sketched() -> None:
    sketch = crosscheck.record(Images(last=False), "float32[3,4,5,7]", parameters=True).sketch(9000)

    def turned(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return np.ascontiguousarray(inputs["x"].transpose(0, 2, 3, 1))

    report = crosscheck.check(
        sketch, Images(last=True), "float32[3,4,5,7]", candidate_inputs=turned
    )
    assert report.verdict == "agree", str(report)
    phases = {s.phase for s in report.sites}
    assert {"forward", "backward", "parameter_gradient"} <= phases
    wrong = Images(last=True)
    wrong.two.W = np.ascontiguousarray(wrong.two.W.T)
    report = crosscheck.check(sketch, wrong, "float32[3,4,5,7]", candidate_inputs=turned)
    assert report.verdict == "diverge"


class Rows(Pointwise):
    """The same, always over the last axis."""

    def __init__(self) -> None:
        super().__init__("nhwc,co->nhwo", "nhwo,co->nhwc", "nhwc,nhwo->co")


class Mixed(Images):
    """Channels as `Images` has them, and last between its layers on either side."""

    def __init__(self, *, last: bool, factor: float = 1.0) -> None:
        super().__init__(last=last)
        self.rows, self.factor = Rows(), factor
        self.there, self.back = ((0, 2, 3, 1), (0, 3, 1, 2)) if not last else ((0, 1, 2, 3),) * 2

    def forward(self, x: Any) -> Any:
        rows = self.rows.forward(self.one.forward(x).transpose(self.there))
        return self.two.forward(rows.transpose(self.back) * np.float32(self.factor))

    def backward(self, d: Any) -> Any:
        rows = self.two.backward(d).transpose(self.there) * np.float32(self.factor)
        return self.one.backward(self.rows.backward(rows).transpose(self.back))


@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (3, 4, 5, 5), (3, 4, 4, 4)])
def test_layers_of_each_type_have_their_layout(shape: tuple[int, ...]) -> None:
    inputs = f"float32[{','.join(map(str, shape))}]"
    sketch = crosscheck.record(Mixed(last=False), inputs, parameters=True).sketch(9000)

    def turned(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return np.ascontiguousarray(inputs["x"].transpose(0, 2, 3, 1))

    report = crosscheck.check(sketch, Mixed(last=True), inputs, candidate_inputs=turned)
    assert report.verdict == "agree", str(report)
    sites = {s.reference for s in report.sites if (s.phase, s.kind) == ("forward", "activation")}
    assert {"one", "rows", "two"} <= sites
    report = crosscheck.check(sketch, Mixed(last=True, factor=1.1), inputs, candidate_inputs=turned)
    first = report.first_divergence
    assert first is not None and first.site == "two"


def test_small_values_are_kept_whole_with_the_inputs(tmp_path: Path) -> None:
    path = tmp_path / "golden.safetensors"
    crosscheck.record(Net(), X, parameters=True).save(path, sketch=30_000)
    assert path.stat().st_size < 30_000
    sketch = load_sketch(path)
    assert list(sketch.inputs) == ["x"]
    report = crosscheck.check(path, made(DEFECTS["forward"][0]))
    assert found(report) == [DEFECTS["forward"][1]]


def test_the_file_keeps_to_its_size_and_comes_back_as_it_was(tmp_path: Path) -> None:
    trace = crosscheck.record(Net(), BIG, parameters=True)
    for most in (8_000, 12_000, 20_000):
        path = tmp_path / f"{most}.safetensors"
        trace.save(path, sketch=most)
        assert 0.7 * most < path.stat().st_size <= most
    again = load_sketch(path)
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    with pytest.raises(InvalidArgument, match=r"give at least [\d,]+ bytes"):
        trace.sketch(3_000)
    with pytest.raises(InvalidArgument, match="sketch=0"):
        trace.sketch(0)


def test_other_inputs_refuse(sketch: Sketch) -> None:
    with pytest.raises(CannotCompare, match="SHA-256"):
        crosscheck.check(sketch, Net(), "float32[299,6]")
    with pytest.raises(InvalidArgument, match="give inputs"):
        crosscheck.check(sketch, Net())
    other = crosscheck.record(Net(), BIG, seed=4)
    with pytest.raises(CannotCompare, match="different inputs"):
        crosscheck.check(sketch, other)


def test_a_recorded_candidate_is_compared(sketch: Sketch) -> None:
    assert crosscheck.check(sketch, crosscheck.record(Net(), BIG)).verdict == "agree"
    other = crosscheck.record(made(DEFECTS["backward"][0]), BIG)
    assert found(crosscheck.check(sketch, other)) == [DEFECTS["backward"][1]]


@pytest.mark.parametrize(
    "option",
    [{"zoom": True}, {"optimizer": "sgd(lr=0.1)"}, {"tolerance": crosscheck.Tolerance(1e-3, 0.0)}],
)
def test_what_a_sketch_cannot_do_is_refused(sketch: Sketch, option: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="a sketch, which holds no values"):
        crosscheck.check(sketch, Net(), BIG, **option)


def test_other_modes_and_further_runs_are_refused(sketch: Sketch) -> None:
    with pytest.raises(CannotCompare, match="recorded in eval mode"):
        crosscheck.check(sketch, Net(), BIG, train=True)
    for option in ({"seeds": 2}, {"randomise": True}, {"probes": "small"}):
        with pytest.raises(InvalidArgument, match="a sketch is of one run"):
            crosscheck.check(sketch, Net(), BIG, **option)
    with pytest.raises(InvalidArgument, match='"cpu" or "cuda"'):
        crosscheck.check(sketch, Net(), BIG, device="tpu")


def test_another_shape_diverges(sketch: Sketch) -> None:
    records = dict(sketch.records)
    key = ("activation", "output")
    records[key] = dataclasses.replace(records[key], shape=(3, 300))
    other = dataclasses.replace(sketch, records=records)
    report = crosscheck.check(other, Net(), BIG, gradients=False)
    assert report.verdict == "diverge"
    shapes = [s for s in report.sites if s.reference == "output"]
    assert shapes[0].metrics is None and shapes[0].candidate_shape == (300, 3)


def test_weights_that_were_not_kept_are_said_not_to_be_compared() -> None:
    sketch = crosscheck.record(Net(), BIG).sketch(12_000)
    report = crosscheck.check(sketch, Net(), BIG)
    assert report.verdict == "agree" and "weights" not in {s.phase for s in report.sites}
    assert any("weights not compared" in note for note in report.notes)


def test_a_site_is_skipped_and_listed(sketch: Sketch) -> None:
    report = crosscheck.check(sketch, made(DEFECTS["forward"][0]), BIG, skip=["act1"])
    assert report.coverage.skipped == ("act1",)
    assert report.first_divergence is not None and report.first_divergence.after == "first"


@pytest.mark.parametrize(
    ("text", "size"), [("300kB", 300_000), ("1.5MB", 1_500_000), ("4096", 4096), ("2k", 2000)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["much", "-3kB", "0", "nan", "9GB", ""])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="such as 300kB"):
        parse_bytes(text)


def test_record_gives_a_sketch_when_asked(tmp_path: Path) -> None:
    trace = crosscheck.record(Net(), BIG, parameters=True)
    made = crosscheck.record(Net(), BIG, sketch=12_000)
    made.save(tmp_path / "one.safetensors")
    trace.save(tmp_path / "other.safetensors", sketch=12_000)
    one, other = (tmp_path / f"{name}.safetensors" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()
    assert crosscheck.record(Net(), X, sketch=True).plan.rows == 256
    with pytest.raises(InvalidArgument, match="sketch=-1"):
        crosscheck.record(Net(), X, sketch=-1)


@pytest.mark.parametrize("name", DEFECTS)
def test_two_sketches_are_compared(sketch: Sketch, name: str) -> None:
    plant, place = DEFECTS[name]
    honest = crosscheck.check(sketch, crosscheck.record(Net(), BIG, sketch=12_000))
    assert honest.verdict == "agree" and honest.coverage.not_compared == ()
    assert max(s.ratio for s in honest.sites) == 0.0
    whole = crosscheck.check(sketch, made(plant), BIG)
    report = crosscheck.check(sketch, crosscheck.record(made(plant), BIG, sketch=12_000))
    assert report.verdict == "diverge" and found(report) == [place], str(report)
    assert [s.ratio for s in report.sites] == pytest.approx([s.ratio for s in whole.sites])


def test_sketches_that_cannot_be_subtracted_are_refused(sketch: Sketch) -> None:
    with pytest.raises(CannotCompare, match="of other sizes: 72 projections .* against 92") as no:
        crosscheck.check(sketch, crosscheck.record(Net(), BIG, sketch=14_000))
    assert "Fix: compare with the model" in str(no.value)
    with pytest.raises(CannotCompare, match="projected with other seeds"):
        crosscheck.check(sketch, crosscheck.record(Net(), BIG, sketch=12_000, seed=1))
    shorter = crosscheck.record(Net(), "float32[299,6]", sketch=12_000)
    with pytest.raises(CannotCompare, match="different inputs"):
        crosscheck.check(sketch, shorter)


def test_two_sketches_in_different_layouts_are_listed() -> None:
    one, other = (
        crosscheck.record(Images(last=last), shape, sketch=9_000)
        for last, shape in ((False, "float32[3,4,5,7]"), (True, "float32[3,5,7,4]"))
    )
    fed = dataclasses.replace(other, inputs_sha256=one.inputs_sha256, plan=one.plan)
    report = crosscheck.check(one, fed, gradients=False)
    assert report.verdict != "agree" or any(
        "the two sketches hold it in different layouts" in line
        for line in report.coverage.not_compared
    )


def test_a_sketch_is_no_candidate_of_anything_else(sketch: Sketch, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    sketch.save(path)
    for reference in (Net(), crosscheck.record(Net(), BIG)):
        for candidate in (sketch, path):
            with pytest.raises(TraceFormatError, match="Fix: give it as the reference"):
                crosscheck.check(reference, candidate, BIG)


def test_values_that_are_added_up_are_sketched_together() -> None:
    """The norm of a sum does not follow from the norms of its parts, its projection does."""
    from crosscheck.sketches.bench import combined
    from crosscheck.sketches.judge import read

    class Twice:
        """One value into two slots of a layer, which sends something else back through each."""

        def __init__(self) -> None:
            self.first, self.both = Linear(6, 40, 0), Both()

        def forward(self, x: Any) -> Any:
            y = self.first.forward(x)
            return self.both.forward(y, y)

        def backward(self, d: Any) -> Any:
            one, other = self.both.backward(d)
            return self.first.backward(one + other)

    class Both:
        def forward(self, a: Any, b: Any) -> Any:
            self.a, self.b = a, b
            return a * b - b

        def backward(self, d: Any) -> Any:
            return d * self.b, d * (self.a - 1)

    sketch = crosscheck.record(Twice(), "float32[30,6]", sketch=9_000)
    keys = [("input_cotangent", "both"), ("input_cotangent", "both:0:1")]
    trace = crosscheck.record(Twice(), "float32[30,6]")
    record = combined(sketch, keys)
    assert record is not None
    reading = read(trace.values[keys[0]] + trace.values[keys[1]], record, sketch.plan)
    assert reading.l2 <= 1e-5 * record.numbers.scale and reading.maximum < 1e-5
    assert crosscheck.check(sketch, Twice(), "float32[30,6]").verdict == "agree"
