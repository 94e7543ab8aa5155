"""Jobs in parts: the same results, whatever becomes of a part."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crosscheck.suite.engine import Silent, Watcher
from crosscheck.suite.jobs import Job, Limits, Outcome, Task
from crosscheck.suite.split import run_in_parts
from tests.suite.kit import VERDICT, documents, write_pair


@dataclass
class MadeUp:
    """``says``: what becomes of a part, by candidate and number; else it agrees."""

    says: dict[tuple[str, int], str] = field(default_factory=dict)
    ran: list[Task] = field(default_factory=list)

    def run(self, tasks: Sequence[Task], watcher: Watcher) -> Generator[Outcome, None, None]:
        for task in reversed(tasks):
            self.ran.append(task)
            number = task.job.part[0] if task.job.part else 0
            verdict = self.says.get((task.job.candidate or "", number), "agree")
            answer: dict[str, Any] | None = {**VERDICT, "verdict": verdict, "message": "why"}
            answer |= {"part": f"report {number}", "files": [f"{number}.py"]}
            if verdict == "killed":
                answer = None
            yield Outcome(task, answer, "", 0, False, 2.0, 10 + number, "stage", "")

    def describe(self) -> dict[str, object]:
        return {}


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def test_parts_are_joined_or_checked_as_a_whole() -> None:
    engine, notes = MadeUp({("b", 2): "diverge", ("c", 1): "killed"}), Notes()
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
    assert notes.lines == [
        "p::b::seed0: part 2 of 3 did not clear it (why); checked as a whole",
        "p::c::seed0: part 1 of 3 did not clear it (it ended without a result); checked as a whole",
    ]


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
