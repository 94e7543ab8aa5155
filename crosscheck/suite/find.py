"""Which pairs lie below some folders, without running any of their code."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from crosscheck.errors import InvalidArgument

__all__ = ["find_pairs"]

LOOKS_LIKE_ONE = re.compile(rb"^pair\b[^=\n]*=[^=\n]*\bPair\(", re.MULTILINE)


def find_pairs(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The pairs at and below ``paths``, each once, sorted within each path.

    A pair is a folder with ``pair.py``, or another Python file that assigns ``pair = ...Pair(...)``
    at its top level. Hidden folders, ``__pycache__`` and virtual environments are left out; a file
    that is named itself is a pair whatever it holds.

    Returns:
        What `crosscheck run` takes: folders and files, relative to the current folder if below it.

    Raises:
        InvalidArgument: a path does not exist or cannot be read, or there is no pair below it.
    """
    found: dict[str, str] = {}  # where it really is -> how to write it
    for path in paths:
        here = [_named(file) for file in _below(Path(path))]
        if not here:
            raise InvalidArgument(
                f"{path}: no pair below this folder. A pair is a folder with pair.py, or a Python "
                "file that defines `pair = crosscheck.Pair(...)`"
            )
        for one in here:
            found.setdefault(os.path.realpath(one), one)
    return list(found.values())


def _below(path: Path) -> Iterator[Path]:
    if path.is_file():
        if path.suffix != ".py":
            raise InvalidArgument(f"{path}: give a folder or a Python file that defines a pair")
        yield path
        return
    if not path.is_dir():
        raise InvalidArgument(f"{path}: no such folder or file")
    for folder, folders, files in os.walk(path, onerror=_refuse):
        folders[:] = sorted(f for f in folders if not _left_out(Path(folder, f)))
        for name in sorted(files):
            file = Path(folder, name)
            if file.suffix == ".py" and (name == "pair.py" or defines_pair(file)):
                yield file


def _left_out(folder: Path) -> bool:
    hidden = folder.name.startswith(".") or folder.name in ("__pycache__", "node_modules")
    return hidden or (folder / "pyvenv.cfg").is_file()


def _refuse(error: OSError) -> NoReturn:
    raise InvalidArgument(f"{error.filename}: cannot be read ({error.strerror})") from error


def _named(file: Path) -> str:
    """The folder for ``pair.py``, else the file; relative where that is shorter to read."""
    path = os.path.abspath(file.parent if file.name == "pair.py" else file)
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative


def defines_pair(file: Path) -> bool:
    """Whether a Python file assigns ``pair = ...Pair(...)`` at its top level.

    A file that is no valid Python counts if it has a line that looks so: its error is for the
    suite to report, not to overlook.
    """
    if not file.is_file():  # a dangling link
        return False
    try:
        source = file.read_bytes()
    except OSError as error:
        _refuse(error)
    if b"Pair" not in source:
        return False
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return LOOKS_LIKE_ONE.search(source) is not None
    return any(_assigns_pair(statement) for statement in _top_level(tree.body))


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run on import: those inside `if`, `try` and `with` as well."""
    for statement in body:
        yield statement
        if isinstance(statement, (ast.If, ast.Try, ast.With)):
            for inner in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(statement, inner, []))


def _assigns_pair(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    else:
        return False
    if not any(isinstance(t, ast.Name) and t.id == "pair" for t in targets):
        return False
    made = statement.value
    if not isinstance(made, ast.Call):
        return False
    name = made.func
    return (isinstance(name, ast.Name) and name.id == "Pair") or (
        isinstance(name, ast.Attribute) and name.attr == "Pair"
    )
