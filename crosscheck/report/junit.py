"""Stage 10, report: JUnit XML, for a CI system: one test case for each phase.

A phase that has a divergence is a failure whose message is the first one and its cause; a phase in
which a value stands out that is blamed on nothing fails as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from crosscheck.report import headline, oneline, words
from crosscheck.report.words import Page, Unit
from crosscheck.results import PHASES, Divergence, Phase, Report, SiteResult

__all__ = ["render"]

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(report: Report) -> str:
    """``report`` as one ``testsuite``; a report that compared nothing is an error in it."""
    page = Page(width=10_000, unit=Unit.of(report))
    name = _clean(report.name or "crosscheck")
    blamed = {phase: [d for d in report.divergences if d.phase == phase] for phase in PHASES}
    rows = words.by_phase(report.sites)
    phases = [phase for phase in PHASES if phase in rows or blamed[phase]]
    cases = [_case(name, p, rows.get(p, []), blamed[p], page) for p in phases]
    if report.verdict != "agree" and not any(case.find("failure") is not None for case in cases):
        cases.append(_whole(name, "failure", report.verdict, oneline.summary(report)))
    elif not report.sites:
        cases.append(_whole(name, "error", "nothing compared", oneline.summary(report)))
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": str(sum(case.find("error") is not None for case in cases)),
    }
    root = ET.Element("testsuites", counts)
    suite = ET.SubElement(root, "testsuite", {"name": name, **counts})
    properties = ET.SubElement(suite, "properties")
    for key, value in _facts(report):
        ET.SubElement(properties, "property", name=key, value=_clean(value))
    suite.extend(cases)
    text = [line.text for line in [*headline.headline(report, page), *_rest(report, page)]]
    ET.SubElement(suite, "system-out").text = _clean("\n".join(text))
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _rest(report: Report, page: Page) -> list[words.Line]:
    return [*headline.coverage(report, page), *headline.environment(report, page)]


def _facts(report: Report) -> list[tuple[str, str]]:
    return [
        ("verdict", report.verdict),
        ("seed", str(report.seed)),
        ("reference", f"{report.reference.framework} {report.reference.version}"),
        ("candidate", f"{report.candidate.framework} {report.candidate.version}"),
        ("aligned", str(report.coverage.aligned)),
        ("not_compared", str(len(report.coverage.not_compared))),
    ]


def _case(
    name: str,
    phase: Phase,
    rows: Sequence[SiteResult],
    divergences: Sequence[Divergence],
    page: Page,
) -> ET.Element:
    case = ET.Element("testcase", {"classname": name, "name": words.PASS[phase], "time": "0"})
    bad = [row for row in rows if row.verdict != "agree"]
    if divergences:
        lines = [_line(d, words.row_among(rows, d), page) for d in divergences]
        certain = any(d.verdict == "diverge" for d in divergences)
        _failure(case, "diverge" if certain else "suspect", lines)
    elif bad:
        lines = [f"{words.described(s, page)}: ratio {words.ratio_text(s.ratio)}" for s in bad]
        certain = any(s.verdict == "diverge" for s in bad)
        _failure(case, "diverge" if certain else "suspect", lines)
    return case


def _failure(case: ET.Element, kind: str, lines: Sequence[str]) -> None:
    attributes = {"message": _clean(lines[0]), "type": kind}
    ET.SubElement(case, "failure", attributes).text = _clean("\n".join(lines))


def _whole(name: str, tag: str, kind: str, message: str) -> ET.Element:
    case = ET.Element("testcase", {"classname": name, "name": "verdict", "time": "0"})
    ET.SubElement(case, tag, {"message": _clean(message), "type": kind})
    return case


def _line(d: Divergence, row: SiteResult | None, page: Page) -> str:
    blamed, site = words.blamed(d, page, row=row), page.name(d.site)
    text = f"{d.verdict} in {blamed}" + (f", seen at {site}" if site != blamed else "")
    text += f", ratio {words.ratio_text(d.ratio)}"
    return f"{text}: {oneline.cause_text(d.causes[0], page)}" if d.causes else text


def _clean(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return _NOT_XML.sub("", text)
