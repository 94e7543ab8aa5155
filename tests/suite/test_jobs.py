"""Which jobs there are, in which order, and with what they run. With a made-up engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crosscheck.errors import InvalidArgument
from crosscheck.suite import local
from crosscheck.suite.jobs import Job, Limits, SuiteResult, Task
from crosscheck.suite.local import LocalEngine, Surroundings, worker_environment
from crosscheck.suite.run import Wanted, run_suite
from tests.suite.kit import MadeUp, documents, write_logged_pair


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b", "a"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "pair.py").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(**options: Any) -> list[str]:
    engine = MadeUp()
    run_suite(Wanted(["models"], **options), engine=engine)
    return [name.removeprefix("models/") for name in engine.ran]


def test_in_the_order_of_paths_candidates_and_seeds(folder: Path) -> None:
    assert ran() == ["a::x::seed0", "a::y::seed0", "b::x::seed0", "b::y::seed0"]
    several = ran(candidates=("y",), seeds=(3, 1))
    assert several == ["a::y::seed3", "a::y::seed1", "b::y::seed3", "b::y::seed1"]
    assert ran(keyword="models/b and not y") == ["b::x::seed0"]
    assert len(ran(keyword="p")) == 4  # the name of every pair


def test_what_a_check_is_given(folder: Path) -> None:
    engine = MadeUp()
    wanted = Wanted(["models/a"], device="cuda", options={"gradients": False})
    result = run_suite(wanted, engine=engine)
    assert engine.options == [{"device": "cuda", "gradients": False}] * 2
    assert result.results[0].job == Job("models/a", "p", "x", 0, "cuda")


def test_nothing_selected(folder: Path) -> None:
    with pytest.raises(InvalidArgument, match="no candidate matches -k 'gpt'"):
        ran(keyword="gpt")
    with pytest.raises(InvalidArgument, match="no pair has a candidate `gpt`; there are `x`, `y`"):
        ran(candidates=("x", "gpt"))


def run_with_a_broken_pair(keyword: str) -> SuiteResult:
    Path("models/broken").mkdir(exist_ok=True)
    Path("models/broken/pair.py").write_text("")
    return run_suite(Wanted(["models"], keyword=keyword), engine=MadeUp())


def test_a_pair_that_cannot_be_loaded_may_hold_what_is_meant(folder: Path) -> None:
    meant = run_with_a_broken_pair("x")
    assert [(r.job.id, r.status) for r in meant.results] == [
        ("models/a::x::seed0", "agree"),
        ("models/b::x::seed0", "agree"),
        ("models/broken", "crashed"),
    ]
    assert meant.exit_status == 2
    assert run_with_a_broken_pair("x and not broken").exit_status == 0


def test_fail_fast(folder: Path) -> None:
    engine = MadeUp({"x": "diverge"})
    result = run_suite(Wanted(["models"]), engine=engine, fail_fast=True)
    assert (engine.ran, result.exit_status) == (["models/a::x::seed0"], 1)
    assert [job.path for job in result.not_run] == ["models/a", "models/b", "models/b"]


def test_the_environment_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    task = Task("check", Job("models/a", "a", "x"), Limits())
    found = worker_environment(task, Surroundings(threads=3), Path("/folder"))
    assert (found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]) == ("3", "7")
    assert (found["KERAS_BACKEND"], found["TMPDIR"]) == ("torch", "/folder")
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" not in found
    task = Task("check", Job("models/a", "a", "x", 0, "cuda"), Limits())
    found = worker_environment(task, Surroundings(threads=3), Path("/folder"))
    assert found["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


def test_a_process_that_cannot_be_started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise BlockingIOError(11, "no more processes")

    monkeypatch.setattr(local, "_Child", refuse)
    result = run_suite(Wanted(["models"]), engine=LocalEngine(1))
    assert (result.exit_status, [r.status for r in result.results]) == (2, ["crashed"] * 2)
    assert "could not be started" in result.results[0].message


def test_the_command_that_does_a_job_alone(folder: Path) -> None:
    options = {"gradients": False, "effort": "quick", "max_memory": 2**30}
    result = run_suite(Wanted(["models/a"], options=options), engine=MadeUp())
    alone = "crosscheck run models/a --candidate x --seed 0"
    alone += " --forward-only --effort quick --max-memory 1073741824"
    assert result.results[0].job.command == alone
    assert result.environment["options"] == options


def test_jobs_whose_reference_does_the_same_know_it(folder: Path) -> None:
    engine = MadeUp()
    run_suite(Wanted(["models"], seeds=(0, 1)), engine=engine)
    groups = dict(zip(engine.ran, engine.groups, strict=True))
    assert len(set(groups.values())) == 4 and "" not in groups.values()
    assert groups["models/a::x::seed0"] == groups["models/a::y::seed0"]
    engine = MadeUp()
    run_suite(Wanted(["models"], candidates=["x"]), engine=engine)
    assert engine.groups == ["", ""]


def test_the_reference_is_made_once_for_all_candidates(tmp_path: Path) -> None:
    """Forward it runs in every job, to tell whether it is the same."""
    counts, found = {}, {}
    for names in ("a", "abc"):
        log = tmp_path / names
        log.mkdir()
        write_logged_pair(log / "models" / "p", log, names)
        status, document = documents(log, "--jobs", "2", "--effort", "quick")
        assert status == 0, document
        counts[names] = (log / "runs").read_text().count("b")
        found[names] = [(j["status"], j["largest_ratio"], j["coverage"]) for j in document["jobs"]]
    assert counts["abc"] == counts["a"] == 1
    assert found["abc"] == found["a"] * 3
