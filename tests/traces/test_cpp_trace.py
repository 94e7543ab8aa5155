"""A program in C++ that writes a trace, against the PyTorch reference's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

import crosscheck  # noqa: E402
from models.mlp import cpp  # noqa: E402
from models.mlp.pair import inputs, reference  # noqa: E402

needs_compiler = pytest.mark.skipif(cpp.compiler() is None, reason="there is no C++ compiler")
OUTPUT = {"output": "float32[5,10]"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """inputs.safetensors, reference.safetensors and the program."""
    folder, model = tmp_path_factory.mktemp("cpp"), reference()
    crosscheck.save_inputs(
        folder / "inputs.safetensors", inputs(0), cotangents=OUTPUT, parameters=model
    )
    crosscheck.record(model, inputs(0)).save(folder / "reference.safetensors")
    cpp.build(folder)
    return folder


def trace(folder: Path, *defect: str, inputs: str = "inputs.safetensors") -> Path:
    return cpp.run(folder / "mlp_trace", folder / inputs, folder / "cpp.safetensors", *defect)


@needs_compiler
def test_the_program_agrees(folder: Path) -> None:
    report = crosscheck.check(folder / "reference.safetensors", trace(folder))
    assert report.verdict == "agree", str(report)
    assert report.candidate.framework == "c++"
    assert report.coverage.aligned == 8 and report.coverage.parameters_matched == 8
    assert report.coverage.not_compared == ()
    phases = [site.phase for site in report.sites]
    assert {p: phases.count(p) for p in phases} == {
        "forward": 8,
        "backward": 8,
        "parameter_gradient": 8,
    }


@needs_compiler
@pytest.mark.parametrize(
    ("defect", "phase", "layer"),
    [
        (("--norm-eps", "1e-6"), "forward", "norm"),
        (("--slope", "0.2"), "forward", "act1"),
        (("--slope-back", "0.1"), "backward", "act1"),
    ],
)
def test_a_planted_mistake_is_found_where_it_is(
    folder: Path, defect: tuple[str, str], phase: str, layer: str
) -> None:
    report = crosscheck.check(folder / "reference.safetensors", trace(folder, *defect))
    assert [(d.phase, d.candidate) for d in report.divergences] == [(phase, layer)], str(report)


@needs_compiler
def test_the_program_against_the_reference_itself(folder: Path) -> None:
    assert crosscheck.check(reference(), trace(folder), inputs(0)).verdict == "agree"
    report = crosscheck.check(reference(), trace(folder, "--norm-eps", "1e-4"))
    assert [(d.phase, d.candidate) for d in report.divergences] == [("forward", "norm")]


@needs_compiler
@pytest.mark.parametrize(
    ("defect", "blamed"),
    [((), None), (("--norm-eps", "1e-6"), "norm"), (("--slope-back", "0.1"), "act1")],
)
def test_the_program_as_a_reference_forces_pytorch(
    folder: Path, defect: tuple[str, ...], blamed: str | None
) -> None:
    """Without structure, without measured rounding: still each layer by itself."""
    report = crosscheck.check(trace(folder, *defect), reference())
    assert {d.candidate for d in report.divergences if d.phase in ("forward", "backward")} == (
        {blamed} if blamed else set()
    ), str(report)
    assert report.coverage.aligned == 8 and report.coverage.not_compared == ()


@needs_compiler
def test_the_traces_own_file_will_do_as_inputs(folder: Path) -> None:
    crosscheck.record(reference(), inputs(1), seed=1, parameters=True).save(folder / "r1")
    report = crosscheck.check(crosscheck.load_trace(folder / "r1"), _loaded(folder, "r1"))
    assert report.verdict == "agree" and report.seed == 1


def _loaded(folder: Path, name: str) -> crosscheck.RecordedTrace:
    return crosscheck.load_trace(trace(folder, inputs=name))


@needs_compiler
def test_the_program_refuses_what_it_cannot_read(folder: Path) -> None:
    (folder / "short").write_bytes((folder / "inputs.safetensors").read_bytes()[:5000])
    with pytest.raises(subprocess.CalledProcessError):
        trace(folder, inputs="short")
