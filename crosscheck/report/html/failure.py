"""The page of a check that could not be made: why, what to do, what had been compared."""

from __future__ import annotations

import platform
from typing import Any

from crosscheck.errors import (
    CannotCompare,
    CrosscheckError,
    DeviceUnavailable,
    InvalidArgument,
    MissingFramework,
    SideFailed,
    TraceFormatError,
)
from crosscheck.frames import calls, plain
from crosscheck.report.html import view
from crosscheck.report.words import Page

__all__ = ["of_failure"]

_WHAT: tuple[tuple[type[BaseException], str, str], ...] = (
    (
        SideFailed,
        "one side raised",
        "Run that side alone on the same inputs: it should raise the same. What had been compared "
        "until then tells whether wrong numbers led to it, or nothing but its own code",
    ),
    (
        CannotCompare,
        "the two cannot be put side by side",
        "Tell crosscheck what belongs together: `weights=` for parameters, `sites=` for layers, "
        "`candidate_inputs=` for inputs of another form",
    ),
    (MissingFramework, "a framework is not installed", "Install it"),
    (DeviceUnavailable, "the device is not to be had", "Check it with `crosscheck doctor`"),
    (TraceFormatError, "a file is no readable trace", "Record it again with `crosscheck record`"),
    (InvalidArgument, "an argument cannot be used", "Correct it and run the check again"),
)
_OTHERWISE = (
    "the check ended in an error",
    "If the error is not in a file of yours, it is a mistake in crosscheck: please report it",
)
FRAMES = 12


def of_failure(error: BaseException, *, name: str, command: str) -> dict[str, Any]:
    """Everything that ``failure.html`` shows; see `crosscheck.report.html.render_failure`."""
    paper = Page(width=view.WIDE)
    what, advice = next(((w, a) for kind, w, a in _WHAT if isinstance(error, kind)), _OTHERWISE)
    message, fixes = _split(plain(str(error) or repr(error)))
    compared = error.compared if isinstance(error, SideFailed) else ()
    return {
        "name": paper.prose(name),
        "what": what,
        "kind": type(error).__name__,
        "message": [paper.prose(line) for line in message],
        "fixes": [paper.prose(fix) for fix in fixes] or [advice],
        "failed": _failed(error, paper),
        "command": command,
        "environment": [(k, paper.prose(v)) for k, v in _environment().items()],
        "clean": paper.clean,
        "compared": compared,
        **view.of_failure_sites(compared),
    }


def _split(text: str) -> tuple[list[str], list[str]]:
    """What is wrong, and what the error itself says to do."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong: list[str] = []
    fixes: list[str] = []
    for line in lines:
        if line.startswith("Fix:"):
            fixes.append(line.removeprefix("Fix:").strip())
        else:
            (fixes if fixes else wrong).append(line)
    return wrong, fixes


def _failed(error: BaseException, paper: Page) -> dict[str, Any] | None:
    """Of a side that raised: which, where and what."""
    cause = error.__cause__
    if cause is None and not isinstance(error, CrosscheckError):
        cause = error
    if cause is None:
        return None
    facts = [("raised", paper.prose(plain(f"{type(cause).__name__}: {cause}")))]
    if isinstance(error, SideFailed):
        facts = [
            ("side", f"{error.side} ({error.framework})"),
            ("pass", error.stage),
            ("site", paper.clean(error.site) if error.site else "before its first site"),
            *facts,
        ]
    frames = calls(cause)[-FRAMES:]
    shown = [paper.clean(f"{f.filename}:{f.lineno} in {f.name}") for f in frames]
    return {"facts": facts, "calls": shown}


def _environment() -> dict[str, str]:
    from crosscheck import __version__

    return {
        "crosscheck": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
