"""A job in parts: each compares one stretch of the run in a process of its own (`--split`).

Where all parts clear their stretches, one more task puts their reports together. Where one does
not, whatever the reason, the job is done as a whole: then its result is that of the whole check.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace

from crosscheck.suite.engine import Engine, Watcher
from crosscheck.suite.jobs import Job, Outcome, Task

__all__ = ["run_in_parts"]


def run_in_parts(
    engine: Engine, tasks: Sequence[Task], count: int, watcher: Watcher
) -> Generator[Outcome, None, None]:
    """How each task ended, exactly once, as `Engine.run` yields it.

    Args:
        tasks: checks, each with a group of its own or shared.
        count: of the parts of each.
    """
    pieces = [_piece(task, number, count) for task in tasks for number in range(1, count + 1)]
    found: dict[Job, list[Outcome]] = {task.job: [] for task in tasks}
    with closing(engine.run(pieces, watcher)) as ended:
        for outcome in ended:
            began = time.time() - outcome.seconds if outcome.began is None else outcome.began
            part = replace(outcome, began=began)
            found[replace(outcome.task.job, part=None)].append(part)
    again = [_joining(task, found[task.job]) for task in tasks]
    for task in again:
        if task.action == "check":
            watcher.note(f"{task.job.id}: {_reason(found[task.job])}; checked as a whole")
    with closing(engine.run(again, watcher)) as ended:
        for outcome in ended:
            yield _with_its_parts(outcome, found[outcome.task.job])


def _piece(task: Task, number: int, count: int) -> Task:
    job = replace(task.job, part=(number, count))
    return replace(task, job=job, options={**task.options, "part": [number, count]}, html=None)


def _joining(task: Task, parts: Sequence[Outcome]) -> Task:
    """The task that puts the parts together; the whole task where one of them clears nothing."""
    if not all(map(_is_cleared, parts)):
        return replace(task, group="")
    in_order = sorted(parts, key=lambda outcome: outcome.task.job.part or (0, 0))
    return replace(task, action="join", parts=tuple(o.answer["part"] for o in in_order if o.answer))


def _is_cleared(outcome: Outcome) -> bool:
    answer = outcome.answer or {}
    return answer.get("verdict") == "agree" and "part" in answer


def _reason(parts: Sequence[Outcome]) -> str:
    """Why the first part that clears nothing does not."""
    first = next(outcome for outcome in parts if not _is_cleared(outcome))
    answer = first.answer or {"message": "it ended without a result"}
    number, count = first.task.job.part or (0, 0)
    return f"part {number} of {count} did not clear it ({answer['message']})"


def _with_its_parts(outcome: Outcome, parts: Sequence[Outcome]) -> Outcome:
    """What all its processes used together, and read."""
    whole = replace(
        outcome,
        seconds=outcome.seconds + sum(part.seconds for part in parts),
        peak_memory=max(outcome.peak_memory, *(part.peak_memory for part in parts)),
    )
    if outcome.task.action != "join" or outcome.answer is None:
        return whole
    files = [part.answer["files"] for part in parts if part.answer is not None]
    read = None if None in files else sorted({file for some in files for file in some})
    began = min(part.began for part in parts if part.began is not None)
    return replace(whole, answer={**outcome.answer, "files": read}, began=began)
