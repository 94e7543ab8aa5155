"""Stage 10, report: Markdown, for a comment on a pull request.

GitHub's dialect. Names and statements come from models: whatever Markdown or HTML would make of
them is escaped, and nobody is mentioned by them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from crosscheck.report import headline, oneline, probes, words
from crosscheck.report.words import Line, Page, Unit
from crosscheck.results import Divergence, Report, SiteResult

__all__ = ["render"]

ROWS = 20  # divergences; sites to a phase
LIMIT = 60_000  # a comment on GitHub holds 65536 characters
_SIGNS = {"agree": "✅", "suspect": "⚠️", "diverge": "❌"}
_SPECIAL = re.compile(r"[\\*_\[\]|~$]")
_LEADING = re.compile(r"^([-+]|\d+(?=[.)]))")  # a list
_LINKED = re.compile(r"(?<=[@#:])(?=[\w/])|(?<=www)(?=\.)", re.IGNORECASE)  # GitHub links these
_IN_CODE = re.compile(r"[&<>\\`|*_\[\]~@#$:]")


def render(report: Report) -> str:
    """``report`` as Markdown: headline, divergences with causes, coverage, details to unfold."""
    page = Page(width=10_000, unit=Unit.of(report))
    first, *rest = headline.headline(report, page)
    parts = [f"### {_SIGNS[report.verdict]} {_prose(first.text)}", _bullets(rest)]
    parts += [_divergences(report, page), _coverage(report, page)]
    details = [_sites(rows, page) for rows in words.by_phase(report.sites).values()]
    environment = _bullets(headline.environment(report, page))
    text = "\n\n".join(part for part in parts if part)
    for part in [_folded("environment and notes", environment), *details]:
        if len(text) + len(part) < LIMIT:
            text += f"\n\n{part}"
    return text + "\n"


def _prose(text: str) -> str:
    """A sentence with names in backquotes, escaped."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:  # a backquote without a partner is no name
        return _plain(text)
    return "".join(_code(p) if i % 2 else _plain(p) for i, p in enumerate(pieces))


def _plain(text: str) -> str:
    """Text in which nothing means anything to Markdown or HTML, and which mentions nobody."""
    text = _LINKED.sub("\u200b", text.replace("`", "'"))
    text = _SPECIAL.sub(lambda found: "\\" + found[0], html.escape(text, quote=False))
    return _LEADING.sub(lambda found: f"&#8203;{found[0]}", text)


def _code(name: str) -> str:
    """A name in code, also inside a table (where a bar would end the cell even in backquotes)."""
    return f"<code>{_IN_CODE.sub(lambda found: f'&#{ord(found[0])};', name)}</code>"


def _bullets(lines: Iterable[Line]) -> str:
    rows = []
    for line in lines:
        inner = line.indent > 2  # has a dash of its own in plain text; one will do
        text = line.text.removeprefix("- ") if inner else line.text
        rows.append(f"{'  ' * inner}- {_prose(text)}")
    return "\n".join(rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _divergences(report: Report, page: Page) -> str:
    found = report.divergences
    if not found:
        return ""
    heads = ("phase", "to blame", "ratio", "verdict", "cause")
    table = _table(heads, (_divergence(report, d, page) for d in found[:ROWS]))
    hidden = len(found) - ROWS
    return table + (f"\n\nand {hidden} more (all are in report.json)" if hidden > 0 else "")


def _divergence(report: Report, d: Divergence, page: Page) -> list[str]:
    cause = oneline.cause_text(d.causes[0], page) if d.causes else ""
    return [
        words.PASS[d.phase],
        _prose(words.blamed(d, page, row=words.row_of(report, d))),
        words.ratio_text(d.ratio),
        d.verdict,
        _prose(cause) or "not known",
    ]


def _coverage(report: Report, page: Page) -> str:
    title, *lines = headline.coverage(report, page)
    text = f"**{title.text}**\n\n{_bullets(lines)}"
    for extra in (probes.probes(report, page), probes.blind_spots(report, page)):
        if extra:
            text += "\n\n" + _folded(_plain(extra[0].text), _bullets(extra[1:]))
    return text


def _sites(rows: Sequence[SiteResult], page: Page) -> str:
    """The largest ratios of a phase, in execution order."""
    top = sorted(rows, key=lambda s: words.magnitude(s.ratio), reverse=True)[:ROWS]
    shown = [row for row in rows if any(row is one for one in top)]
    heads = ("site", "shape", "error", page.unit.short, "ratio", "verdict")
    count = f"{len(rows)}" if len(shown) == len(rows) else f"{len(shown)} largest of {len(rows)}"
    return _folded(
        f"{words.PASS[rows[0].phase]} ({count})", _table(heads, (_site(s, page) for s in shown))
    )


def _site(row: SiteResult, page: Page) -> list[str]:
    before, name = words.label(row)
    shapes = dict.fromkeys(str(shape) for shape in words.shapes(row))
    return [
        before + _code(page.clean(name)),
        _plain(" / ".join(shapes)),
        "" if row.metrics is None else words.error_text(row.metrics.rel_l2),
        words.error_text(row.noise_floor),
        words.ratio_text(row.ratio),
        words.verdict_text(row, page.unit),
    ]
