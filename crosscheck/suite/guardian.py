"""A small process that outlives its parent just long enough to end the parent's children.

Workers run in sessions of their own, so that a Ctrl-C reaches the parent alone. But a parent that
is killed outright cannot end them. So it tells a guardian of each: when the pipe between them
breaks, the guardian ends what is left and removes the folder of temporary files. What began a
session of its own just before that, and was not told of, is known by the folder, which is in the
environment of every worker and of all that comes of it. What was just being started has its
parent's environment for a moment yet: so the guardian looks again until nothing more is found.

The guardian is nobody's child: a Ray worker that is told to go kills its children first.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable

__all__ = ["Guardian"]

LONGEST = 30.0  # seconds to end what is left

_SCRIPT = """
import os, shutil, signal, sys, time
if os.fork():
    os._exit(0)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
print(os.getpid(), flush=True)
groups, dismissed = set(), False
for line in sys.stdin:
    if line[0] == ".":
        dismissed = True
        break
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
def end(kill, number):
    try:
        kill(number, signal.SIGKILL)
    except OSError:
        pass
for group in groups:
    end(os.killpg, group)
mark = os.fsencode(sys.argv[1])
def end_marked():
    found = False
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb") as variables:
                marked = mark in variables.read()
        except OSError:
            continue
        if marked:
            end(os.kill, int(name))
            found = True
    return found
needed, quiet = (1 if dismissed else 4), 0
for _ in range(100 if sys.platform == "linux" else 0):
    quiet = 0 if end_marked() else quiet + 1
    if quiet == needed:
        break
    time.sleep(0.1)
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


class Guardian:
    """Ends process groups and whatever was started with ``folder`` in its environment, and removes
    ``folder``, when this process is gone."""

    def __init__(self, folder: str) -> None:
        self._watched: set[int] = set()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SCRIPT, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        assert self._process.stdout is not None
        self._number = int(self._process.stdout.readline() or 0)  # 0: it could not fork
        self._process.wait()

    def watch(self, groups: Iterable[int]) -> None:
        """Watch over these from now on."""
        for group in set(groups) - self._watched:
            self._watched.add(group)
            self._tell(f"+{group}\n")

    def forget(self, groups: Iterable[int]) -> None:
        """They have ended: their numbers may become others'."""
        for group in self._watched & set(groups):
            self._watched.remove(group)
            self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # without a guardian the suite still runs
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def close(self, *, orderly: bool = False) -> None:
        """End what is left, remove the folder, and wait for both.

        Args:
            orderly: nothing is just being started; there is no need to look again.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        if orderly:
            self._tell(".\n")
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        ended, _, _ = select.select([self._process.stdout], [], [], LONGEST)  # it closes its end
        if not ended and self._number:
            with contextlib.suppress(OSError):
                os.kill(self._number, signal.SIGKILL)
        self._process.stdout.close()
