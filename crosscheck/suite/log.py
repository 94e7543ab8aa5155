"""Results, kept as they come: lines of JSON that are only ever added to, for ``--resume``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from crosscheck import __version__
from crosscheck.errors import InvalidArgument
from crosscheck.suite.jobs import Job, JobResult
from crosscheck.suite.lines import lines_at
from crosscheck.suite.stamps import CHANGED, Stamps
from crosscheck.suite.storage import exists

__all__ = ["FINAL", "Log"]

SCHEMA = 1
FINAL = frozenset({"agree", "suspect", "diverge"})
"""What is kept: verdicts. All else may hang on the machine, and is tried again."""


class Log:
    """The file behind ``--resume``.

    The first line says what the file is; each further line is a result with what it was made from.
    A line that was cut short (the process was killed, the disk was full) is passed over.

    Args:
        place: a file, or a folder that will hold ``suite.jsonl``; created if it is not there. Or
            the URL of one.
        options: of every check, part of what a result was made from.

    Raises:
        InvalidArgument: the file is something else, cannot be written, or is in use.
    """

    def __init__(self, place: str, stamps: Stamps, options: Mapping[str, Any]) -> None:
        self._stamps, self._options = stamps, options
        self._kept: dict[str, dict[str, Any]] = {}
        self._lines = lines_at(place)
        self.path = self._lines.path
        try:
            self._read()
        except BaseException:
            self._lines.close()
            raise

    def _read(self) -> None:
        text = self._lines.read()
        lines = text.split(b"\n")
        if text and _parsed(lines[0]).get("suite") != SCHEMA:
            raise InvalidArgument(
                f"--resume {self.path}: this file is no log of `crosscheck suite` (of this "
                "version); it was left as it is. Give another name"
            )
        if not text:
            self._write({"suite": SCHEMA, "crosscheck": __version__})
        elif lines[-1]:  # cut short: what is added must not become part of it
            self._lines.add(b"\n")
        for line in lines[1:]:
            entry = _parsed(line)
            if {"key", "files", "folder", "result"} <= entry.keys():
                self._kept[entry["key"]] = entry

    def find(self, job: Job, *, html: str | None) -> JobResult | None:
        """The kept result of a job, if it would come out the same again; else None."""
        entry = self._kept.get(self._stamps.key(job, self._options))
        if entry is None or entry["files"] is None:
            return None
        if html is not None and not exists(html):
            return None
        now = self._stamps.files(list(entry["files"]))
        if now != entry["files"] or self._stamps.folder(job) != entry["folder"]:
            return None
        kept = JobResult(**{**entry["result"], "job": job})
        details, files = tuple(kept.details), None if kept.files is None else tuple(kept.files)
        return replace(kept, details=details, files=files, html=html, resumed=True)

    def add(self, result: JobResult, *, began: float) -> None:
        """Keep a result, if it is final, before anything else is done.

        Args:
            began: when its worker started, in seconds since the epoch.
        """
        if result.status not in FINAL or result.job.candidate is None:
            return
        files = result.files
        stamped = None if files is None else self._stamps.files(files, since=began)
        folder = self._stamps.folder(result.job)
        self._write(
            {
                "key": self._stamps.key(result.job, self._options),
                "files": None if stamped is None or CHANGED in stamped.values() else stamped,
                "folder": folder,
                "result": asdict(result),
            }
        )

    def _write(self, entry: dict[str, Any]) -> None:
        self._lines.add(json.dumps(entry).encode() + b"\n")

    def close(self) -> None:
        """Let others use the file.

        Raises:
            OSError: what a remote file does not hold yet could not be written.
        """
        self._lines.close()


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
