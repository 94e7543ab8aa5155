"""Stage 10, report: write a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from crosscheck.errors import InvalidArgument

__all__ = ["require_place", "write_atomically"]


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (as UTF-8) to ``path``; whoever reads it sees the old file or the new one.

    Missing folders are created, a symbolic link is followed, the permissions of a file that is
    replaced are kept. A device or a pipe (``/dev/stdout``) cannot be replaced and is written to.

    Raises:
        InvalidArgument: ``path`` is no place for a file. What was there is as it was.
        OSError: writing began and failed (a full disk); what was there is as it was.
    """
    given = os.fspath(path)
    if not given or "\0" in given:
        raise InvalidArgument(f"cannot write to {given!r}: not a file name.")
    target = Path(os.path.realpath(given))
    if target.is_dir():
        example = os.path.join(given, "report" + (Path(given).suffix or ".json"))
        raise InvalidArgument(
            f"cannot write to `{given}`: it is a folder.\n"
            f"  Fix: give a file, for example `{example}`"
        )
    data = text.encode("utf-8", "backslashreplace")
    if os.path.exists(given) and not os.path.isfile(given):
        with _explained(given):
            Path(given).write_bytes(data)
        return
    temporary = target.with_name(f".{target.name[:60]}.{secrets.token_hex(4)}.tmp")
    with _explained(given):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile: its files are private, and a report should have the user's usual mode.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        with _explained(given):
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def require_place(path: str | os.PathLike[str]) -> None:
    """See that a file could be written at ``path``, before what is to be written has been computed.

    Nothing is left behind: of missing folders, the nearest that there is has to take a file.

    Raises:
        InvalidArgument: it could not.
    """
    given = os.fspath(path)
    if os.path.exists(given) and not os.path.isfile(given):  # a device, a pipe
        return
    folder = Path(os.path.realpath(given)).parent
    while not folder.exists():
        folder = folder.parent
    with _explained(given), tempfile.TemporaryFile(dir=folder):
        pass


@contextlib.contextmanager
def _explained(given: str) -> Iterator[None]:
    """Turn an operating system's refusal of the place into `InvalidArgument`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        where = f" (`{error.filename}`)" if error.filename else ""
        raise InvalidArgument(
            f"cannot write to `{given}`: {reason[:1].lower()}{reason[1:]}{where}.\n"
            "  Fix: give a file in a folder that can be written to."
        ) from error
