"""What runs tasks. `crosscheck.suite.local` is one; another needs no more than this."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from crosscheck.suite.jobs import Job, JobResult, Outcome, Task

__all__ = ["Engine", "Silent", "Watcher"]


class Watcher(Protocol):
    """Is told what happens, to show it. Called from one thread."""

    def listing(self, pairs: int) -> None:
        """So many pairs are being loaded, to see their candidates."""

    def planned(self, jobs: int, kept: int) -> None:
        """So many jobs there are, of which so many are taken from a log."""

    def started(self, job: Job) -> None:
        """Its process runs."""

    def stage(self, job: Job, stage: str, memory: int) -> None:
        """What it does now, and the bytes it holds."""

    def finished(self, result: JobResult) -> None:
        """It is judged, and kept."""

    def note(self, line: str) -> None:
        """Something the reader should know."""


class Silent:
    """Shows nothing."""

    def listing(self, pairs: int) -> None: ...

    def planned(self, jobs: int, kept: int) -> None: ...

    def started(self, job: Job) -> None: ...

    def stage(self, job: Job, stage: str, memory: int) -> None: ...

    def finished(self, result: JobResult) -> None: ...

    def note(self, line: str) -> None: ...


class Engine(Protocol):
    """Runs tasks, each isolated from the others and from this process."""

    def run(self, tasks: Sequence[Task], watcher: Watcher) -> Generator[Outcome, None, None]:
        """Begin ``tasks`` in this order; yield how each ended as it ends, exactly once.

        Holds each to its `Limits`. Whatever a task does, the others run, and nothing is raised.
        Closing the iterator ends what still runs, and returns when it is gone.
        """

    def describe(self) -> dict[str, object]:
        """Its settings, for the result's ``environment``."""
