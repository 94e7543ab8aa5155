"""How pytest shows a divergence: the report as it is, and one line in the short summary. And how a
check that could not be made: why, and the calls in the user's files, without ours."""

from __future__ import annotations

from typing import Any

import pytest

from crosscheck.errors import CrosscheckError, Diverged
from crosscheck.frames import calls, plain, told, where
from crosscheck.report.oneline import summary

__all__ = ["refused", "shown"]


def shown(error: pytest.ExceptionInfo[Diverged]) -> Any:
    """The representation of a failure: where the test asked, then the report's own lines."""
    made: Any = error.getrepr(style="value", chain=False)
    lines = str(error.value).splitlines()
    if made.reprcrash is not None:
        made.reprcrash.message = f"Diverged: {summary(error.value.report)}"
        lines = [f"{made.reprcrash.path}:{made.reprcrash.lineno}: Diverged", "", *lines]
    made.reprtraceback.reprentries[-1].lines = lines
    return made


def refused(error: pytest.ExceptionInfo[CrosscheckError]) -> Any:
    """The representation of an error: where the test asked, what is wrong, and what was raised in
    the user's files."""
    made: Any = error.getrepr(style="value", chain=False)
    kind, text = type(error.value).__name__, plain(str(error.value))
    asked = calls(error.value)[-1]
    lines = [f"{asked.filename}:{asked.lineno}: {kind}", "", *text.splitlines()]
    cause = error.value.__cause__
    if cause is not None and where(cause):
        lines += ["", *told(cause).splitlines()]
    notes = getattr(error.value, "__notes__", ())
    lines += ["", *notes] if notes else []
    if made.reprcrash is not None:
        made.reprcrash.path, made.reprcrash.lineno = asked.filename, asked.lineno
        made.reprcrash.message = f"{kind}: {' '.join(text.split())}"
    made.reprtraceback.reprentries[-1].lines = lines
    return made
