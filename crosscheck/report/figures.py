"""Stage 10, report: bars of ratio by site, one column a site (or the largest of several)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from crosscheck.report import words
from crosscheck.report.words import Page
from crosscheck.results import Phase, SiteResult

__all__ = ["figure"]

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-=+*#@"
# Every step is a factor of 4, placed so that 8 and 32 are steps: the height tells the verdict.
STEPS = (0.5, 2.0, 8.0, 32.0, 128.0, 512.0, 2048.0)
# With a tolerance the ratio that matters is 1.
TOLERANCE_STEPS = (0.0625, 0.25, 1.0, 4.0, 16.0, 64.0, 256.0)
TITLES: tuple[tuple[Phase, str], ...] = (
    ("forward", "forward"),
    ("backward", "backward"),
    ("parameter_gradient", "parameter gradients"),
)
INDENT = "    "
STYLES = {" ": "green", "?": "yellow", "!": "red"}


@dataclass(frozen=True)
class Column:
    """One column: how high (0 to 7) and its mark (``" "``, ``"?"`` suspect, ``"!"`` diverges)."""

    level: int
    mark: str


def binned(ratios: Sequence[float], width: int) -> list[float]:
    """At most ``width`` numbers: the largest of each of as many nearly equal runs."""
    n = len(ratios)
    bins = min(n, width)
    return [max(ratios[i * n // bins : (i + 1) * n // bins]) for i in range(bins)]


def columns(ratios: Sequence[float], page: Page) -> list[Column]:
    """What to draw for ``ratios`` on ``page``."""
    steps = _steps(page)
    made = []
    for ratio in binned([words.magnitude(r) for r in ratios], page.width - len(INDENT)):
        mark = " "
        if ratio > page.unit.suspect:
            mark = "!" if ratio > page.unit.diverge else "?"
        made.append(Column(sum(ratio > step for step in steps), mark))
    return made


def figure(groups: dict[Phase, list[SiteResult]], page: Page) -> list[Text]:
    """Bars for the forward and the backward pass and the gradients, and how to read them."""
    title = f"ratio to {page.unit.name} by site, in execution order"
    lines = [Text(row, style="bold") for row in page.wrap(title)]
    for phase, title in TITLES:
        lines += _bars(title, groups.get(phase, []), page)
    return [*lines, *_legend(page)]


def _steps(page: Page) -> tuple[float, ...]:
    return STEPS if page.unit.suspect > 1.0 else TOLERANCE_STEPS


def _bars(title: str, rows: Sequence[SiteResult], page: Page) -> list[Text]:
    if not rows:
        return [_headed(title, Text("nothing compared", style="dim"))]
    drawn = columns([_height(s, page) for s in rows], page)
    glyphs = ASCII_BARS if page.ascii else BARS
    bars, marks = Text(INDENT), Text(INDENT)
    for column in drawn:
        bars.append(glyphs[column.level], style=STYLES[column.mark])
        marks.append(column.mark, style=STYLES[column.mark])
    head = _headed(title, _peak(title, rows, len(drawn), page))
    return [head, bars, marks] if marks.plain.strip() else [head, bars]


def _height(site: SiteResult, page: Page) -> float:
    """Its ratio; what agrees for another reason (a repetition on fresh inputs) bears no mark."""
    return min(site.ratio, page.unit.suspect) if site.verdict == "agree" else site.ratio


def _headed(title: str, text: Text) -> Text:
    return Text("  ").append(f"{title}: ", style="bold").append_text(text)


def _peak(title: str, rows: Sequence[SiteResult], bins: int, page: Page) -> Text:
    """How many values, how many to a column, the largest and where: as much as there is room."""
    peak = max(rows, key=lambda s: words.magnitude(s.ratio))
    most = f"largest {words.ratio_text(peak.ratio)} at "
    parts = [words.counted(len(rows), "value", "values")]
    if bins < len(rows):
        parts.append(f"{_bin_size(len(rows), bins)} a column")
    room = page.width - len(title) - 4
    name = min(16, len(words.short_place(peak, page, page.width)))
    while parts and len(", ".join([*parts, most])) > room - name:
        parts.pop(0)
    most = ", ".join([*parts, most])
    if room - len(most) < 8:
        most = most.removeprefix("largest ")
    place = words.short_place(peak, page, room - len(most))
    return Text(most).append(place, style="bold")


def _bin_size(n: int, bins: int) -> str:
    return str(n // bins) if n % bins == 0 else f"{n // bins} or {n // bins + 1}"


def _legend(page: Page) -> list[Text]:
    glyphs = ASCII_BARS if page.ascii else BARS
    pieces = [f"{g} {s:g}" for g, s in zip(glyphs, _steps(page), strict=False)]
    scale = f"  up to: {'  '.join(pieces)}  {glyphs[-1]} more"
    marks = page.unit.marks
    if len(scale) + len(marks) + 4 <= page.width:
        return [Text(f"{scale}    {marks}", style="dim")]
    rows = page.wrap(scale.strip(), 2) + page.wrap(marks, 2)
    return [Text(row, style="dim") for row in rows]
