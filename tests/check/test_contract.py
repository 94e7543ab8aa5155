"""The contract of `check` and of what it gives back, name by name."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crosscheck
from crosscheck import CannotCompare, CrosscheckError, Diverged

from .kit import replace, run, scaled
from .numpy_models import Stack
from .torch_models import Mlp, Normed, Outputs

OPTIONS = {
    "candidate_inputs": None,
    "weights": "copy",
    "gradients": True,
    "loss": None,
    "targets": None,
    "optimizer": None,
    "steps": 1,
    "train": False,
    "sites": None,
    "skip": (),
    "device": "cpu",
    "seed": 0,
    "tolerance": None,
    "explain": True,
}


def wrong() -> crosscheck.Report:
    net = Stack()
    replace(net.layers[3], "forward", scaled(1.01))
    return run(Mlp(), net, seed=3)


def test_the_arguments() -> None:
    parameters = inspect.signature(crosscheck.check).parameters
    assert list(parameters)[:3] == ["reference", "candidate", "inputs"]
    for name, default in OPTIONS.items():
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default == default


def test_the_public_names() -> None:
    assert crosscheck.__all__ == sorted(crosscheck.__all__)
    for name in crosscheck.__all__:
        assert getattr(crosscheck, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        crosscheck.no_such_name  # noqa: B018


def test_a_report() -> None:
    report = wrong()
    assert report.verdict == "diverge" and report.seed == 3
    assert isinstance(report.first_divergence, crosscheck.Divergence)
    assert report.first_divergence is report.divergences[0]
    assert report.reference.framework == "torch" and report.candidate.framework == "numpy"
    assert report.reference.device == report.candidate.device == "cpu"
    assert {"torch", "numpy", "python", "crosscheck"} <= set(report.environment)
    assert report.coverage.parameters_matched == 8
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.verdict = "agree"  # type: ignore[misc]


def test_a_divergence() -> None:
    d = wrong().divergences[0]
    assert (d.phase, d.reference, d.candidate) == ("forward", "fc2", "layers.3")
    assert (d.site, d.after) == ("fc2", "norm")
    (cause,) = d.causes
    assert (cause.name, cause.statement) == ("scaled", "the output is scaled by 1.01")
    assert cause.verified and cause.residual_ratio < 8
    assert d.metrics is not None
    assert d.metrics.rel_l2 == pytest.approx(0.01, rel=1e-3)
    assert d.metrics.cosine == pytest.approx(1.0)
    assert d.metrics.worst_index is not None and len(d.metrics.worst_index) == 2
    assert d.metrics.nonfinite == 0 and d.metrics.max_abs > 0
    assert d.ratio > 32


def test_raise_if_diverged_locates_it() -> None:
    report = wrong()
    with pytest.raises(AssertionError) as error:
        report.raise_if_diverged()
    assert isinstance(error.value, Diverged) and not isinstance(error.value, CrosscheckError)
    assert error.value.report is report
    first = str(error.value).splitlines()[0]
    assert first.startswith("diverge: first at `fc2`")
    assert "layers.3" in str(error.value)
    run(Mlp(), Stack()).raise_if_diverged()


def test_json(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    wrong().save_json(file)
    found = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert found["schema"] == 1
    assert {
        "schema",
        "verdict",
        "seed",
        "reference",
        "candidate",
        "environment",
        "coverage",
        "first_divergence",
        "divergences",
        "sites",
    } <= set(found)
    assert set(found["reference"]) == set(found["candidate"]) == {"framework", "version", "device"}
    assert {
        "aligned",
        "unmatched_reference",
        "unmatched_candidate",
        "skipped",
        "parameters_matched",
        "unmatched_reference_parameters",
        "unmatched_candidate_parameters",
    } <= set(found["coverage"])
    divergence = {"phase", "reference", "candidate", "site", "after", "ratio", "metrics", "causes"}
    assert divergence <= set(found["first_divergence"])
    assert found["first_divergence"] == found["divergences"][0]
    site = {
        "phase",
        "reference",
        "candidate",
        "shape",
        "dtype",
        "verdict",
        "noise_floor",
        "ratio",
        "free_ratio",
        "metrics",
    }
    metrics = {"rel_l2", "max_abs", "worst_index", "cosine", "nonfinite"}
    for one in found["sites"]:
        assert site <= set(one) and metrics <= set(one["metrics"])
    assert (found["verdict"], found["seed"]) == ("diverge", 3)
    assert list(tmp_path.iterdir()) == [file]  # nothing half-written is left


def test_json_of_an_agreement_and_of_shapes_that_differ(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    run(Mlp(), Stack()).save_json(str(file))
    assert json.loads(file.read_text())["first_divergence"] is None
    run(Outputs("column"), Outputs("flat")).save_json(file)
    first = json.loads(file.read_text(), parse_constant=pytest.fail)["first_divergence"]
    assert first["metrics"] is None and first["ratio"] > 1e300


def test_html(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    wrong().save_html(file)
    text = file.read_text()
    assert "fc2" in text and "<html" in text.lower()
    assert "http://" not in text and "https://" not in text  # self-contained


def test_print(capsys: pytest.CaptureFixture[str]) -> None:
    report = wrong()
    print(report)
    out = capsys.readouterr().out
    assert out.startswith("diverge: first at `fc2`") and out == str(report) + "\n"
    assert "\x1b[" not in out


def test_phases_come_in_order() -> None:
    report = run(Normed(p=0.0), Normed(p=0.0), train=True)
    phases = list(dict.fromkeys(site.phase for site in report.sites))
    assert phases == ["weights", "forward", "backward", "parameter_gradient", "buffer"]


def test_the_same_check_twice_is_the_same_report() -> None:
    one, two = run(Mlp(), Stack(), seed=4), run(Mlp(), Stack(), seed=4)
    assert one.sites == two.sites and one.coverage == two.coverage
    assert one.sites != run(Mlp(), Stack(), seed=5).sites


def test_an_explicit_tolerance() -> None:
    net = Stack()
    replace(net.layers[3], "forward", scaled(1.01))
    loose = crosscheck.Tolerance(rtol=0.1, atol=0.1)
    assert run(Mlp(), net, tolerance=loose).verdict == "agree"
    tight = crosscheck.Tolerance(rtol=1e-3, atol=1e-6)
    report = run(Mlp(), net, tolerance=tight)
    assert report.divergences[0].candidate == "layers.3"
    assert "rtol=0.001" in str(report.environment["tolerance"])
    with pytest.raises(TypeError):
        crosscheck.Tolerance(rtol=1e-3)  # type: ignore[call-arg]


def test_progress_and_name() -> None:
    lines: list[str] = []
    report = run(Mlp(), Stack(), progress=lines.append, name="mine")
    assert report.name == "mine" and len(lines) >= 4
    assert "torch" in lines[0]


def test_skipped_sites_are_listed() -> None:
    net = Stack()
    replace(net.layers[4], "forward", scaled(1.5))
    report = run(Mlp(), net, skip=["layers.4"])
    assert report.coverage.skipped == ("layers.4",)
    assert report.verdict == "diverge"  # seen at the next site instead
    assert "layers.4" in str(report)


def test_explicit_sites_win() -> None:
    report = run(Mlp(), Stack(), sites={"fc2": "layers.3"})
    by = {s.reference: s.aligned_by for s in report.sites if s.phase == "forward"}
    assert by["fc2"] == "explicit" and report.verdict == "agree"
    report = run(Mlp(), Stack(), sites={"fc1": "layers.3"})
    assert report.verdict == "diverge"


def test_weight_maps() -> None:
    names: dict[str, Any] = {"layers.3.W": ("fc2.weight", "transpose"), "layers.3.b": "fc2.bias"}
    assert run(Mlp(), Stack(), weights=names).verdict == "agree"
    names["layers.3.W"] = "fc2.weight"
    assert run(Mlp(), Stack(), weights=names).verdict in ("agree", "diverge")
    names["layers.3.W"] = ("fc2.weight", lambda w: w.T * 2)
    report = run(Mlp(), Stack(), weights=names)
    assert [(d.phase, d.candidate) for d in report.divergences][0] == ("forward", "layers.3")
    assert any("layers.3.W" in line for line in report.coverage.not_compared)


def test_comparing_nothing_is_not_a_pass() -> None:
    for inputs in ("float32[0,6]",):
        for gradients in (True, False):
            with pytest.raises(CannotCompare, match="empty"):
                run(Mlp(), Mlp(), inputs, gradients=gradients)
    with pytest.raises(CannotCompare, match="returned no array"):
        run(Outputs("none"), Outputs("none"))


def test_integers_of_numpy_are_integers(tmp_path: Path) -> None:
    """PyTorch's generator and JSON take Python's alone."""
    report = run(Mlp(), Stack(), seed=np.int64(4), optimizer="sgd(lr=0.1)", steps=np.int32(2))
    report.save_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["seed"] == 4
    assert report.sites == run(Mlp(), Stack(), seed=4, optimizer="sgd(lr=0.1)", steps=2).sites
