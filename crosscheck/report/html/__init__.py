"""Stage 10, report: one self-contained HTML page; nothing is loaded from anywhere.

| module | gives |
|---|---|
| `pages` | templates, with every value escaped; the stylesheet and the script |
| `view` | the texts and numbers that a template puts in their places |
| `failure` | the page of a check that could not be made |
| `lanes`, `charts` | the figure of ratios by site; heat maps, profiles and histograms of a site |
| `frame` | axes drawn by matplotlib, as SVG for the inside of a page |
"""

from __future__ import annotations

from crosscheck.report.html.pages import page
from crosscheck.results import Report

__all__ = ["render", "render_failure"]


def render(report: Report) -> str:
    """``report`` as an HTML document: verdict, figure, divergences, sites, coverage, the rest."""
    from crosscheck.report.html.view import of_report  # and with it matplotlib

    return page("report.html", **of_report(report))


def render_failure(error: BaseException, *, name: str = "", command: str = "") -> str:
    """The page of an error that ended a check.

    Args:
        name: of the check.
        command: for a shell, makes it again.
    """
    from crosscheck.report.html.failure import of_failure

    return page("failure.html", **of_failure(error, name=name, command=command))
