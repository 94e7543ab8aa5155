"""A scratch file without a name: arrays are appended, and read back as views of the mapped file.

The file is gone with the process that holds it, however that ends. What has been read stays mapped,
and counts as memory of the process, until `forget` takes the pages away; views stay valid, and read
them from the file again.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosscheck.errors import CannotCompare

__all__ = ["Place", "ScratchFile", "scratch_folder"]

EXTENT = 64 * 2**20
"""Bytes that are mapped at once; a larger value has a mapping of its own."""
ALIGNED = 64
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Place:
    """Where an array lies: its extent, and the offset in that."""

    file: ScratchFile
    extent: int
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Size of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


class ScratchFile:
    """Arrays in a temporary file. One thread appends; any thread reads.

    Args:
        folder: where the file lies, without a name of its own.

    Raises:
        CannotCompare: no file can be made there, or it takes no more; says what to do.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        try:
            self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115
        except OSError as error:
            raise _unusable(folder, error) from error
        self._maps: list[mmap.mmap] = []
        self._starts: list[int] = []
        self._size = 0  # of the file: the end of the last extent
        self._next = 0  # offset in the last extent

    def append(self, array: np.ndarray) -> Place:
        """Write a C-contiguous array that has at least one byte."""
        self._next += -self._next % ALIGNED
        try:
            if not self._maps or self._next + array.nbytes > len(self._maps[-1]):
                self._grow(array.nbytes)
            self._file.seek(self._starts[-1] + self._next)
            rest = memoryview(array.reshape(-1).view(np.uint8).data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._failed(error) from error
        place = Place(self, len(self._maps) - 1, self._next, array.shape, array.dtype)
        self._next += array.nbytes
        return place

    def _grow(self, nbytes: int) -> None:
        unit = mmap.ALLOCATIONGRANULARITY
        length = max(EXTENT, nbytes + -nbytes % unit)
        self._file.truncate(self._size + length)  # takes no space before it is written to
        mapped = mmap.mmap(self._file.fileno(), length, access=mmap.ACCESS_READ, offset=self._size)
        self._maps.append(mapped)
        self._starts.append(self._size)
        self._size += length
        self._next = 0

    def view(self, place: Place) -> np.ndarray:
        """The array, read-only; nothing is read before it is looked at."""
        mapped = self._maps[place.extent]
        if hasattr(mmap, "MADV_WILLNEED"):
            start = place.offset - place.offset % mmap.PAGESIZE
            # As much again behind it: what is recorded together is mostly asked for together.
            length = min(place.offset - start + 2 * place.nbytes, len(mapped) - start)
            mapped.madvise(mmap.MADV_WILLNEED, start, length)
        return np.ndarray(place.shape, place.dtype, buffer=mapped, offset=place.offset)

    def forget(self) -> None:
        """Give the memory of what was looked at back; views go on reading from the file."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)

    def _failed(self, error: OSError) -> CannotCompare:
        if error.errno not in _FULL:
            return _unusable(self.folder, error)
        return CannotCompare(
            f"max_memory=: {self.folder} takes no more than the {_shown(self._size)} of values "
            f"that lie there ({error.strerror}).\n"
            "  Fix: TMPDIR=FOLDER with more space, a larger max_memory, or smaller inputs"
        )


def scratch_folder() -> str:
    """Where scratch files lie: TMPDIR where it is set, else what the system has.

    Python's own choice passes by a TMPDIR that cannot be written to; whoever sets it wants to know.
    """
    return os.environ.get("TMPDIR") or tempfile.gettempdir()


def _unusable(folder: str, error: OSError) -> CannotCompare:
    return CannotCompare(
        f"max_memory=: no scratch file can be written in {folder} ({error.strerror or error}).\n"
        "  Fix: TMPDIR=FOLDER that can be written to, or leave max_memory out"
    )


def _shown(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.0f} MiB"
