"""The figure of a page: ratio by site in execution order, a lane for each pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crosscheck.report import words
from crosscheck.report.html.frame import Axis, Frame, frame, power
from crosscheck.report.words import Page
from crosscheck.results import Phase, SiteResult

__all__ = ["Lane", "Mark", "lanes", "legend"]

WIDTH, HEIGHT = 860.0, 165.0
MARGINS = (46.0, 10.0, 74.0, 8.0)
LOWEST, HIGHEST = 0.05, 1e9  # what lies beyond is drawn there
LEGEND = {
    "ok": "agrees",
    "suspect": "suspect",
    "introduced": "introduced there",
    "inherited": "inherited: right for its inputs, which are wrong; drawn at its free ratio",
}
CROWDED = 250  # so many marks are drawn smaller
LANES: tuple[tuple[str, tuple[Phase, ...]], ...] = (
    ("weights", ("weights",)),
    ("forward pass", ("forward", "loss")),
    ("backward pass", ("backward",)),
    ("parameter gradients", ("parameter_gradient",)),
    ("updated parameters", ("update",)),
    ("buffers", ("buffer",)),
)


@dataclass(frozen=True)
class Mark:
    """One site: where it is drawn, and where a click leads.

    Attributes:
        free: the place of its free ratio, where that is drawn as well (inherited errors).
    """

    href: str
    x: float
    y: float
    free: float | None
    verdict: str
    title: str


@dataclass(frozen=True)
class Lane:
    """One pass.

    Attributes:
        guides: (place, text, colour) of the lines at which a verdict changes.
    """

    title: str
    summary: str
    frame: Frame
    guides: Sequence[tuple[float, str, str]]
    marks: Sequence[Mark]
    crowded: bool


def lanes(sites: Sequence[SiteResult], page: Page, prefix: str = "lane") -> list[Lane]:
    """A lane for every pass that has values; weights only where they are not simply equal.

    Every site's mark leads to ``#s`` and its number in ``sites``.
    """
    up = _scale(sites, page)
    guides = _guides(page)
    made = []
    for i, (title, phases) in enumerate(LANES):
        rows = [(n, s) for n, s in enumerate(sites) if s.phase in phases]
        if not rows or (phases == ("weights",) and all(s.ratio == 0 for _, s in rows)):
            continue
        across = Axis(-0.7, max(len(rows), 8) - 0.3)
        drawn = frame(
            WIDTH,
            HEIGHT,
            across,
            up,
            margins=MARGINS,
            guides=[(value, colour) for value, _, colour in guides],
            prefix=f"{prefix}{i}",
        )
        marks = [_mark(place, n, s, drawn, page) for place, (n, s) in enumerate(rows)]
        marks.sort(key=lambda mark: mark.verdict != "ok")  # what stands out lies on top
        summary = _summary([s for _, s in rows], page)
        labels = [(drawn.y(value), text, colour) for value, text, colour in guides]
        made.append(Lane(title, summary, drawn, labels, marks, len(marks) > CROWDED))
    return made


def legend(drawn: Sequence[Lane]) -> list[tuple[str, str]]:
    """(verdict, what its mark means) for the marks that there are."""
    there = {mark.verdict for lane in drawn for mark in lane.marks}
    return [(verdict, label) for verdict, label in LEGEND.items() if verdict in there]


def _scale(sites: Sequence[SiteResult], page: Page) -> Axis:
    """From a ratio too small to tell to the largest, in whole powers of ten."""
    ratios = [r for s in sites for r in (s.ratio, s.free_ratio if _inherited(s, page) else 0.0)]
    finite = [r for r in ratios if r is not None and math.isfinite(r)]
    beyond = any(r is not None and not r <= HIGHEST for r in ratios)
    largest = max([page.unit.diverge * 3, *(min(r, HIGHEST) for r in finite)])
    last = max(2, math.ceil(math.log10(largest)))
    every = 1 if last <= 3 else 2 if last <= 7 else 3
    high = 10.0 ** (last + 1) if beyond else 1.3 * 10.0**last
    top = last + 1 - every if beyond else last
    ticks = [(10.0**e, power(e)) for e in range(-1, top + 1) if e % every == 0]
    if beyond:
        ticks.append((high, "more"))
    return Axis(LOWEST, high, ticks, log=True)


def _guides(page: Page) -> list[tuple[float, str, str]]:
    unit = page.unit
    diverge = (unit.diverge, f"{unit.diverge:g} diverges", "diverge")
    if unit.suspect == unit.diverge:
        return [diverge]
    return [(unit.suspect, f"{unit.suspect:g} suspect", "suspect"), diverge]


def _inherited(site: SiteResult, page: Page) -> bool:
    return words.verdict_text(site, page.unit) == "inherited"


def _mark(place: int, number: int, site: SiteResult, drawn: Frame, page: Page) -> Mark:
    verdict = words.verdict_text(site, page.unit)
    before, name = words.label(site)
    title = f"{before}{page.short(name, 160)}: ratio {words.ratio_text(site.ratio)}"
    free = None
    if verdict == "inherited" and site.free_ratio is not None:
        free = drawn.y(words.magnitude(site.free_ratio))
        title += f", free {words.ratio_text(site.free_ratio)}"
    y = drawn.y(words.magnitude(site.ratio))
    return Mark(f"#s{number}", drawn.x(place), y, free, verdict, f"{title} ({verdict})")


def _summary(rows: Sequence[SiteResult], page: Page) -> str:
    peak = max(rows, key=lambda s: words.magnitude(s.ratio))
    count = words.counted(len(rows), "value", "values")
    return f"{count}, largest ratio {words.ratio_text(peak.ratio)} at {words.described(peak, page)}"
