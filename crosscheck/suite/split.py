"""A job in parts: each compares one stretch of the run in a process of its own (`--split`).

Where all parts clear their stretches, one more task puts their reports together. As soon as one
does not, whatever the reason, the job is done as a whole, before anything else begins: then its
result is that of the whole check. Its other parts are not begun any more.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from crosscheck.suite.engine import Engine, Queue, Watcher
from crosscheck.suite.jobs import NOT_SPLIT, Outcome, Task

__all__ = ["run_in_parts"]


def run_in_parts(
    engine: Engine, tasks: Sequence[Task], count: int, watcher: Watcher
) -> Generator[Outcome, None, None]:
    """How each task ended, exactly once, as `Engine.run` yields it.

    Args:
        tasks: checks, each with a group of its own or shared.
        count: of the parts of each.
    """
    jobs = {task.job: _Parts(task, count) for task in tasks}
    queue = Queue(piece for parts in jobs.values() for piece in parts.pieces())
    with closing(engine.run(queue, watcher)) as ended:
        for outcome in ended:
            parts = jobs[replace(outcome.task.job, part=None)]
            if outcome.task.job.part is not None:
                watcher.ended(outcome.task.job)
                parts.add(outcome, queue, watcher)
            elif outcome.task.action == "join" and not _has_verdict(outcome):
                parts.check_whole("the parts could not be put together", queue, watcher)
            else:
                yield parts.result(outcome)


@dataclass
class _Parts:
    """One job: its parts as far as they have ended, and what follows from them."""

    task: Task
    count: int
    ended: list[Outcome] = field(default_factory=list)
    decided: bool = False
    cannot: str = ""

    def pieces(self) -> list[Task]:
        """The task of each part."""
        return [
            replace(
                self.task,
                job=replace(self.task.job, part=(number, self.count)),
                options={**self.task.options, "part": [number, self.count]},
                html=None,
            )
            for number in range(1, self.count + 1)
        ]

    def add(self, outcome: Outcome, queue: Queue, watcher: Watcher) -> None:
        """A part has ended: put into the queue what is known to follow."""
        began = time.time() - outcome.seconds if outcome.began is None else outcome.began
        self.ended.append(replace(outcome, began=began))
        if self.decided:
            return
        if not _is_cleared(outcome):
            self.cannot = _cannot(outcome)
            self.check_whole(_reason(outcome), queue, watcher)
        elif len(self.ended) == self.count:
            self.decided = True
            queue.put_first(self._joining())

    def check_whole(self, reason: str, queue: Queue, watcher: Watcher) -> None:
        """The job as a whole comes next, and what is left of its parts does not."""
        self.decided = True
        watcher.note(f"{self.task.job.id}: {reason}; checked as a whole")
        queue.put_first(self.task)
        queue.drop(self._is_mine)

    def _is_mine(self, task: Task) -> bool:
        return task.job.part is not None and replace(task.job, part=None) == self.task.job

    def _joining(self) -> Task:
        in_order = sorted(self.ended, key=lambda outcome: outcome.task.job.part or (0, 0))
        reports = tuple(o.answer["part"] for o in in_order if o.answer)
        return replace(self.task, action="join", group="", parts=reports)

    def result(self, outcome: Outcome) -> Outcome:
        """What all processes of the job used together, and read; and whether it was split."""
        whole = replace(
            outcome,
            seconds=outcome.seconds + sum(part.seconds for part in self.ended),
            peak_memory=max(outcome.peak_memory, *(part.peak_memory for part in self.ended)),
        )
        if not _has_verdict(outcome) or outcome.answer is None:
            return whole
        if self.cannot:
            details = [*outcome.answer["details"], f"{NOT_SPLIT}{self.cannot}"]
            return replace(whole, answer={**outcome.answer, "details": details})
        if outcome.task.action != "join":
            return whole
        files = [part.answer["files"] for part in self.ended if part.answer is not None]
        read = None if None in files else sorted({file for some in files for file in some})
        began = min(part.began for part in self.ended if part.began is not None)
        return replace(whole, answer={**outcome.answer, "files": read}, began=began)


def _has_verdict(outcome: Outcome) -> bool:
    return outcome.answer is not None and outcome.answer["kind"] == "verdict"


def _is_cleared(outcome: Outcome) -> bool:
    answer = outcome.answer or {}
    return answer.get("verdict") == "agree" and "part" in answer


def _cannot(outcome: Outcome) -> str:
    """Why such a check has no parts; empty where it has."""
    answer = outcome.answer or {}
    if answer.get("type") != "CannotSplit":
        return ""
    return str(answer["message"]).split(": ", 2)[-1].partition("; ")[0]


def _reason(outcome: Outcome) -> str:
    """Why a part clears nothing."""
    answer = outcome.answer or {"message": "it ended without a result"}
    number, count = outcome.task.job.part or (0, 0)
    return f"part {number} of {count} did not clear it ({answer['message']})"
