"""Stage 10, report: tables of the sites that a reader asks for first."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from crosscheck.report import words
from crosscheck.report.words import Page
from crosscheck.results import Report, SiteResult

__all__ = ["around", "every", "largest"]

NEIGHBOURS = 4
LARGEST = 3
SITE = 28  # the site column is not squeezed below this while another column can go
EXPENDABLE = ("shape", "floor", "free", "error")
STYLES = {"introduced": "red", "suspect": "yellow", "inherited": "cyan", "ok": "green"}


def around(report: Report, row: SiteResult, page: Page) -> list[Text | Table]:
    """The neighbours of ``row`` in its phase, in execution order."""
    same = [s for s in report.sites if s.phase == row.phase]
    index = next(i for i, s in enumerate(same) if s is row)
    start, stop = max(index - NEIGHBOURS, 0), index + NEIGHBOURS + 1
    shown = same[start:stop]
    title = Text(f"around it: {words.PASS[row.phase]}", style="bold")
    title.append(f", {start + 1} to {start + len(shown)} of {len(same)}", style="dim")
    return [title, _table([(None, shown)], page, marked=row), *_legend(shown, page)]


def largest(report: Report, page: Page) -> list[Text | Table]:
    """The few largest ratios of each phase."""
    groups: list[tuple[str | None, Sequence[SiteResult]]] = []
    for phase, rows in words.by_phase(report.sites).items():
        top = sorted(rows, key=lambda s: words.magnitude(s.ratio), reverse=True)[:LARGEST]
        if any(words.magnitude(row.ratio) > 0 for row in top):  # equal bits need no table
            groups.append((words.PASS[phase], top))
    if not groups:
        return []
    shown = [row for _, members in groups for row in members]
    title = Text("largest ratios", style="bold")
    return [title, _table(groups, page), *_legend(shown, page)]


def every(report: Report, page: Page, marked: SiteResult | None) -> list[Text | Table]:
    """All comparisons, phase by phase, in execution order."""
    groups = [(words.PASS[phase], rows) for phase, rows in words.by_phase(report.sites).items()]
    title = Text(f"all comparisons ({len(report.sites)})", style="bold")
    table = _table(groups, page, marked=marked)
    return [title, table, *_legend(report.sites, page)]


def _legend(rows: Sequence[SiteResult], page: Page) -> list[Text]:
    verdicts = {words.verdict_text(row, page.unit) for row in rows}
    lines = []
    if "free" in _fitting([_cells(row, page) for row in rows], page):
        most = " (at most)" if all(row.verdict == "agree" for row in rows) else ""
        lines.append(f"ratio{most}: given the reference's inputs; free: each side given its own")
    if "inherited" in verdicts:
        lines.append("inherited: right for its inputs, which are wrong")
    both = "; ".join(lines)
    if len(both) + 2 <= page.width:
        lines = [both] if both else []
    return [Text(row, style="dim") for line in lines for row in page.wrap(line, 2)]


def _table(
    groups: Sequence[tuple[str | None, Sequence[SiteResult]]],
    page: Page,
    *,
    marked: SiteResult | None = None,
) -> Table:
    rows = [row for _, members in groups for row in members]
    cells = {id(row): _cells(row, page) for row in rows}
    names = _fitting(list(cells.values()), page)
    widths = {n: max(len(n), *(len(c[n]) for c in cells.values())) for n in names}
    room = page.width - 2 - sum(w + 2 for w in widths.values())
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    titles = [len(title) for title, _ in groups if title is not None]
    site = 2 + max([_longest(rows, page, room), *titles])
    table.add_column("  site", width=site, no_wrap=True, overflow="crop")
    for name in names:
        table.add_column(
            _heading(name, page),
            justify="left" if name in ("shape", "verdict") else "right",
            width=widths[name],
            no_wrap=True,
            overflow="crop",
        )
    for title, members in groups:
        if title is not None:
            table.add_row(Text(f"  {title}", style="dim"))
        for row in members:
            table.add_row(*_row(row, cells[id(row)], names, page, room, row is marked))
    return table


def _row(
    row: SiteResult,
    cells: dict[str, str],
    names: Sequence[str],
    page: Page,
    room: int,
    marked: bool,
) -> list[Text]:
    style = STYLES[cells["verdict"]]
    site = Text("> " if marked else "  ", style=style)
    site.append(words.short_label(row, page, room), style="bold" if marked else "")
    coloured = ("ratio", "verdict") if cells["verdict"] != "inherited" else ("free", "verdict")
    return [site, *(Text(cells[n], style=style if n in coloured else "") for n in names)]


def _cells(row: SiteResult, page: Page) -> dict[str, str]:
    reference, candidate = words.shapes(row)
    differ = row.metrics is None and reference != candidate
    return {
        "shape": f"{reference} / {candidate}" if differ else str(reference),
        "error": "-" if row.metrics is None else words.error_text(row.metrics.rel_l2),
        "floor": words.error_text(row.noise_floor),
        "ratio": words.ratio_text(row.ratio),
        "free": "-" if row.free_ratio is None else words.ratio_text(row.free_ratio),
        "verdict": words.verdict_text(row, page.unit),
    }


def _heading(name: str, page: Page) -> str:
    return "rtol" if name == "floor" and page.unit.short == "tolerance" else name


def _fitting(cells: Sequence[dict[str, str]], page: Page) -> list[str]:
    """The columns that leave enough room for the site; the least needed go first."""
    names = ["shape", "error", "floor", "ratio", "free", "verdict"]
    if all(c["free"] in ("-", c["ratio"]) for c in cells):
        names.remove("free")  # recorded runs were free, and there is no other ratio
    for expendable in EXPENDABLE:
        used = sum(2 + max(len(n), *(len(c[n]) for c in cells)) for n in names)
        if page.width - 2 - used >= (SITE if expendable != "error" else SITE // 2):
            break
        if expendable in names:
            names.remove(expendable)
    return names


def _longest(rows: Sequence[SiteResult], page: Page, room: int) -> int:
    return max(len(words.short_label(row, page, room)) for row in rows)
