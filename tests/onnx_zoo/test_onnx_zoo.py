"""The pairs of `models/` through ONNX: right exports agree, altered graphs are found in place."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import crosscheck  # noqa: E402
from crosscheck.adapters.onnx.export import export  # noqa: E402
from crosscheck.adapters.onnx.sessions import Sessions  # noqa: E402
from crosscheck.pair import Pair, load_pair  # noqa: E402
from models.defects import GRAPH_DEFECTS, Defect  # noqa: E402
from models.defects.onnx import edit_of  # noqa: E402

MODELS = Path(__file__).resolve().parents[2] / "models"
LEVELS = ("none", "all")
QUICK = {  # one of each sort
    "mlp-onnx-layernorm-epsilon",
    "cnn-onnx-conv-pads",
    "gpt-onnx-projection-transposed",
    "gpt-onnx-query-key-swapped",
}


def slow(*values: Any, **options: Any) -> Any:
    return pytest.param(*values, **options, marks=pytest.mark.slow)


@functools.cache
def pair_of(family: str) -> Pair:
    return load_pair(MODELS / family)


@functools.cache
def exported(family: str) -> bytes:
    pair = pair_of(family)
    serialized: bytes = export(pair.reference(), pair.inputs(0)).SerializeToString()
    return serialized


# -- right exports ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["mlp", slow("cnn"), slow("gpt")])
def test_an_export_agrees_forward_and_backward(family: str) -> None:
    report = pair_of(family).check("onnx", seed=11)
    assert report.verdict == "agree", str(report)
    assert report.coverage.unmatched_reference == report.coverage.unmatched_candidate == ()
    assert report.coverage.not_compared == ()
    phases = {site.phase for site in report.sites}
    assert {"weights", "forward", "backward", "parameter_gradient"} <= phases
    assert any("it checks the kernels, not the formulas" in note for note in report.notes)


@pytest.mark.parametrize("family", [slow("mlp"), slow("cnn"), "gpt"])
def test_the_optimised_graph_agrees_and_its_backward_pass_is_listed(family: str) -> None:
    report = pair_of(family).check("onnx-optimized", seed=12)
    assert report.verdict == "agree", str(report)
    assert report.coverage.unmatched_reference == report.coverage.unmatched_candidate == ()
    assert report.coverage.not_compared == ("backward: the candidate (onnx) has no backward pass",)
    assert {site.phase for site in report.sites} == {"weights", "forward"}


def test_outputs_that_only_the_unwatched_graph_gets_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong fusion shows only where nobody looks: the free run's outputs are that graph's."""
    run_bare = Sessions.run_bare

    def wrong(self: Sessions, *args: Any) -> dict[str, np.ndarray]:
        return {name: value * np.float32(1.001) for name, value in run_bare(self, *args).items()}

    monkeypatch.setattr(Sessions, "run_bare", wrong)
    report = pair_of("mlp").check("onnx-optimized", seed=1)
    assert report.verdict == "suspect", str(report)
    assert any("departs in the free run" in note for note in report.notes)
    assert any("differ by 1.0e-03 (relative) from the unwatched" in note for note in report.notes)


# -- planted defects -------------------------------------------------------------------------------


def _cases() -> Iterator[Any]:
    for i, defect in enumerate(GRAPH_DEFECTS):
        level = LEVELS[i % 2]
        case = pytest.param if defect.name in QUICK else slow
        yield case(defect, level, id=f"{defect.name}-{level}")


@pytest.mark.parametrize(("defect", "level"), _cases())
def test_a_defect_in_a_file_is_located(defect: Defect, level: str, tmp_path: Path) -> None:
    pair = pair_of(defect.family)
    proto = onnx.load_from_string(exported(defect.family))
    right = {t.name: t.SerializeToString() for t in proto.graph.initializer}
    edit_of(defect)(proto)
    onnx.save(proto, tmp_path / "net.onnx")
    altered = [t.name for t in proto.graph.initializer if right.get(t.name, b"") not in
               (b"", t.SerializeToString())]  # fmt: skip
    candidate = crosscheck.adapt(tmp_path / "net.onnx", optimization=level)
    report = crosscheck.check(
        pair.reference(), candidate, pair.inputs(0), weights="keep", gradients=False
    )
    assert report.verdict == "diverge"
    layer = defect.site.removesuffix(".weight")
    expected = [("weights", name) for name in altered] + [("forward", layer)]
    assert list(dict.fromkeys((d.phase, d.candidate) for d in report.divergences)) == expected


@pytest.mark.parametrize("number", [0, slow(6), slow(12)])
def test_a_defect_in_an_export_on_the_fly_is_located(number: int) -> None:
    defect = GRAPH_DEFECTS[number]
    report = pair_of(defect.family).check(
        "onnx-optimized", seed=number, alter=defect.inject, gradients=False
    )
    found = list(dict.fromkeys((d.phase, d.candidate) for d in report.divergences))
    assert found == [("forward", defect.site)], str(report)


def test_a_weight_that_the_graph_alone_holds_is_compared() -> None:
    """The module under the export still has the right one."""
    defect = next(d for d in GRAPH_DEFECTS if d.name == "mlp-onnx-weight-float16")
    report = pair_of("mlp").check(
        "onnx-optimized", alter=defect.inject, gradients=False, weights="keep"
    )
    first = report.first_divergence
    assert first is not None
    assert (first.phase, first.candidate) == ("weights", "fc2.weight"), str(report)
    assert [(c.name, c.verified) for c in first.causes][0] == ("truncated", True)


def test_the_corpus() -> None:
    names = {d.name for d in GRAPH_DEFECTS}
    assert len(names) == len(GRAPH_DEFECTS) >= 15
    assert names >= QUICK
    for defect in GRAPH_DEFECTS:
        assert defect.name.startswith(f"{defect.family}-onnx-")
        assert defect.phase == ("weights" if defect.site.endswith(".weight") else "forward")
