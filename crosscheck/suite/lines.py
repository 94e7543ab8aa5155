"""A file of lines that is only ever added to: of this machine, or what a URL names."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Protocol

from crosscheck.errors import InvalidArgument
from crosscheck.suite.storage import filesystem, is_url, make_folder

__all__ = ["Lines", "lines_at"]

NAME = "suite.jsonl"
PAUSE = 5.0  # seconds between two writes of a whole remote file, at least
SHARE = 20  # at most one part in so many of the time goes into them


class Lines(Protocol):
    """What a log is kept in."""

    path: str

    def read(self) -> bytes:
        """All that it holds."""

    def add(self, data: bytes) -> None:
        """Put whole lines at its end.

        Raises:
            OSError: that failed.
        """

    def close(self) -> None:
        """Write what is not written yet; let others use it."""


def lines_at(place: str) -> Lines:
    """The lines of a file, or of ``suite.jsonl`` in a folder; created if it is not there.

    Raises:
        InvalidArgument: it cannot be written, or is in use.
    """
    return _Remote(place) if is_url(place) else _Local(Path(place))


class _Local:
    """Each addition is one write that is synced: a line is there or is cut short, and never mixed
    with another."""

    def __init__(self, place: Path) -> None:
        folder = place.is_dir() or not (place.suffix or place.is_file())
        path = place / NAME if folder else place
        self.path = str(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115  (closed by close)
        except OSError as error:
            raise InvalidArgument(
                f"--resume {place}: cannot be written to ({error.strerror})"
            ) from error
        try:
            self._lock()
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # no such thing on this system
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidArgument(
                f"--resume {self.path}: another suite is writing to it; wait for it, or give "
                "another file"
            ) from None
        except OSError:  # a file system without locks
            return

    def read(self) -> bytes:
        self._file.seek(0)
        return self._file.read()

    def add(self, data: bytes) -> None:
        self._file.write(data)
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _Remote:
    """An object store cannot add to a file: all of it is put again, every few seconds, and when
    it is closed. There is no lock either; but what another has put meanwhile is not overwritten.
    """

    def __init__(self, url: str) -> None:
        folder = "." not in url.rstrip("/").rpartition("/")[2]
        self.path = f"{url.rstrip('/')}/{NAME}" if folder else url
        self._system, self._inside = filesystem(self.path)
        self._system.invalidate_cache()
        there = self._state() is not None
        self._data = bytes(self._system.cat_file(self._inside)) if there else b""
        self._seen = self._state()
        self._written = True
        self._next = 0.0

    def _state(self) -> Any:
        """What changes when somebody writes it; None: there is no such file."""
        try:
            return self._system.ukey(self._inside)
        except FileNotFoundError:
            return None

    def read(self) -> bytes:
        return self._data

    def add(self, data: bytes) -> None:
        self._data += data
        self._written = False
        if time.monotonic() >= self._next:
            self._put()

    def _put(self) -> None:
        try:
            self._put_all()
        except OSError:
            raise
        except Exception as error:  # a plugin raises what it likes
            raise OSError(0, " ".join(str(error).split())) from error

    def _put_all(self) -> None:
        began = time.monotonic()
        self._system.invalidate_cache()
        if self._state() != self._seen:
            raise OSError(0, "another suite has written to it since")
        make_folder(self._system, self._inside)
        self._system.pipe_file(self._inside, self._data)
        self._system.invalidate_cache()
        self._seen, self._written = self._state(), True
        now = time.monotonic()
        self._next = now + max(PAUSE, SHARE * (now - began))

    def close(self) -> None:
        if not self._written:
            self._put()
