"""A small process that outlives its parent just long enough to end the parent's children.

Workers run in sessions of their own, so that a Ctrl-C reaches the parent alone. But a parent that
is killed outright cannot end them. So it tells a guardian of each: when the pipe between them
breaks, the guardian ends what is left and removes the folder of temporary files.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterable

__all__ = ["Guardian"]

_SCRIPT = """
import os, shutil, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


class Guardian:
    """Ends process groups, and removes ``folder``, when this process is gone."""

    def __init__(self, folder: str) -> None:
        self._watched: set[int] = set()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SCRIPT, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

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

    def close(self) -> None:
        """End what is left, remove the folder, and wait for both."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
