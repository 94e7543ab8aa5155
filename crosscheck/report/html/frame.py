"""Axes drawn by matplotlib, as SVG that lies inside a page: no name of the page's is in its way.

Matplotlib lays out scale, ticks and guide lines; what is drawn into them is up to the caller, in
the coordinates that `Frame.x` and `Frame.y` give: marks that are links take an eighth of the bytes
so. Colours are those of the stylesheet, so that they follow light and dark.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

__all__ = ["Axis", "Frame", "frame", "nice", "power"]

# Colours that stand for the stylesheet's until the SVG is written.
_COLOURS = {"line": "#000001", "soft": "#000002", "suspect": "#000003", "diverge": "#000004"}
_DPI = 72  # matplotlib's SVG is in points
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "crosscheck",
    "font.size": 9,
    "text.parse_math": False,
    "text.usetex": False,  # whatever the user's own style says
    "axes.grid": False,
    "path.sketch": None,
    "axes.linewidth": 0.8,
    "axes.edgecolor": _COLOURS["line"],
    "xtick.color": _COLOURS["line"],
    "ytick.color": _COLOURS["line"],
    "xtick.labelcolor": _COLOURS["soft"],
    "ytick.labelcolor": _COLOURS["soft"],
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}


@dataclass(frozen=True)
class Axis:
    """From ``low`` to ``high``, with labels at some places; ``log``: base 10."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]] = ()
    log: bool = False

    def share(self, value: float) -> float:
        """Where ``value`` lies, 0 at ``low`` and 1 at ``high``; what is beyond lies there."""
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            value = math.log10(value) if value > self.low else low
        else:
            low, high = self.low, self.high
        return min(max((value - low) / (high - low), 0.0), 1.0)


@dataclass(frozen=True)
class Frame:
    """Drawn axes.

    Attributes:
        width, height: of the picture, its viewBox.
        box: left, top, width and height of what the axes enclose.
        markup: the contents of the ``svg`` element, safe as it is.
    """

    width: float
    height: float
    box: tuple[float, float, float, float]
    across: Axis
    up: Axis
    markup: Markup

    def x(self, value: float) -> float:
        """The horizontal place of a value."""
        return round(self.box[0] + self.box[2] * self.across.share(value), 1)

    def y(self, value: float) -> float:
        """The vertical place of a value, growing downwards as in any picture."""
        return round(self.box[1] + self.box[3] * (1.0 - self.up.share(value)), 1)


def frame(
    width: float,
    height: float,
    across: Axis,
    up: Axis,
    *,
    margins: tuple[float, float, float, float],
    guides: Sequence[tuple[float, str]] = (),
    prefix: str,
) -> Frame:
    """Draw axes.

    Args:
        width, height: in points.
        margins: left, top, right, bottom, in points.
        guides: (value of ``up``, colour of the stylesheet) of horizontal lines.
        prefix: of the ids, different for every picture of a page.
    """
    left, top, right, bottom = margins
    box = (left, top, width - left - right, height - top - bottom)
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        figure.patch.set_visible(False)
        place = (left / width, bottom / height, box[2] / width, box[3] / height)
        axes = figure.add_axes(place)
        axes.patch.set_visible(False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(across.low, across.high)
        if up.log:
            axes.set_yscale("log")
        axes.set_ylim(up.low, up.high)
        for axis, given in ((axes.xaxis, across), (axes.yaxis, up)):
            axis.set_major_locator(FixedLocator([value for value, _ in given.ticks]))
            axis.set_major_formatter(FixedFormatter([text for _, text in given.ticks]))
            axis.set_minor_locator(NullLocator())
        if not up.ticks:
            axes.spines["left"].set_visible(False)
        for value, colour in guides:
            axes.axhline(value, color=_COLOURS[colour], linewidth=0.9, dashes=(3, 3))
        written = io.StringIO()
        FigureCanvasSVG(figure).print_svg(  # type: ignore[no-untyped-call]
            written, metadata=dict.fromkeys(_METADATA)
        )
    return Frame(width, height, box, across, up, Markup(_embedded(written.getvalue(), prefix)))


_METADATA = ("Creator", "Date", "Format", "Type")


def _embedded(svg: str, prefix: str) -> str:
    """The inside of an SVG document, for a page: its own ids, colours and nothing for all of it."""
    inner = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    inner = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", inner, flags=re.S)
    inner = re.sub(r"font-size: [^;\"]+; font-family: [^;\"]+;? ?", "", inner)
    inner = inner.replace("xlink:href", "href").replace(' style=""', "")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', inner))
    inner = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", inner)
    inner = re.sub(r'(id="|href="#|url\(#)(?=[^"])', rf"\g<1>{prefix}-", inner)
    for name, colour in _COLOURS.items():
        inner = inner.replace(colour, f"var(--{name})")
    return re.sub(r"\s*\n\s*", "\n", inner)


def nice(low: float, high: float, *, whole: bool = False) -> list[tuple[float, str]]:
    """A few round numbers between two, and how they are written."""
    values = MaxNLocator(4, integer=whole).tick_values(low, high)
    shown = [float(v) for v in values if low <= v <= high]
    return [(v, f"{v:.6g}".replace("-", "−")) for v in shown]


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(exponent: int) -> str:
    """``0.1``, ``1``, ``10``, ``100``, ``10⁴``."""
    if -2 <= exponent <= 2:
        return f"{10.0**exponent:g}"
    return "10" + str(exponent).translate(_RAISED)
