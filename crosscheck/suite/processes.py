"""Trees of processes on this machine: what memory they hold, and how to end all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Process", "Tree", "kernel_oom_kills", "snapshot"]


@dataclass(frozen=True)
class Process:
    """A row of the table of processes.

    Attributes:
        group: of processes; the session's number is that of its first group.
        started: in the kernel's ticks, to tell two processes of one number apart; 0: unknown.
        memory: resident bytes.
    """

    number: int
    parent: int
    group: int
    session: int
    started: int
    memory: int


def snapshot() -> dict[int, Process]:
    """The processes of this machine by number."""
    rows = _from_proc() if sys.platform == "linux" else _from_ps()
    return {row.number: row for row in rows}


def _from_proc() -> Iterable[Process]:
    page = os.sysconf("SC_PAGE_SIZE")
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):  # it ended meanwhile
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()  # a name may hold spaces
                parent, group, session = (int(f) for f in fields[1:4])
                started, pages = int(fields[19]), int(fields[21])
                yield Process(int(name), parent, group, session, started, pages * page)


def _from_ps() -> Iterable[Process]:
    command = ["ps", "-A", "-o", "pid=,ppid=,pgid=,rss="]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        listed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        for line in listed.stdout.splitlines():
            with contextlib.suppress(ValueError):
                number, parent, group, kilobytes = (int(f) for f in line.split())
                yield Process(number, parent, group, 0, 0, kilobytes * 1024)


def kernel_oom_kills() -> int | None:
    """How often the kernel has ended a process for want of memory since it started; None where it
    does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None


class Tree:
    """A process that leads a session of its own, and all that came of it.

    A descendant that was seen once is remembered, also where its parent has ended since or it has
    begun a session of its own.

    Args:
        mark: a text that no other process has in its environment; finds what was never seen.
    """

    def __init__(self, leader: int, mark: str) -> None:
        self.leader = leader
        self._mark = mark
        self.groups = {leader}
        """Groups of all members so far."""
        self._seen: dict[int, int] = {}  # number -> started

    def members(self, processes: dict[int, Process]) -> list[Process]:
        """Those of ``processes`` that belong to the tree."""
        members = {
            p.number: p
            for p in processes.values()
            if self.leader in (p.number, p.group, p.session)
            or self._seen.get(p.number, -1) == p.started
        }
        grown = True
        while grown:
            children = [
                p for p in processes.values() if p.parent in members and p.number not in members
            ]
            members.update((p.number, p) for p in children)
            grown = bool(children)
        self._seen = {p.number: p.started for p in members.values()}
        self.groups |= {p.group for p in members.values()}
        return list(members.values())

    def memory(self, processes: dict[int, Process], limit: int | None = None) -> int:
        """Bytes resident in all members together.

        Pages that several hold are counted for each; only where that exceeds ``limit`` are they
        shared out, which takes the kernel much longer.
        """
        members = self.members(processes)
        total = sum(p.memory for p in members)
        if limit is not None and total > limit and len(members) > 1:
            return sum(_proportional(p) for p in members)
        return total

    def kill(self) -> None:
        """End every member at once, whatever it does about signals."""
        # Twice: a process whose parent ends has another parent from then on, and what is about to
        # end may still start one.
        for _ in range(2):
            numbers = {p.number for p in self.members(snapshot())} | set(_marked(self._mark))
            with contextlib.suppress(OSError):
                os.killpg(self.leader, signal.SIGKILL)
            for number in numbers:
                with contextlib.suppress(OSError):
                    os.kill(number, signal.SIGKILL)


def _marked(mark: str) -> Iterable[int]:
    """Processes with a text in the environment that they were started with (where it can be
    read)."""
    if sys.platform != "linux":
        return
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                if os.fsencode(mark) in file.read():
                    yield int(name)


def _proportional(process: Process) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{process.number}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return process.memory
