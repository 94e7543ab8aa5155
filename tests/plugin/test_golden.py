"""Golden traces of the pytest plugin: recorded, compared with, and refused."""

from __future__ import annotations

import pytest

import crosscheck
import crosscheck.sketches.file

from .kit import LOAD, run, written

pytest_plugins = ["pytester"]

GOLDEN = """
@pytest.mark.crosscheck(devices=["cpu", "cuda"])
def test_net(crosscheck_golden):
    import os
    crosscheck_golden(Net(float(os.environ.get("FACTOR", "1"))), X)
"""


def test_golden(folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    written(folder, GOLDEN)
    trace = folder.path / "__crosscheck__" / "test_net.safetensors"
    missing = run(folder)
    missing.assert_outcomes(failed=2)
    missing.stdout.fnmatch_lines(
        [
            f"no golden trace: `{trace}`",
            "  Fix: pytest 'test_port.py::test_net[[]cpu[]]' --crosscheck-update",
        ]
    )
    made = run(folder, "--crosscheck-update")
    made.assert_outcomes(passed=1, skipped=1)
    assert [p.name for p in trace.parent.iterdir()] == [trace.name]
    before = trace.read_bytes()
    run(folder).assert_outcomes(passed=1, skipped=1)
    monkeypatch.setenv("FACTOR", "1.01")
    moved = run(folder)
    moved.assert_outcomes(failed=1, skipped=1)
    moved.stdout.fnmatch_lines(["FAILED *test_net?cpu? - Diverged: diverge: first at *"])
    assert trace.read_bytes() == before


def test_golden_of_other_inputs_or_no_trace(folder: pytest.Pytester) -> None:
    body = """
class TestNet:
    @pytest.mark.parametrize("n", [2, 3])
    def test_net(self, crosscheck_golden, n):
        crosscheck_golden(Net(), {"x": f"float32[{n},6]"})

def test_named(crosscheck_golden):
    crosscheck_golden(Net(), X, name="net", parameters=True, gradients=False)
"""
    written(folder, body)
    run(folder, "--crosscheck-update").assert_outcomes(passed=3)
    folder_of_traces = folder.path / "__crosscheck__"
    names = sorted(p.stem for p in folder_of_traces.iterdir())
    assert names == ["TestNet-test_net-2", "TestNet-test_net-3", "net"]
    assert crosscheck.load_trace(folder_of_traces / "net.safetensors").held == {"W", "b"}
    written(folder, body.replace("X, name", '{"x": "float32[9,6]"}, name'))
    (folder_of_traces / "TestNet-test_net-3.safetensors").write_bytes(b"nothing")
    result = run(folder)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "TraceFormatError: *",
            "CannotCompare: the inputs given are not those of the trace*",
            "  Or, if the trace is out of date: pytest *::test_named --crosscheck-update",
        ]
    )


SKETCHED = """
@pytest.mark.crosscheck(seeds=[0, 1], devices=["cpu", "cuda"], sketch=20_000)
def test_net(crosscheck_golden):
    import os
    crosscheck_golden(Net(float(os.environ.get("FACTOR", "1"))), {"x": "float32[50,6]"})
"""


def test_golden_sketches(folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    written(folder, SKETCHED)
    run(folder, "--crosscheck-update").assert_outcomes(passed=2, skipped=2)
    made = sorted((folder.path / "__crosscheck__").iterdir())
    assert [p.name for p in made] == ["test_net-seed0.safetensors", "test_net-seed1.safetensors"]
    for path in made:
        assert crosscheck.sketches.file.sketched(path) and path.stat().st_size <= 20_000
    run(folder).assert_outcomes(passed=2, skipped=2)
    monkeypatch.setenv("FACTOR", "1.01")
    moved = run(folder)
    moved.assert_outcomes(failed=2, skipped=2)
    moved.stdout.fnmatch_lines_random(
        [
            "FAILED *test_net?seed0-cpu? - Diverged: diverge: first at `output` (*",
            "FAILED *test_net?seed1-cpu? - Diverged: diverge: first at `output` (*",
        ]
    )


def test_golden_under_xdist(folder: pytest.Pytester) -> None:
    """Two workers that write one file, and that read it."""
    pytest.importorskip("xdist")
    test = "def test_{}(crosscheck_golden):\n    crosscheck_golden(Net({}), X, name='net'{})\n\n"
    right = "".join(test.format(i, "1.0", ", sketch=20_000") for i in range(4))
    written(folder, right)
    workers = (*LOAD, "-p", "xdist", "-n2")
    folder.runpytest_subprocess(*workers, "--crosscheck-update").assert_outcomes(passed=4)
    assert [p.name for p in (folder.path / "__crosscheck__").iterdir()] == ["net.safetensors"]
    written(folder, right + test.format("moved", "1.01", ""))
    result = folder.runpytest_subprocess(*workers)
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["FAILED *::test_moved - Diverged: diverge: first at `output` *"])
