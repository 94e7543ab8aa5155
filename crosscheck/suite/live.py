"""What is seen while the suite runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from crosscheck.suite.classify import gibibytes
from crosscheck.suite.jobs import Job, JobResult
from crosscheck.suite.summary import BAD, STYLES

__all__ = ["Lines", "LiveTable"]


class Lines:
    """A line for each job that ends.

    Args:
        write: is given one line, without its end.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._all = self._done = 0

    def listing(self, pairs: int) -> None:
        self._write(f"... load {pairs} pair{'s' if pairs > 1 else ''}")

    def planned(self, jobs: int, kept: int) -> None:
        self._all = jobs
        again = f", {kept} kept from an earlier run" if kept else ""
        self._write(f"... {jobs} job{'s' * (jobs != 1)}{again}")

    def started(self, job: Job) -> None: ...

    def stage(self, job: Job, stage: str, memory: int) -> None: ...

    def ended(self, job: Job) -> None: ...

    def finished(self, result: JobResult) -> None:
        self._done += 1
        place = f"{self._done}/{self._all} " if self._all else ""
        self._write(place + _line(result))

    def note(self, line: str) -> None:
        self._write(f"... {line}")


def _line(result: JobResult) -> str:
    used = f"{result.seconds:.1f} s, {gibibytes(result.peak_memory_bytes)}"
    line = f"{result.status}: {result.job.id} ({'kept' if result.resumed else used})"
    return line if result.status == "agree" else f"{line}: {result.message}"


class LiveTable:
    """What runs now, with stage, time and memory; lines of what has ended scroll by above it."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=8, transient=True)
        self._console = console
        self._running: dict[Job, tuple[float, str, int]] = {}
        self._all = self._done = 0

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.stop()

    def listing(self, pairs: int) -> None:
        self._console.print(Text(f"load {pairs} pairs", style="dim"))

    def planned(self, jobs: int, kept: int) -> None:
        self._all = jobs
        self._running.clear()

    def started(self, job: Job) -> None:
        self._running[job] = (time.monotonic(), "", 0)
        self._show()

    def stage(self, job: Job, stage: str, memory: int) -> None:
        if job in self._running:
            self._running[job] = (self._running[job][0], stage, memory)
            self._show()

    def ended(self, job: Job) -> None:
        self._running.pop(job, None)
        self._show()

    def finished(self, result: JobResult) -> None:
        self._done += 1
        self._running.pop(result.job, None)
        status = Text(f"{result.status:>17}  ", style=STYLES.get(result.status, BAD))
        rest = _line(result).partition(": ")[2]
        self._console.print(status + Text(rest, overflow="ellipsis", no_wrap=True))
        self._show()

    def note(self, line: str) -> None:
        self._console.print(Text(line, style="yellow"))

    def _show(self) -> None:
        table = Table(box=None, pad_edge=False, show_header=False)
        for column, options in (
            ("job", {"no_wrap": True}),
            ("time", {"justify": "right"}),
            ("memory", {"justify": "right"}),
            ("stage", {"no_wrap": True, "overflow": "ellipsis"}),
        ):
            table.add_column(column, **options)  # type: ignore[arg-type]
        now = time.monotonic()
        for job, (began, stage, memory) in self._running.items():
            cells = (job.title, f"{now - began:.0f} s", gibibytes(memory), stage)
            table.add_row(*(Text(cell) for cell in cells))
        done = f"{self._done} of {self._all} done" if self._all else "loading"
        table.add_row(Text(done, style="bold"))
        self._live.update(table)
