"""The pictures of one site: where it differs, and the histograms of both sides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crosscheck.report.html.frame import Axis, Frame, frame, nice, power
from crosscheck.results import HeatMap, Histogram, Profile, SiteDetail

__all__ = ["Bars", "Chart", "Heat", "Pictures", "pictures"]

LEVELS = 9
WIDTH = 300.0
ERRORS = "absolute error against the float64 oracle"


@dataclass(frozen=True)
class Heat:
    """A heat map: for each level from 1 to 9 the path of its cells, in units of a cell."""

    frame: Frame
    transform: str
    paths: Sequence[tuple[int, str]]
    title: str
    caption: str


@dataclass(frozen=True)
class Bars:
    """The profile of one axis: bars in a box of ``count`` by 1."""

    title: str
    count: int
    path: str
    last: int
    note: str


@dataclass(frozen=True)
class Chart:
    """A histogram of both sides, as outlines in the frame's own units."""

    frame: Frame
    reference: str
    candidate: str
    title: str
    note: str


@dataclass(frozen=True)
class Pictures:
    """All that is drawn of one site; what cannot be drawn is None."""

    heat: Heat | None
    bars: Sequence[Bars]
    values: Chart | None
    errors: Chart | None


def pictures(detail: SiteDetail, prefix: str) -> Pictures:
    """Draw what is known of a site; ``prefix``: of the ids."""
    heat, values, errors = detail.heat, detail.values, detail.errors
    what = "changes of the parameter" if detail.phase == "update" else "values"
    return Pictures(
        None if heat is None else _heat(heat, f"{prefix}h"),
        [_bars(profile) for profile in detail.profiles],
        None if values is None else _chart(values, what, f"{prefix}v"),
        None if errors is None else _chart(errors, ERRORS, f"{prefix}e"),
    )


# -- where -----------------------------------------------------------------------------------------


def _heat(heat: HeatMap, prefix: str) -> Heat:
    rows, columns = len(heat.cells), len(heat.cells[0])
    left, top, right, bottom = 34.0, 6.0, 8.0, 20.0
    inner = WIDTH - left - right
    tall = inner * min(max(rows / columns, 0.3), 1.0)
    drawn = frame(
        WIDTH,
        tall + top + bottom,
        _indices(heat.column_length),
        _indices(heat.row_length, down=True),
        margins=(left, top, right, bottom),
        prefix=prefix,
    )
    x, y, width, height = drawn.box
    return Heat(
        frame=drawn,
        transform=f"translate({x:g} {y:g}) scale({width / columns:.4f} {height / rows:.4f})",
        paths=[(level, path) for level in range(1, LEVELS + 1) if (path := _cells(heat, level))],
        title=f"where: axis {heat.rows} down, axis {heat.columns} across",
        caption=_size(heat, rows, columns),
    )


def _indices(length: int, *, down: bool = False) -> Axis:
    """An axis of indices, each half a step from its neighbours' borders."""
    low, high = -0.5, length - 0.5
    ticks = nice(0, length - 1, whole=True) if length > 1 else [(0.0, "0")]
    return Axis(high, low, ticks) if down else Axis(low, high, ticks)


def _cells(heat: HeatMap, level: int) -> str:
    """The cells of one level, neighbours of a row as one."""
    path = []
    for y, row in enumerate(heat.cells):
        start = None
        for x, cell in enumerate([*row, -1.0]):
            inside = cell > 0 and math.ceil(cell * LEVELS) == level
            if inside and start is None:
                start = x
            elif not inside and start is not None:
                path.append(f"M{start} {y}h{x - start}v1H{start}z")
                start = None
    return "".join(path)


def _size(heat: HeatMap, rows: int, columns: int) -> str:
    text = f"{heat.row_length} by {heat.column_length}"
    if (rows, columns) == (heat.row_length, heat.column_length):
        return text
    return f"{text}, in {rows} by {columns} cells"


def _bars(profile: Profile) -> Bars:
    top = max(profile.shares) or 1.0
    peak = profile.shares.index(max(profile.shares))
    count = len(profile.shares)
    path = "".join(
        f"M{i} 1V{1 - share / top:.3f}h1V1z" for i, share in enumerate(profile.shares) if share
    )
    start, stop = (-(-i * profile.length // count) for i in (peak, peak + 1))
    place = f"index {start}" if stop - start == 1 else f"indices {start} to {stop - 1}"
    return Bars(
        title=f"axis {profile.axis}",
        count=count,
        path=path,
        last=profile.length - 1,
        note=f"most at {place}: {top:.0%}".replace("%", " %"),
    )


# -- how much --------------------------------------------------------------------------------------


def _chart(h: Histogram, title: str, prefix: str) -> Chart:
    if h.unit == "log10":
        ticks = _powers(h.low, h.high)
    else:
        ticks = nice(h.low, h.high)
    top = max([*h.reference, *h.candidate, 1])
    drawn = frame(
        WIDTH,
        104.0,
        Axis(h.low, h.high, ticks),
        Axis(0.0, float(top)),
        margins=(8.0, 6.0, 8.0, 20.0),
        prefix=prefix,
    )
    sides = [_outline(counts, h, drawn) for counts in (h.reference, h.candidate)]
    return Chart(drawn, sides[0], sides[1], title, _note(h))


def _powers(low: float, high: float) -> list[tuple[float, str]]:
    first, last = math.ceil(low), math.floor(high)
    every = max(1, math.ceil((last - first + 1) / 5))
    return [(float(e), power(e)) for e in range(first, last + 1) if e % every == 0]


def _outline(counts: Sequence[int], h: Histogram, drawn: Frame) -> str:
    """Steps from bin to bin, closed at the bottom."""
    bottom = drawn.y(0.0)
    path = [f"M{drawn.x(h.low):g} {bottom:g}"]
    for i, count in enumerate(counts):
        right = drawn.x(h.low + (h.high - h.low) * (i + 1) / len(counts))
        path.append(f"V{drawn.y(float(count)):g}H{right:g}")
    return "".join([*path, f"V{bottom:g}z"])


def _note(h: Histogram) -> str:
    notes = []
    if any(h.zeros):
        ours, theirs = h.zeros
        notes.append(f"exactly zero: {ours} of the reference, {theirs} of the candidate")
    if h.sampled:
        notes.append(f"of {h.sampled} elements drawn at random")
    return "; ".join(notes)
