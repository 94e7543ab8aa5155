"""What the jobs of a group share, between the machines of a Ray cluster.

On one machine they share files in a folder (`crosscheck.traces.shared`): whoever holds the lock
makes a run of the reference, the others wait for the file. Between machines a thread beside each
job keeps that up, one for each run. Once a job on its machine wants the run, the `Board` names one
machine that makes it. On every other one the threads hold the lock, until they have the bytes from
Ray's object store, into which they are put once; the jobs of one machine then map one file. When
the machine that makes it dies, another is named.

The threads of one machine hold the lock together (shared), so that no job gets hold of it while any
of them waits; a job holds it alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol

from crosscheck.traces.runs import RUNS, WANTED

__all__ = ["Exchange", "Store", "shared_folder", "with_exchange"]

PAUSE = 0.3  # seconds between two questions to the cluster
LOOK = 0.05  # seconds between two looks at whether a job wants the run


class Store(Protocol):
    """The cluster, as an exchange sees it."""

    def claim(self, name: str, machine: str) -> Any:
        """What the machine is to do: ``"make"`` it, ``"wait"``, or a list with the handle."""

    def put(self, name: str, path: Path) -> None:
        """Give the file to all."""

    def get(self, handle: Any) -> Any:
        """What the file holds, as a buffer."""

    def release(self, name: str, machine: str) -> None:
        """This machine does not make it after all."""


class Exchange:
    """Keeps the file of one run on one machine; use it as a context, around a job.

    Args:
        path: of the file.
    """

    def __init__(self, store: Store, path: Path) -> None:
        self._store, self._path = store, path
        state = os.stat(path.parent)  # what sees one folder is one machine, whatever Ray calls it
        self._machine = f"{platform.node()}/{state.st_dev}/{state.st_ino}"
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="crosscheck-shared", daemon=True)

    def __enter__(self) -> Exchange:
        """The lock is held from the start: a job that comes to the run before the cluster has
        answered waits for the answer, and does not make what another machine makes."""
        self._lock = open(f"{self._path}.lock", "a")  # noqa: SIM115
        _hold(self._lock, held=True)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ends.set()
        self._thread.join()

    def _keep(self) -> None:
        """`_share`; what goes wrong with the cluster costs the sharing, and not the job."""
        try:
            with self._lock:
                self._share(self._lock)
        except Exception:  # of Ray, or of the file system
            traceback.print_exc()

    def _share(self, lock: IO[str]) -> None:
        """Until the file is here and known to all, or the job ends."""
        name, makes = self._path.name, False
        while not os.path.exists(f"{self._path}{WANTED}"):
            if self._ends.wait(LOOK):
                return
        while not self._ends.is_set():
            said = self._store.claim(name, self._machine)
            makes = said == "make"
            if isinstance(said, list):
                self._write(said[0])
                return
            if makes and self._path.exists():
                break
            _hold(lock, held=not makes)
            self._ends.wait(PAUSE)
        if makes and self._path.exists():
            self._give(name)
        elif makes:
            self._store.release(name, self._machine)

    def _give(self, name: str) -> None:
        """Put the file into the store, unless another job's thread on this machine has."""
        with open(f"{self._path}.given", "a") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if self._store.claim(name, self._machine) == "make":
                self._store.put(name, self._path)

    def _write(self, handle: Any) -> None:
        if self._path.exists():
            return
        temporary = self._path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        temporary.write_bytes(self._store.get(handle))
        os.replace(temporary, self._path)


def _hold(lock: IO[str], *, held: bool) -> None:
    """Hold a lock together with others, or let go of it. A job that makes the file itself and so
    has the lock alone does as well."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB if held else fcntl.LOCK_UN)


@contextlib.contextmanager
def shared_folder(folder: Path) -> Iterator[Path]:
    """A folder that several processes have in common, as long as there are any; the last one
    removes it."""
    users = _users(folder)
    try:
        yield folder
    finally:
        with users, contextlib.suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _users(folder: Path) -> IO[str]:
    """The folder's own lock, shared; anew where the last user has just removed it."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            users = open(folder / "users", "a")  # noqa: SIM115
        except FileNotFoundError:
            continue
        fcntl.flock(users, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(users.fileno()), os.stat(folder / "users")):
                return users
        users.close()


@contextlib.contextmanager
def with_exchange(session: str, group: str, store: Store) -> Iterator[str | None]:
    """The folder for what the jobs of a group share; None for a job that has no group.

    It goes with the last job of the group that runs on this machine; and with the last job of the
    suite there goes what is left of jobs that were killed.
    """
    if not group:
        yield None
        return
    every = Path(tempfile.gettempdir()) / f"crosscheck-{os.getuid()}-{session}"
    with ExitStack() as stack:
        stack.enter_context(shared_folder(every))
        folder = stack.enter_context(shared_folder(every / group))
        for run in RUNS:
            stack.enter_context(Exchange(store, folder / f"{group}.safetensors{run}"))
        yield str(folder)
