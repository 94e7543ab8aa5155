"""In a worker: which of the user's files its result was made from."""

from __future__ import annotations

import os
import sys
from typing import Any

from crosscheck.frames import is_installed
from crosscheck.suite.caches import cache_folders

__all__ = ["Sources"]

MOST = 5000
_KERNEL = ("/proc/", "/sys/", "/dev/")


class Sources:
    """Files that Python opened to read, and the sources of the modules it loaded.

    What a library opens without Python's knowledge is not seen. What libraries keep for themselves
    (compiled programs, lists of fonts) is no input of a job, and left out.

    Args:
        shared: of a job, what jobs make for each other: the beginning of those files' paths.
    """

    def __init__(self, shared: str | None = None) -> None:
        self._shared = shared
        self._read: set[str] = set()
        self._written: set[str] = set()

    def watch(self) -> None:
        """From now on, until the process ends."""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], (str, bytes)):
            return
        path, mode, flags = arguments
        if isinstance(mode, str):
            reads = not set(mode) & set("wax+")
        else:
            reads = not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        # Made absolute at once: the current folder may change.
        (self._read if reads else self._written).add(os.path.abspath(os.fsdecode(path)))

    def files(self) -> list[str] | None:
        """Sorted absolute paths of the user's files; None if there are more than `MOST`."""
        read = set(self._read)
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None)
            if isinstance(file, str):
                read.add(os.path.abspath(file))
        caches = tuple(folder + os.sep for folder in cache_folders(os.environ))
        found = sorted(
            path
            for path in read - self._written
            if not path.endswith(".pyc")
            and not path.startswith(_KERNEL)
            and not (self._shared and path.startswith(self._shared))
            and not is_installed(path)
            and not os.path.realpath(path).startswith(caches)
            and os.path.isfile(path)
        )
        return found if len(found) <= MOST else None
