"""Stage 10, report: what the probes said, and what the check was blind to, in sentences."""

from __future__ import annotations

from crosscheck.report import words
from crosscheck.report.words import Line, Page
from crosscheck.results import Divergence, ProbeResult, Report

__all__ = ["blind_spots", "failure", "probes", "seen_with"]

REASONS = 8  # reasons shown, each with its names
CLOSE = (
    "`randomise=True` (--randomise) and `probes=` (--probes all) close most of these: other "
    "weights, other inputs"
)


def probes(report: Report, page: Page) -> list[Line]:
    """One line for each probe; nothing where none was asked for."""
    if not report.probes:
        return []
    lines = [Line(0, f"probes ({len(report.probes)})", "title")]
    agree = [p for p in report.probes if p.verdict == "agree"]
    if agree:
        lines.append(Line(2, f"agree: {', '.join(page.name(p.name) for p in agree)}"))
    return lines + [Line(2, _told(p, page)) for p in report.probes if p.verdict != "agree"]


def _told(probe: ProbeResult, page: Page) -> str:
    text = f"{page.name(probe.name)} ({page.prose(probe.what)}): {probe.verdict}"
    if probe.first is not None:
        text += f", first at {page.name(probe.first.site)}"
        text += f" ({words.ratio_text(probe.first.ratio)} x {page.unit.name})"
    return f"{text}: {page.prose(probe.reason)}" if probe.reason else text


def seen_with(report: Report, first: Divergence, page: Page) -> list[Line]:
    """Says which probe it took to see ``first``; nothing where the given inputs show it."""
    for probe in report.probes:
        if probe.first is first:
            what = page.prose(probe.what)
            return [Line(2, f"seen with probe {page.name(probe.name)} ({what}), not without")]
    return []


def failure(report: Report, page: Page) -> str:
    """Which probe the candidate failed with, where nothing else is to be said."""
    failed = [p for p in report.probes if p.verdict == "failed"]
    if not failed:
        return ""
    reason = page.prose(failed[0].reason)
    return f"the candidate fails with probe {page.name(failed[0].name)}: {reason}"


def blind_spots(report: Report, page: Page) -> list[Line]:
    """What agreed and could not have differed, by reason."""
    found = report.coverage.blind_spots
    if not found:
        return []
    by_reason: dict[str, list[str]] = {}
    for text in found:
        name, _, why = text.removeprefix("`").partition("`: ")
        by_reason.setdefault(why, []).append(name)
    lines = [Line(0, f"blind spots ({len(found)})", "title")]
    for why, names in list(by_reason.items())[:REASONS]:
        lines.append(Line(2, f"{page.names(names)}: {page.prose(why)}"))
    if len(by_reason) > REASONS:
        lines.append(Line(2, f"and {len(by_reason) - REASONS} more reasons (in report.json)"))
    return [*lines, Line(2, CLOSE, "dim")]
