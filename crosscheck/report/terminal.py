"""Stage 10, report: a `Report` as text, for a terminal, a log or an assertion's message."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console, RenderableType
from rich.text import Text

from crosscheck.report import figures, headline, probes, tables, words
from crosscheck.report.words import Line, Page, Unit
from crosscheck.results import Report

__all__ = ["print_report", "to_text"]

WIDTH = 100  # where there is no terminal to ask
NARROWEST, WIDEST = 40, 120
STYLES = {
    "agree": "bold green",
    "suspect": "bold yellow",
    "diverge": "bold red",
    "title": "bold",
    "dim": "dim",
    "cause": "magenta",
}


def to_text(
    report: Report,
    *,
    color: bool = False,
    width: int | None = None,
    ascii: bool | None = None,
    verbose: bool = False,
) -> str:
    """``report`` as text without a final newline.

    Args:
        color: with ANSI escape codes.
        width: in characters; None: as wide as standard output, 100 where that is no terminal.
        ascii: no block characters and no other character beyond ASCII; None: where standard
            output cannot take them.
        verbose: with every comparison, not only those that a reader asks for first.
    """
    if width is None:
        width = _width(sys.stdout)
    if ascii is None:
        ascii = not _takes_blocks(sys.stdout)
    page = Page(width=max(width, NARROWEST), ascii=ascii, unit=Unit.of(report))
    file = io.StringIO()
    console = Console(
        file=file,
        width=page.width,
        color_system="standard" if color else None,
        force_terminal=color,
        no_color=not color,
        force_jupyter=False,
        legacy_windows=False,
    )
    for number, section in enumerate(_sections(report, page, verbose)):
        if number:
            console.print()
        for item in section:
            console.print(item, soft_wrap=isinstance(item, Text), crop=False)
    text = "\n".join(line.rstrip() for line in file.getvalue().split("\n")).rstrip("\n")
    return text.encode("ascii", "backslashreplace").decode("ascii") if ascii else text


def print_report(report: Report, file: TextIO | None = None, *, verbose: bool = False) -> None:
    """Print ``report`` to ``file``, standard output by default.

    In colour where ``file`` is a terminal and ``NO_COLOR`` is not set (https://no-color.org), as
    wide as the terminal, with block characters where the encoding has them.
    """
    out = sys.stdout if file is None else file
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    text = to_text(
        report,
        color=_is_terminal(out) and not plain,
        width=_width(out),
        ascii=not _takes_blocks(out),
        verbose=verbose,
    )
    out.write(text + "\n")


def _sections(report: Report, page: Page, verbose: bool) -> Iterable[list[RenderableType]]:
    """The page from top to bottom; a blank line goes between sections."""
    yield _lines(headline.headline(report, page), page)
    if report.sites:
        yield list(figures.figure(words.by_phase(report.sites), page))
        first = report.first_divergence
        row = words.row_of(report, first) if first is not None else None
        if verbose:
            yield [*tables.every(report, page, row)]
        else:
            yield [*(tables.around(report, row, page) if row else tables.largest(report, page))]
    further = headline.further(report, page)
    if further:
        yield _lines(further, page)
    yield _lines(headline.coverage(report, page), page)
    for extra in (probes.probes(report, page), probes.blind_spots(report, page)):
        if extra:
            yield _lines(extra, page)
    yield _lines(headline.environment(report, page), page)


def _lines(lines: Iterable[Line], page: Page) -> list[RenderableType]:
    return [_paragraph(line, page) for line in lines]


def _paragraph(line: Line, page: Page) -> Text:
    """``line`` wrapped at words, what follows its first row indented by two more."""
    if line.tight:
        text = " " * line.indent + page.start(line.text, page.width - line.indent)
    else:
        text = "\n".join(page.wrap(line.text, line.indent))
    return _styled(text, line.tone)


_WORD = re.compile(r"\s*\w+")
_HEADS = {"agree": _WORD, "suspect": _WORD, "diverge": _WORD, "cause": re.compile("[^:]*:")}


def _styled(text: str, tone: str) -> Text:
    """Names in backquotes stand out; a verdict's tone is for its word, a cause's for what stands
    before its colon."""
    result = Text(no_wrap=True)
    head = _HEADS[tone].match(text) if tone in _HEADS else None
    if head is not None:
        result.append(head[0], style=STYLES[tone])
        text, tone = text[head.end() :], ""
    for number, piece in enumerate(text.split("`")):
        if number:
            result.append("`", style="dim")
        result.append(piece, style="bold" if number % 2 else STYLES.get(tone, ""))
    return result


def _is_terminal(file: TextIO) -> bool:
    try:
        return file.isatty()
    except (AttributeError, ValueError):  # not a real stream, or a closed one
        return False


def _width(file: TextIO) -> int:
    """The terminal's width (``COLUMNS`` first), 80 for one that does not say, 100 for a file."""
    if not _is_terminal(file):
        return WIDTH
    columns = os.environ.get("COLUMNS", "")
    try:
        found = int(columns) if columns.isdecimal() else os.get_terminal_size(file.fileno()).columns
    except (OSError, ValueError, AttributeError):  # a terminal in name only
        found = 0
    return min(max(found, NARROWEST), WIDEST) if found > 0 else 80


def _takes_blocks(file: TextIO) -> bool:
    try:
        (figures.BARS + "…").encode(getattr(file, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
