"""What runs tasks. `crosscheck.suite.local` is one; another needs no more than this."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Protocol

from crosscheck.suite.jobs import Job, JobResult, Outcome, Task

__all__ = ["Engine", "Queue", "Silent", "Watcher"]


class Queue:
    """Tasks that are still to begin, in order.

    Who has given it to an engine may put more in front, and take some back, whenever it is told
    how a task has ended.
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._waiting = deque(tasks)
        self._left = Counter(task.group for task in self._waiting)

    @classmethod
    def of(cls, tasks: Iterable[Task]) -> Queue:
        """A queue as it is, and one of anything else."""
        return tasks if isinstance(tasks, Queue) else cls(tasks)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Task]:
        """Takes each as its turn comes."""
        while self._waiting:
            yield self.take()

    def waiting(self) -> tuple[Task, ...]:
        """What has not begun."""
        return tuple(self._waiting)

    def take(self) -> Task:
        """The next one, which begins."""
        return self._waiting.popleft()

    def put_first(self, task: Task) -> None:
        """Before all that waits."""
        self._waiting.appendleft(task)
        self._left[task.group] += 1

    def drop(self, is_needless: Callable[[Task], bool]) -> None:
        """Take back what waits and is not needed any more."""
        kept = [task for task in self._waiting if not is_needless(task)]
        self._left -= Counter(map(_group, self._waiting)) - Counter(map(_group, kept))
        self._waiting = deque(kept)

    def ended(self, task: Task) -> str:
        """A task has ended: its group if that was the last of it, and there is one; else empty."""
        self._left[task.group] -= 1
        return "" if self._left[task.group] else task.group


def _group(task: Task) -> str:
    return task.group


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

    def ended(self, job: Job) -> None:
        """A part of a job has ended, and is no result."""

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

    def ended(self, job: Job) -> None: ...

    def finished(self, result: JobResult) -> None: ...

    def note(self, line: str) -> None: ...


class Engine(Protocol):
    """Runs tasks, each isolated from the others and from this process."""

    def run(self, tasks: Iterable[Task], watcher: Watcher) -> Generator[Outcome, None, None]:
        """Begin ``tasks`` in this order; yield how each ended as it ends, exactly once.

        Tasks of a `Queue` are taken from it one by one, since it may change with every outcome.
        Holds each to its `Limits`. Whatever a task does, the others run, and nothing is raised.
        Closing the iterator ends what still runs, and returns when it is gone.
        """

    def describe(self) -> dict[str, object]:
        """Its settings, for the result's ``environment``."""
