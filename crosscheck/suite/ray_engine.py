"""The engine for many machines: every job is a Ray task, each counted once.

A job whose machine or Ray worker dies is started again elsewhere, a bounded number of times; a job
whose pair crashes, hangs or eats memory has its result, as with the local engine.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crosscheck.errors import InvalidArgument
from crosscheck.suite.classify import gibibytes
from crosscheck.suite.engine import Queue, Watcher
from crosscheck.suite.jobs import Job, Limits, Outcome, Task
from crosscheck.suite.local import MEMORY_PER_JOB
from crosscheck.suite.ray_cluster import Lost, Needs, RayCluster
from crosscheck.suite.ray_tasks import Answer, News
from crosscheck.suite.stamps import software

__all__ = ["RayEngine"]

RETRIES = 3
QUEUED = 2  # jobs that Ray knows of at a time, for each that there is room for
LOOK = 10.0  # seconds between two looks at how much room there is
POLL = 0.2  # seconds
PATIENCE = 120.0  # seconds without a machine for what is left
NO_MACHINE = "no machine of the Ray cluster is left that has what it takes"


@dataclass(frozen=True)
class _Attempt:
    """A task that Ray has.

    Attributes:
        lost: how many of its processes were lost before.
        began: when it was queued, in seconds since the epoch.
    """

    task: Task
    lost: int
    began: float = 0.0


class RayEngine:
    """Runs each task on some machine of a Ray cluster, in a child process of its own.

    Use it as a context: what it started ends with it.

    Args:
        address: of the cluster; see `RayCluster`.
        jobs: how many at a time, at most; None: what the cluster has room for.
        cpus, gpus: what a job takes of a machine; GPUs only where its device is ``cuda``.
        retries: how often a job is started again when its machine or Ray worker is lost.
        ship: see `RayCluster`.
        cluster: instead of a connection to be made.

    Raises:
        MissingFramework, InvalidArgument: see `RayCluster`.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        jobs: int | None = None,
        cpus: float = 1.0,
        gpus: float = 1.0,
        retries: int = RETRIES,
        ship: bool = True,
        cluster: RayCluster | None = None,
    ) -> None:
        self._jobs, self._cpus, self._gpus, self._retries = jobs, cpus, gpus, retries
        self._cluster = cluster or RayCluster(address, ship=ship)
        self._machines = self._cluster.machines()
        self._told: set[str] = set()
        self._room, self._looked = 0, -LOOK

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *error: Any) -> None:
        self._cluster.close()

    def describe(self) -> dict[str, object]:
        """See `Engine`."""
        total = {name: sum(m.get(name, 0.0) for m in self._machines) for name in ("CPU", "GPU")}
        return {
            "engine": "ray",
            "address": self._cluster.address,
            "machines": len(self._machines),
            "cpus": total["CPU"],
            "gpus": total["GPU"],
            "parallel_jobs": self._jobs,
            "cpus_per_job": self._cpus,
            "gpus_per_job": self._gpus,
            "retries": self._retries,
        }

    # -- the run -----------------------------------------------------------------------------------

    def run(self, tasks: Iterable[Task], watcher: Watcher) -> Generator[Outcome, None, None]:
        """See `Engine`.

        Raises:
            InvalidArgument: no machine has what a job needs; or its files are not sent.
        """
        waiting = Queue.of(tasks)
        self._require(waiting.waiting())
        again: list[_Attempt] = []
        running: dict[Any, _Attempt] = {}
        seen: dict[Job, News] = {}
        active = time.monotonic()
        try:
            while waiting or again or running:
                while (waiting or again) and len(running) < self._most(running):
                    attempt = again.pop() if again else _Attempt(waiting.take(), 0)
                    running[self._start(attempt)] = replace(attempt, began=time.time())
                done = self._cluster.ended(list(running), POLL)
                self._show(watcher, running.values(), seen)
                if done or seen or self._fits(next(iter(running.values())).task):
                    active = time.monotonic()
                elif time.monotonic() > active + PATIENCE:
                    yield from self._stranded([*running.values(), *again], waiting)
                    return
                for handle in done:
                    attempt = running.pop(handle)
                    last = seen.pop(attempt.task.job, None)
                    outcome = self._ended(handle, attempt, last, watcher)
                    if outcome is None:
                        again.append(replace(attempt, lost=attempt.lost + 1))
                        continue
                    group = waiting.ended(attempt.task)
                    if group:
                        self._cluster.forget(group)
                    yield outcome
        finally:
            self._cluster.cancel(running)

    @staticmethod
    def _stranded(attempts: Iterable[_Attempt], waiting: Queue) -> Generator[Outcome, None, None]:
        """No machine is left. With each outcome the queue may grow."""
        for task in itertools.chain((a.task for a in attempts), waiting):
            yield _without_answer(task, "", NO_MACHINE)

    def _most(self, running: Mapping[Any, _Attempt]) -> int:
        """How many Ray may know of: what comes first in the queue shall soon be begun."""
        if self._jobs is not None:
            return self._jobs
        if running and time.monotonic() > self._looked + LOOK:
            self._looked = time.monotonic()
            needs = self._needs_of(next(iter(running.values())).task)
            self._room = sum(_times(machine, needs) for machine in self._cluster.machines())
        return max(1, QUEUED * self._room)

    def _needs(self, limits: Limits) -> Needs:
        memory = min(limits.memory or MEMORY_PER_JOB, MEMORY_PER_JOB)
        return Needs(self._cpus, self._gpus, memory)

    def _needs_of(self, task: Task) -> Mapping[str, float]:
        return self._needs(task.limits).of(task)

    def _fits(self, task: Task) -> bool:
        return self._cluster.fits(self._needs_of(task))

    def _require(self, tasks: Sequence[Task]) -> None:
        for task in {(task.job.device, task.limits): task for task in tasks}.values():
            if not self._fits(task):
                wanted = self._needs_of(task)
                raise InvalidArgument(
                    f"no machine of the Ray cluster has what a job takes ({_amounts(wanted)}); "
                    f"there {_having(self._cluster.machines())}.\n"
                    "  Fix: --cpus-per-job, --gpus-per-job or --memory; or larger machines"
                )
        for task in tasks:
            if self._cluster.ships and os.path.isabs(task.job.path):
                raise InvalidArgument(
                    f"{task.job.path}: lies outside the current folder, which is what the "
                    "machines are sent.\n"
                    "  Fix: run in a folder above it; or --no-ship, where they see the same files"
                )

    def _start(self, attempt: _Attempt) -> Any:
        needs = self._needs(attempt.task.limits)
        return self._cluster.start(attempt.task, needs, attempt.lost)

    def _show(self, watcher: Watcher, running: Iterable[_Attempt], seen: dict[Job, News]) -> None:
        """Tell what the jobs do; not of one that was lost and speaks late."""
        news = self._cluster.news()
        for attempt in running:
            job = attempt.task.job
            if job in news and news[job].attempt == attempt.lost:
                if job not in seen and not attempt.lost:
                    watcher.started(job)
                seen[job] = news[job]
            if job in seen:
                where = f"{seen[job].host}: {seen[job].stage}"
                watcher.stage(job, where, seen[job].memory)

    # -- how a job ended ---------------------------------------------------------------------------

    def _ended(
        self, handle: Any, attempt: _Attempt, last: News | None, watcher: Watcher
    ) -> Outcome | None:
        """How it ended; None where it is to be started again."""
        task = attempt.task
        try:
            answer = self._cluster.answer(handle)
        except Lost as lost:
            where = f" on {last.host} ({last.stage})" if last else ""
            if attempt.lost < self._retries:
                again = f"started again ({attempt.lost + 1} of {self._retries})"
                watcher.note(f"{task.job.id}: lost{where}, {again}: {lost}")
                return None
            if lost.memory:
                return _out_of_memory(task, last, str(lost))
            times = f"its Ray worker was lost {attempt.lost + 1} times, last{where}"
            return _without_answer(task, last.stage if last else "start", f"{times}: {lost}")
        began = self._cluster.sent_at if self._cluster.ships else attempt.began
        return replace(self._with_software(answer, watcher), task=task, began=began)

    def _with_software(self, answer: Answer, watcher: Watcher) -> Outcome:
        """Where a machine has other versions, that is told; and what was found there holds for
        those, so that no log takes it for a result of these."""
        outcome, other = answer.outcome, _differences(software(), answer.software)
        if not other:
            return outcome
        line = f"{outcome.host} has {other}"
        if line not in self._told:
            self._told.add(line)
            watcher.note(line)
        if outcome.answer is None or outcome.answer["kind"] != "verdict":
            return outcome
        details = [*outcome.answer["details"], line]
        return replace(outcome, answer={**outcome.answer, "details": details, "files": None})


def _without_answer(task: Task, stage: str, reason: str) -> Outcome:
    return Outcome(task, None, "", None, None, 0.0, 0, stage, reason)


def _out_of_memory(task: Task, last: News | None, reason: str) -> Outcome:
    memory, stage = (last.memory, last.stage) if last else (0, "start")
    return Outcome(task, None, "", -signal.SIGKILL, True, 0.0, memory, stage, reason)


def _times(machine: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """How often a machine has what a job takes."""
    return int(min(machine.get(name, 0.0) / much for name, much in needs.items() if much))


def _differences(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """``torch 2.12 (here 2.13), no keras (here 3.15)``; empty where all is the same."""
    found = []
    for name in sorted(here.keys() | there.keys()):
        ours, theirs = here.get(name, "none"), there.get(name)
        if ours != (theirs or "none"):
            found.append((f"{name} {theirs}" if theirs else f"no {name}") + f" (here {ours})")
    return ", ".join(found)


def _amounts(resources: Mapping[str, float]) -> str:
    memory = gibibytes(int(resources.get("memory", 0)))
    return f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU, {memory}"


def _having(machines: Sequence[Mapping[str, float]]) -> str:
    if not machines:
        return "are none"
    return "are " + "; ".join(sorted({_amounts(machine) for machine in machines}))
