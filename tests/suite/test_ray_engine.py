"""What the engine for many machines makes of what happens to them. With a made-up cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from crosscheck.errors import InvalidArgument, MissingFramework
from crosscheck.suite import ray_cluster, ray_engine, ray_tasks
from crosscheck.suite.classify import classify
from crosscheck.suite.engine import Silent
from crosscheck.suite.jobs import Job, Limits, Outcome, Task
from crosscheck.suite.ray_cluster import Lost, Needs, RayCluster
from crosscheck.suite.ray_engine import RayEngine
from crosscheck.suite.ray_tasks import Answer, News, Sent
from crosscheck.suite.run import Wanted, run_suite
from crosscheck.suite.stamps import software
from tests.suite.kit import VERDICT

JOBS = [Job("models/mlp", "mlp", name) for name in "abc"]
TASKS = [Task("check", job, Limits(60.0, 2**30)) for job in JOBS]
MACHINE = {"CPU": 4.0, "memory": 8.0 * 2**30}


def answer(task: Task, **other: str) -> Answer:
    found = {**VERDICT, "verdict": "agree", "files": []}
    outcome = Outcome(task, found, "", 0, False, 1.0, 1, "stage", "", "far")
    return Answer(outcome, {**software(), **other})


@dataclass
class MadeUp(RayCluster):
    """Two jobs at a time; ``script`` says what becomes of an attempt: an answer, or `Lost`."""

    script: Callable[[Task, int], Any] = lambda task, attempt: answer(task)
    ships: bool = False
    has: list[dict[str, float]] = field(default_factory=lambda: [MACHINE])
    started: list[tuple[str, int]] = field(default_factory=list)
    cancelled: list[Any] = field(default_factory=list)
    forgotten: list[tuple[str, int]] = field(default_factory=list)
    address: str = "far:1"
    sent_at: float = 7.0
    said: dict[Job, News] = field(default_factory=dict)
    tasks: dict[Job, Task] = field(default_factory=dict)

    def machines(self) -> Any:
        return self.has

    def start(self, task: Task, needs: Needs, attempt: int) -> Any:
        self.started.append((task.job.candidate or "", attempt))
        self.said[task.job] = News(attempt, "far", "align", 5)
        self.tasks[task.job] = task
        return (task.job, attempt)

    def _found(self, handle: tuple[Job, int]) -> Any:
        return self.script(self.tasks[handle[0]], handle[1])

    def ended(self, handles: Sequence[Any], seconds: float) -> list[Any]:
        return [h for h in handles[:2] if self._found(h) is not None]

    def answer(self, handle: Any) -> Answer:
        found = self._found(handle)
        if isinstance(found, Lost):
            raise found
        assert isinstance(found, Answer)
        return found

    def news(self) -> dict[Job, News]:
        return self.said

    def forget(self, group: str) -> None:
        self.forgotten.append((group, len(self.started)))

    def cancel(self, handles: Any) -> None:
        self.cancelled += list(handles)

    def close(self) -> None: ...


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.stages: list[tuple[str | None, str, int]] = []
        self.begun: list[Job] = []

    def started(self, job: Job) -> None:
        self.begun.append(job)

    def stage(self, job: Job, stage: str, memory: int) -> None:
        self.stages.append((job.candidate, stage, memory))

    def note(self, line: str) -> None:
        self.lines.append(line)


def run(cluster: MadeUp, **options: Any) -> tuple[list[Outcome], Notes]:
    notes = Notes()
    return list(RayEngine(cluster=cluster, **options).run(TASKS, notes)), notes


def test_each_job_once_with_what_it_does_meanwhile() -> None:
    cluster = MadeUp()
    outcomes, notes = run(cluster)
    assert sorted(o.task.job.candidate or "" for o in outcomes) == ["a", "b", "c"]
    assert [o.host for o in outcomes] == ["far"] * 3 and cluster.cancelled == []
    assert sorted(notes.begun, key=lambda job: job.id) == JOBS
    assert ("a", "far: align", 5) in notes.stages and notes.lines == []


def test_at_most_so_many_at_a_time() -> None:
    cluster = MadeUp()
    outcomes = RayEngine(cluster=cluster, jobs=1).run(TASKS, Silent())
    next(outcomes)
    assert cluster.started == [("a", 0)]
    assert len([*outcomes]) == 2


def test_ray_knows_of_few_more_than_there_is_room_for() -> None:
    """So that what is put first in the queue begins soon."""
    cluster = MadeUp(has=[{**MACHINE, "CPU": 2.0}, {**MACHINE, "memory": 3.5 * 2**30}])
    tasks = [Task("check", replace(JOBS[0], seed=n), Limits(60.0, 2**30)) for n in range(20)]
    outcomes = RayEngine(cluster=cluster).run(tasks, Silent())
    next(outcomes)
    assert len(cluster.started) == 2 * (2 + 3)
    assert len([*outcomes]) == 19


def lost_until(attempts: int, *, memory: bool = False) -> Callable[[Task, int], Any]:
    def script(task: Task, attempt: int) -> Any:
        is_lost = task.job.candidate == "b" and attempt < attempts
        return Lost("the node died", memory=memory) if is_lost else answer(task)

    return script


def test_what_is_lost_with_a_machine_is_started_again() -> None:
    cluster = MadeUp(lost_until(2))
    outcomes, notes = run(cluster)
    assert sorted(classify(o).status for o in outcomes) == ["agree"] * 3
    assert [attempt for name, attempt in cluster.started if name == "b"] == [0, 1, 2]
    assert len(cluster.started) == 5
    assert notes.lines[0] == (
        "models/mlp::b::seed0: lost on far (align), started again (1 of 3): the node died"
    )
    assert notes.begun.count(JOBS[1]) == 1


def test_what_a_group_shares_goes_with_its_last_job() -> None:
    cluster = MadeUp(lost_until(1))
    tasks = [replace(task, group="g" if task is not TASKS[2] else "") for task in TASKS]
    assert len(list(RayEngine(cluster=cluster, jobs=1).run(tasks, Silent()))) == 3
    assert cluster.forgotten == [("g", 3)]  # a, b, and b again


def test_what_is_lost_every_time_is_given_up() -> None:
    cluster = MadeUp(lost_until(9))
    results = {r.job.candidate: r for r in map(classify, run(cluster, retries=1)[0])}
    assert [results[name].status for name in "abc"] == ["agree", "crashed", "agree"]
    assert results["b"].message.startswith("its Ray worker was lost 2 times, last on far (align)")
    assert len(cluster.started) == 4
    memory = {r.job.candidate: r for r in map(classify, run(MadeUp(lost_until(9, memory=True)))[0])}
    assert memory["b"].status == "out-of-memory" and memory["b"].output == "the node died"


def test_without_any_machine_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "PATIENCE", 0.0)
    cluster = MadeUp(lambda task, attempt: None)
    engine = RayEngine(cluster=cluster, jobs=2)
    outcomes = engine.run(TASKS, Silent())
    monkeypatch.setattr(MadeUp, "news", lambda self: self.has.clear() or {})
    assert [classify(o).message.partition(";")[0] for o in outcomes] == [ray_engine.NO_MACHINE] * 3
    assert len(cluster.cancelled) == 2


def test_closing_ends_what_runs() -> None:
    cluster = MadeUp(lambda task, attempt: answer(task) if task is TASKS[0] else None)
    outcomes = RayEngine(cluster=cluster).run(TASKS, Silent())
    assert next(outcomes).task is TASKS[0]
    outcomes.close()
    assert [job for job, _ in cluster.cancelled] == JOBS[1:]


def test_other_versions_are_told_and_not_kept() -> None:
    cluster = MadeUp(lambda task, attempt: answer(task, torch="1.0", numpy="2", new="3"))
    outcomes, notes = run(cluster)
    here = software()
    said = f"new 3 (here none), numpy 2 (here {here['numpy']}), torch 1.0 (here {here['torch']})"
    assert notes.lines == [f"far has {said}"]
    for outcome in outcomes:
        assert classify(outcome).files is None and classify(outcome).details[-1] == notes.lines[0]
    fewer = MadeUp(lambda task, attempt: Answer(answer(task).outcome, {**here, "numpy": ""}))
    assert run(fewer)[1].lines == [f"far has no numpy (here {here['numpy']})"]


def test_what_a_job_read_is_as_old_as_what_was_sent() -> None:
    assert [o.began for o in run(MadeUp(ships=True))[0]] == [7.0] * 3


def test_more_than_any_machine_has() -> None:
    with pytest.raises(InvalidArgument, match=r"takes \(16 CPU, 0 GPU, 1 GiB\); there are 4 CPU, "):
        run(MadeUp(), cpus=16)
    cuda = [Task("check", replace(JOBS[0], device="cuda"), Limits(1.0, None))]
    with pytest.raises(InvalidArgument, match=r"\(1 CPU, 0.5 GPU, 3 GiB\)"):
        list(RayEngine(cluster=MadeUp(), gpus=0.5).run(cuda, Silent()))
    assert (
        len(list(RayEngine(cluster=MadeUp(has=[{**MACHINE, "GPU": 1}])).run(cuda, Silent()))) == 1
    )


def test_files_that_are_not_sent() -> None:
    outside = [Task("list", Job("/elsewhere/pair.py", "pair", None), Limits(1.0))]
    with pytest.raises(InvalidArgument, match="outside the current folder"):
        list(RayEngine(cluster=MadeUp(ships=True)).run(outside, Silent()))
    assert len(list(RayEngine(cluster=MadeUp()).run(outside, Silent()))) == 1


def test_the_environment_of_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "pair.py").write_text("")
    engine = RayEngine(cluster=MadeUp(lambda task, attempt: answer(task)), retries=2)
    environment = run_suite(Wanted(["models"]), engine=engine).environment
    assert (environment["engine"], environment["machines"], environment["cpus"]) == ("ray", 1, 4.0)
    assert (environment["retries"], environment["cpus_per_job"]) == (2, 1.0)


# -- on the other machine --------------------------------------------------------------------------


class Told:
    """Stands for the handle of a `Board`."""

    def __init__(self) -> None:
        self.put, self.news = self, []

    def remote(self, job: Job, news: News) -> None:
        self.news.append(news)


@pytest.fixture
def copies(tmp_path: Path) -> tuple[Path, Path]:
    """The suite's folder, and a machine's copy of it."""
    for name in ("home", "copy"):
        (tmp_path / name / "models").mkdir(parents=True)
        code = "import no_such_module_here" if name == "copy" else ""
        (tmp_path / name / "models" / "pair.py").write_text(code)
    return tmp_path / "home", tmp_path / "copy"


def test_a_copy_speaks_of_the_original(
    copies: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, copy = copies
    monkeypatch.chdir(copy)
    monkeypatch.setenv("RAY_SOMETHING", "1")
    task = Task("list", Job("models", "models", None), Limits(60.0))
    board = Told()
    sent = Sent(str(home), "/ours", True, 1, None, {}, whole=False)
    ended = ray_tasks.run_task(task, sent, board, 2)
    assert ended.software == software() and ended.outcome.host
    found = ended.outcome.answer
    assert found is not None and "no_such_module_here" in found["message"]
    assert found["where"].startswith(f"{home}/models/pair.py:1 ")
    assert found["files"] == [f"{home}/models/pair.py"]
    output = ended.outcome.output
    assert str(copy) not in output and str(home) in output
    assert ray_tasks.PACKAGE not in output
    assert {news.attempt for news in board.news} == {2}


def test_the_environment_on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"KERAS_BACKEND": "jax", "HOME": "/home/me", "PATH": "/bin", "OMP_NUM_THREADS": "3"}
    given["JAX_COMPILATION_CACHE_DIR"] = "/home/me/jax"
    shared = ray_tasks.shared_variables(given)
    assert shared == {"KERAS_BACKEND": "jax", "OMP_NUM_THREADS": "3"}
    monkeypatch.setenv("RAY_JOB_ID", "1")
    monkeypatch.setenv("HOME", "/home/ray")
    sent = Sent("/", "/ours", True, 1, None, shared, whole=False)
    there = ray_tasks._variables(sent)
    assert (there["HOME"], there["KERAS_BACKEND"]) == ("/home/ray", "jax")
    assert "RAY_JOB_ID" not in there
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert ray_tasks._variables(replace(sent, variables=given, whole=True)) == {
        **given,
        "CUDA_VISIBLE_DEVICES": "3",
    }


def test_the_board_keeps_the_last_news_of_each_job() -> None:
    board = ray_tasks.Board()
    for stage in ("load", "align"):
        board.put(JOBS[0], News(0, "far", stage, 1))
    assert board.take() == {JOBS[0]: News(0, "far", "align", 1)}
    assert board.take() == {}


# -- the way to a cluster --------------------------------------------------------------------------


def test_no_cluster() -> None:
    with pytest.raises(InvalidArgument, match="no Ray cluster answers at 127.0.0.1:1: start one"):
        ray_cluster._knock("127.0.0.1:1")
    with pytest.raises(InvalidArgument, match="no Ray cluster answers at ray://127.0.0.1:1"):
        ray_cluster._knock("ray://127.0.0.1:1")
    with pytest.raises(InvalidArgument, match="--address head: write host:port"):
        ray_cluster._knock("head")
    ray_cluster._knock("auto")


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    for name in ray_cluster.QUIET:
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    with pytest.raises(MissingFramework, match=r"pip install 'crosscheck\[ray\]'"):
        RayCluster(None, ship=True)


def test_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    sent = ray_cluster._shipment()
    assert sent["working_dir"] == str(tmp_path) and "env/" in sent["excludes"]
    assert (Path(sent["py_modules"][0]) / "suite" / "ray_tasks.py").is_file()
