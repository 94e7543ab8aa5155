"""What the runs of one check may hold in memory together, and who writes the rest to disk.

Of the limit, three eighths are for values that are held (those under way to the disk among them),
one eighth for pages of the scratch files that have been looked at, and half for what a layer or a
comparison makes on the way. The oldest values go first. A background thread writes them; whoever
records faster than it writes waits.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from crosscheck.memory.heap import trim_heap
from crosscheck.memory.scratch import Place, ScratchFile, scratch_folder

if TYPE_CHECKING:
    from crosscheck.memory.values import Values

__all__ = ["Budget"]

Held = tuple["weakref.ref[Values[Any]]", Any, np.ndarray]

LEAST_WINDOW, LEAST_TRIM = 2**20, 2**22
"""Bytes below which it takes longer to give memory back than it is worth."""


class Budget:
    """A limit, shared by all mappings that are made under it.

    Args:
        limit: bytes.

    Raises:
        CannotCompare: no scratch file can be made.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._room, self._window = limit * 3 // 8, max(limit // 8, LEAST_WINDOW)
        self._folder = scratch_folder()
        ScratchFile(self._folder)  # better now than in the middle of a check
        self._state = threading.Condition()
        self._held: deque[Held] = deque()  # in order of arrival
        self._nbytes = 0
        self._writing: Held | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._closed = False
        self._since_trim = 0
        self._files: weakref.WeakSet[ScratchFile] = weakref.WeakSet()
        self._seen_nbytes = 0

    # -- values that are held ----------------------------------------------------------------

    def hold(self, values: Values[Any], key: Any, array: np.ndarray) -> None:
        """Count an array that ``values`` holds; waits until there is room for it.

        Raises:
            CannotCompare: what had to make room could not be written.
        """
        with self._state:
            if self._closed:
                return
            self._held.append((weakref.ref(values), key, array))
            self._nbytes += array.nbytes
            if not self._over():
                return
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._write_all, name="crosscheck-spill", daemon=True
                )
                self._thread.start()
            self._state.notify_all()
            # One value alone may be larger than the limit: then until nothing else is left.
            while self._nbytes > self._room and (self._held or self._writing):
                if self._error is not None:
                    raise self._error
                self._state.wait(timeout=1.0)
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        """The limit holds no longer; what has been written stays readable."""
        with self._state:
            self._closed = True
            self._held.clear()
            self._state.notify_all()
        if self._thread is not None:
            self._thread.join()

    # -- the thread that writes --------------------------------------------------------------

    def _write_all(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._closed or self._over())
                if self._closed:
                    return
                self._writing = self._held.popleft()
            try:
                self._write(*self._writing)
            except Exception as error:  # raised in the thread that records, wherever it comes from
                self._error = error
            with self._state:
                nbytes = self._writing[2].nbytes
                self._nbytes -= nbytes
                self._writing = None
                self._state.notify_all()
                if self._error is not None:
                    return
            self._passed(nbytes)

    def _passed(self, nbytes: int) -> None:
        """So much has gone through memory. The C library keeps what was freed for itself unless it
        is asked, which takes a while."""
        self._since_trim += nbytes
        if self._since_trim > max(self._window, LEAST_TRIM):
            self._since_trim = 0
            trim_heap()

    def _over(self) -> bool:
        """Whether to write: from half of the room on, so that nobody has to wait for it."""
        return bool(self._held) and self._nbytes > self._room // 2

    def _write(self, reference: weakref.ref[Values[Any]], key: Any, array: np.ndarray) -> None:
        values = reference()
        if values is not None and values.holds(key, array):
            values.moved(key, array, values.file(self._folder).append(array))

    # -- pages that have been looked at ------------------------------------------------------

    def view(self, place: Place) -> np.ndarray:
        """An array that lies on disk. So that what has been looked at does not add up, pages are
        given back from time to time."""
        with self._state:
            if self._seen_nbytes + place.nbytes > self._window:
                for file in self._files:  # all: what was asked for long ago may be looked at now
                    file.forget()
                self._seen_nbytes = 0
            self._files.add(place.file)
            self._seen_nbytes += place.nbytes
        self._passed(place.nbytes)
        return place.file.view(place)
