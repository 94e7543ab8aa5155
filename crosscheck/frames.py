"""Of an error: what its user has to see. Where in their files it was raised, without our calls."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from traceback import FrameSummary, StackSummary, TracebackException

__all__ = ["LOADED", "calls", "chain", "is_installed", "is_ours", "plain", "told", "where"]

LOADED = "crosscheck_loaded_"
"""How the modules of lone files are named; see `plain`."""

_OURS = os.path.realpath(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARIES = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_INSTALLED = (*(os.path.realpath(path) + os.sep for path in {*_LIBRARIES}), _OURS)
_PREFIX = re.compile(rf"{LOADED}\d+_")


def is_installed(path: str) -> bool:
    """Whether a file belongs to Python, to an installed package or to crosscheck."""
    return os.path.realpath(path).startswith(_INSTALLED)


def is_ours(path: str) -> bool:
    """Whether a file is crosscheck's, or what Python runs to import one."""
    return path.startswith("<frozen importlib") or os.path.realpath(path).startswith(_OURS)


def plain(text: str) -> str:
    """A text with the modules of lone files under the names of these files."""
    return _PREFIX.sub("", text)


def chain(error: BaseException) -> list[BaseException]:
    """An error and those that it was raised from, the last one first."""
    found: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in found:
        found.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return found


def where(error: BaseException) -> str:
    """File and line of the innermost call in a file of the user's; empty where there is none."""
    for link in reversed(chain(error)):
        if isinstance(link, SyntaxError) and _is_users(link.filename):
            return f"{link.filename}:{link.lineno}"
        for frame in reversed(traceback.extract_tb(link.__traceback__)):
            if _is_users(frame.filename):
                return f"{frame.filename}:{frame.lineno} in {frame.name}"
    return ""


def calls(error: BaseException) -> list[FrameSummary]:
    """The calls that led to an error, outermost first: those in the user's files; where there are
    none, the libraries'; where there are none either, our own."""
    return list(_chosen(traceback.extract_tb(error.__traceback__)))


def told(error: BaseException) -> str:
    """The traceback of an error, with its `calls` only."""
    told = TracebackException.from_exception(error, compact=True)
    _shorten(told)
    return plain("".join(told.format()))


def _shorten(one: TracebackException | None) -> None:
    if one is not None:
        told_without = issubclass(one.exc_type, SyntaxError) and _is_users(one.filename)
        one.stack = _chosen(one.stack, or_none=told_without)
        _shorten(one.__cause__)
        _shorten(one.__context__)


def _chosen(stack: StackSummary, *, or_none: bool = False) -> StackSummary:
    """As `calls`. ``or_none``: the error itself names a line of the user's; none but theirs."""
    others = [frame for frame in stack if not is_ours(frame.filename)]
    users = [frame for frame in others if _is_users(frame.filename)]
    return StackSummary.from_list(users if users or or_none else others or stack)


def _is_users(path: str | None) -> bool:
    return path is not None and os.path.isfile(path) and not is_installed(path)
