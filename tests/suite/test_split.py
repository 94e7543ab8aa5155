"""Jobs in parts: the same results, whatever becomes of a part."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from crosscheck.suite.engine import Queue, Silent, Watcher
from crosscheck.suite.jobs import Job, Limits, Outcome, Task
from crosscheck.suite.run import Wanted, run_suite
from crosscheck.suite.split import run_in_parts
from crosscheck.suite.summary import print_summary
from tests.suite.kit import VERDICT, documents, write_pair


@dataclass
class MadeUp:
    """``says``: what becomes of a part, by candidate and number; else it agrees.
    Of ``at_once`` that run at the same time, the last one ends first."""

    says: dict[tuple[str, int], str] = field(default_factory=dict)
    at_once: int = 3
    ran: list[Task] = field(default_factory=list)

    def run(self, tasks: Iterable[Task], watcher: Watcher) -> Generator[Outcome, None, None]:
        waiting = Queue.of(tasks)
        while waiting:
            running = [waiting.take() for _ in range(min(self.at_once, len(waiting)))]
            yield from map(self._ended, reversed(running))

    def _ended(self, task: Task) -> Outcome:
        answer: dict[str, Any] | None = {"kind": "pair", "name": "p", "candidates": ["x", "y"]}
        number = task.job.part[0] if task.job.part else 0
        if task.action != "list":
            self.ran.append(task)
            place = task.job.candidate or "", -1 if task.action == "join" else number
            verdict = self.says.get(place, "agree")
            answer = {**VERDICT, "verdict": verdict, "message": "why"}
            answer |= {"part": f"report {number}", "files": [f"{number}.py"]}
            if verdict == "killed":
                answer = None
            elif verdict == "cannot":
                message = "CannotSplit: part=[1, 3]: a check of clay cannot be split; do not"
                answer = {"kind": "error", "type": "CannotSplit", "message": message}
        return Outcome(task, answer, "", 0, False, 2.0, 10 + number, "stage", "")

    def describe(self) -> dict[str, object]:
        return {}


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def test_parts_are_joined_or_checked_as_a_whole() -> None:
    engine, notes = MadeUp({("b", 2): "diverge", ("c", 1): "killed"}, at_once=9), Notes()
    tasks = [Task("check", Job("p", "p", n), Limits(), {}, "page.html", "g") for n in "abc"]
    outcomes = {o.task.job.candidate: o for o in run_in_parts(engine, tasks, 3, notes)}
    assert len(outcomes) == 3 and len(engine.ran) == 9 + 3
    parts = [task for task in engine.ran if task.job.part]
    assert {tuple(task.options["part"]) for task in parts} == {(1, 3), (2, 3), (3, 3)}
    assert all(task.html is None and task.group == "g" for task in parts)
    join = outcomes["a"].task
    assert (join.action, join.html) == ("join", "page.html")
    assert join.parts == ("report 1", "report 2", "report 3")
    assert outcomes["a"].answer is not None
    assert outcomes["a"].answer["files"] == ["1.py", "2.py", "3.py"]
    assert (outcomes["a"].seconds, outcomes["a"].peak_memory) == (8.0, 13)
    assert [outcomes[n].task.action for n in "bc"] == ["check", "check"]
    assert [outcomes[n].task.job for n in "abc"] == [task.job for task in tasks]
    assert sorted(notes.lines) == [
        "p::b::seed0: part 2 of 3 did not clear it (why); checked as a whole",
        "p::c::seed0: part 1 of 3 did not clear it (it ended without a result); checked as a whole",
    ]


def test_what_follows_from_a_part_comes_first() -> None:
    """And what is not needed any more does not begin."""
    engine, notes = MadeUp({("b", 2): "suspect", ("a", -1): "killed"}, at_once=1), Notes()
    tasks = [Task("check", Job("p", "p", n), Limits(), {}, None, "g") for n in "abc"]
    outcomes = [o.task.job.candidate for o in run_in_parts(engine, tasks, 3, notes)]
    assert outcomes == ["a", "b", "c"]
    began = [(t.job.candidate, t.action, t.job.part and t.job.part[0]) for t in engine.ran]
    assert began == [
        *(("a", "check", number) for number in (1, 2, 3)),
        ("a", "join", None),
        ("a", "check", None),
        ("b", "check", 1),
        ("b", "check", 2),
        ("b", "check", None),
        *(("c", "check", number) for number in (1, 2, 3)),
        ("c", "join", None),
    ]
    assert notes.lines[0].endswith("the parts could not be put together; checked as a whole")


def test_the_first_failure_ends_a_suite_in_parts(tmp_path: Path) -> None:
    (tmp_path / "pair.py").write_text("pair = 0")
    engine = MadeUp({("x", 1): "diverge", ("x", 0): "diverge"}, at_once=1)
    result = run_suite(Wanted([tmp_path], split=3), engine=engine, fail_fast=True)
    assert [(t.job.candidate, t.job.part) for t in engine.ran] == [("x", (1, 3)), ("x", None)]
    assert [r.status for r in result.results] == ["diverge"]
    assert [job.candidate for job in result.not_run] == ["y"]


def test_what_cannot_be_split_is_told_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "pair.py").write_text("pair = 0")
    engine = MadeUp({("x", 1): "cannot"}, at_once=1)
    result = run_suite(Wanted([tmp_path], split=3), engine=engine)
    assert [r.status for r in result.results] == ["agree", "agree"]
    assert result.results[0].details == ("not split: a check of clay cannot be split",)
    text = io.StringIO()
    print_summary(result, Console(file=text, width=150))
    assert "not split: a check of clay cannot be split" in text.getvalue()
    assert result.environment["split"] == 3


def test_a_queue() -> None:
    tasks = [
        Task("check", Job("p", "p", n), Limits(), {}, None, g)
        for n, g in zip("abc", ["g", "g", ""], strict=True)
    ]
    queue = Queue(tasks)
    assert len(queue) == 3 and Queue.of(queue) is queue
    first = queue.take()
    queue.put_first(tasks[2])
    queue.drop(lambda task: task.job.candidate == "b")
    assert queue.waiting() == (tasks[2], tasks[2]) and queue.ended(first) == "g"
    assert [queue.ended(task) for task in queue] == ["", ""] and not queue


CODE = """
class Dies(Net):
    def forward(self, x):
        if not os.path.exists("died"):
            open("died", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)
"""


@pytest.mark.slow
def test_the_same_results(tmp_path: Path) -> None:
    candidates = "{'right': right, 'wrong': wrong, 'dies': Dies}"
    write_pair(tmp_path / "models" / "p", CODE, candidates)
    split = documents(tmp_path, "--split", "2", "--html", "html", "--resume", "log")
    again = documents(tmp_path, "--resume", "log")
    whole = documents(tmp_path)
    assert split[0] == again[0] == whole[0] == 1
    for one, kept, other in zip(*(d[1]["jobs"] for d in (split, again, whole)), strict=True):
        assert kept["resumed"]
        for key in ("id", "status", "message", "details", "first_divergence", "largest_ratio"):
            assert one[key] == kept[key] == other[key], key
        assert one["coverage"] == other["coverage"] and one["command"] == other["command"]
        assert Path(one["html"]).is_file()
    assert (tmp_path / "died").exists()


def test_quick_checks_are_not_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from crosscheck.cli import main

    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["suite", "--split", "2", "--effort", "quick"])
    assert result.exit_code == 2 and "drop --effort quick" in result.stderr
