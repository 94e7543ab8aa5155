"""Where results go: files of this machine, or what a URL names (``s3://``, ``gs://``, ...), by
fsspec and its plugins."""

from __future__ import annotations

import os
import re
from typing import Any

from crosscheck.errors import InvalidArgument
from crosscheck.report.write import write_atomically

__all__ = ["exists", "filesystem", "is_url", "join", "make_folder", "write"]

BUCKETS = {"abfs", "abfss", "adl", "az", "gcs", "gs", "oci", "oss", "r2", "s3", "s3a", "tos"}

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is for fsspec; ``C:/x`` and ``a:b`` are files."""
    return _URL.match(os.fspath(path)) is not None


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        InvalidArgument: fsspec, or its plugin for this kind of URL, is not installed, or there is
            none; says what to install.
    """
    kind = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise _missing(url, "fsspec") from error
    try:
        found, path = url_to_fs(url)
    except ImportError as error:
        raise _missing(url, _plugin(kind) or str(error)) from error
    except ValueError as error:
        raise InvalidArgument(f"{url}: fsspec knows no `{kind}://` ({error})") from error
    return found, str(path)


def _plugin(kind: str) -> str:
    """The package of a kind of URL: `s3fs` for ``s3``, as fsspec's own table has it."""
    from fsspec.registry import known_implementations

    module = str(known_implementations.get(kind, {}).get("class", "")).partition(".")[0]
    return "" if module == "fsspec" else module


def _missing(url: str, package: str) -> InvalidArgument:
    return InvalidArgument(
        f"{url} needs the package `{package}`, which is not installed here.\n"
        f"  Fix: pip install {package}"
    )


def join(folder: str, name: str) -> str:
    """The absolute path, or the URL, of ``name`` in a folder."""
    if is_url(folder):
        return f"{folder.rstrip('/')}/{name}"
    return os.path.abspath(os.path.join(folder, name))


def exists(path: str) -> bool:
    """Whether there is such a file."""
    if not is_url(path):
        return os.path.isfile(path)
    found, inside = filesystem(path)
    return bool(found.isfile(inside))


def write(path: str, text: str) -> None:
    """Write a file whole or not at all, with the folders that it needs.

    Where the file system has transactions in fsspec (an object store's single put, a rename of a
    temporary file), whoever reads sees the old text or the new one.

    Raises:
        InvalidArgument: it cannot be written there.
        OSError: a file of this machine: writing began and failed.
    """
    if not is_url(path):
        write_atomically(path, text)
        return
    found, inside = filesystem(path)
    if "file" in _protocols(found):
        write_atomically(inside, text)
        return
    try:
        make_folder(found, inside)
        with found.transaction, found.open(inside, "wb") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    except Exception as error:  # a plugin raises what it likes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidArgument(f"cannot write to {path}: {reason}") from error


def make_folder(found: Any, inside: str) -> None:
    """The folder of a file, where there is such a thing: an object store would make a bucket, of
    whatever name was mistyped."""
    if not BUCKETS & set(_protocols(found)):
        found.makedirs(found._parent(inside), exist_ok=True)


def _protocols(found: Any) -> tuple[str, ...]:
    given = found.protocol
    return (given,) if isinstance(given, str) else tuple(given)
