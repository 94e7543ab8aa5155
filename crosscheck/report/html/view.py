"""What the templates are given: texts and numbers of a report, ready to be put in their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from crosscheck.report import headline, probes, words
from crosscheck.report.html.charts import Pictures, pictures
from crosscheck.report.html.lanes import lanes, legend
from crosscheck.report.words import Line, Page, Unit
from crosscheck.results import (
    Cause,
    Divergence,
    Element,
    Report,
    Side,
    SiteDetail,
    SiteResult,
)

__all__ = ["of_failure_sites", "of_report"]

WIDE = 10_000  # characters: a page scrolls
NAME = 240  # characters of a name in a table; the site's own section has it whole
WHOLE = 1000  # comparisons: with more of them a row has its numbers only


@dataclass(frozen=True)
class Row:
    """One comparison in a table; ``link``: the anchor of its section, if it has one."""

    anchor: str
    link: str
    before: str
    name: str
    shape: str
    error: str
    floor: str
    ratio: str
    free: str
    verdict: str
    first: bool
    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Group:
    """The comparisons of one pass."""

    title: str
    summary: str
    rows: Sequence[Row]
    open: bool


@dataclass(frozen=True)
class Section:
    """A site that was looked into."""

    anchor: str
    title: str
    verdict: str
    ratio: str
    facts: Sequence[tuple[str, str]]
    where: Sequence[str]
    pictures: Pictures
    worst: Sequence[Sequence[str]]
    has_oracle: bool
    statement: str
    causes: Sequence[Cause]
    open: bool


@dataclass(frozen=True)
class Found:
    """One divergence of the list."""

    phase: str
    blamed: str
    site: str
    link: str
    ratio: str
    verdict: str
    statement: str
    causes: Sequence[Cause]


@dataclass(frozen=True)
class Missing:
    """Names or lines of one kind that were not compared."""

    title: str
    lines: Sequence[str]
    names: bool = field(default=True)


def of_report(report: Report) -> dict[str, Any]:
    """Everything that ``report.html`` shows."""
    page = Page(width=WIDE, unit=Unit.of(report))
    sentence, *summary = headline.headline(replace(report, name=""), page)
    details = {d.key: d for d in report.details.sites}
    verdict, _, rest = sentence.text.partition(": ")
    first = report.first_divergence
    marked = words.row_of(report, first) if first is not None else None
    return {
        "report": report,
        "unit": page.unit,
        "verdict": report.verdict,
        "name": page.prose(report.name),
        "sentence": rest or verdict,
        "summary": [line for line in summary if line.tone != "cause"],
        "causes": [line.text for line in summary if line.tone == "cause"],
        "sides": _sides(report),
        **_figure(report.sites, page),
        "divergences": [_found(d, report, page) for d in report.divergences],
        "sections": _sections(report, details, marked, page),
        "groups": _groups(report.sites, page, set(details), marked),
        "coverage": headline.coverage(report, page)[1].text,
        "missing": _missing(report, page),
        "probes": probes.probes(report, page),
        "blind": _blind(report, page),
        "notes": _notes(report, page),
        "environment": [(page.prose(str(k)), page.prose(str(v)))
                        for k, v in report.environment.items()],
        "clean": page.clean,
        "ratio_text": words.ratio_text,
    }  # fmt: skip


def of_failure_sites(compared: Sequence[SiteResult]) -> dict[str, Any]:
    """Figure and table of what had been compared before a side raised."""
    page = Page(width=WIDE)
    return {
        "unit": page.unit,
        **_figure(compared, page),
        "groups": _groups(compared, page, set(), None),
    }


def _figure(sites: Sequence[SiteResult], page: Page) -> dict[str, Any]:
    drawn = lanes(sites, page)
    return {"lanes": drawn, "legend": legend(drawn)}


def _sides(report: Report) -> list[tuple[str, str]]:
    def told(side: Side) -> str:
        return f"{side.framework} {side.version}".strip() + f" on {side.device}"

    return [("reference", told(report.reference)), ("candidate", told(report.candidate))]


# -- sites -----------------------------------------------------------------------------------------


def _groups(
    sites: Sequence[SiteResult], page: Page, looked_into: set[Any], marked: SiteResult | None
) -> list[Group]:
    groups = []
    numbers = {id(site): i for i, site in enumerate(sites)}
    brief = len(sites) > WHOLE
    for phase, rows in words.by_phase(sites).items():
        peak = max(rows, key=lambda s: words.magnitude(s.ratio))
        different = sum(s.verdict != "agree" for s in rows)
        summary = f"{len(rows)} compared, largest ratio {words.ratio_text(peak.ratio)}"
        summary += f", {different} of them not agreeing" if different else ""
        groups.append(
            Group(
                title=words.PASS[phase],
                summary=summary,
                rows=[
                    _row(s, numbers[id(s)], page, s.key in looked_into, s is marked, brief)
                    for s in rows
                ],
                open=marked is not None and marked.phase == phase,
            )
        )
    return groups


def _row(
    s: SiteResult, number: int, page: Page, looked_into: bool, first: bool, brief: bool
) -> Row:
    before, name = words.label(s)
    ours, theirs = words.shapes(s)
    return Row(
        anchor=f"r{number}" if looked_into else f"s{number}",
        link=f"s{number}" if looked_into else "",
        before=before,
        name=page.short(name, NAME),
        shape=_shape(ours) if ours == theirs else f"{_shape(ours)} / {_shape(theirs)}",
        error="" if s.metrics is None else words.error_text(s.metrics.rel_l2),
        floor=words.error_text(s.noise_floor),
        ratio=words.ratio_text(s.ratio),
        free="" if s.free_ratio is None else words.ratio_text(s.free_ratio),
        verdict=words.verdict_text(s, page.unit),
        first=first,
        facts=() if brief or looked_into else _facts(s, page),
    )


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "scalar"


def _facts(s: SiteResult, page: Page) -> list[tuple[str, str]]:
    """Names and values of everything that is known of a comparison."""
    ours, theirs = words.shapes(s)
    facts = [
        ("reference", f"{page.clean(s.reference)} · {page.clean(s.dtype)} · {_shape(ours)}"),
        (
            "candidate",
            f"{page.clean(s.candidate)} · {page.clean(s.candidate_dtype or s.dtype)} · "
            f"{_shape(theirs)}",
        ),
    ]
    m = s.metrics
    if m is not None:
        facts += [
            ("relative error", f"{words.error_text(m.rel_l2)} (2-norm)"),
            ("largest difference", words.error_text(m.max_abs) + _place(s)),
            ("cosine", _cosine(m.cosine)),
        ]
        if m.nonfinite:
            differ = f", of which {m.nonfinite_mismatch} differ"
            facts.append(("NaN or Inf", f"{m.nonfinite}{differ}"))
    facts += [(page.unit.name.removeprefix("the "), words.error_text(s.noise_floor))]
    facts += [("ratio", words.ratio_text(s.ratio))]
    if s.free_ratio is not None:
        facts.append(("free ratio", words.ratio_text(s.free_ratio)))
    if s.aligned_by:
        facts.append(("paired by", page.clean(s.aligned_by)))
    return facts + [("note", page.prose(note)) for note in s.notes]


def _cosine(cosine: float) -> str:
    """Written as what it lacks to 1 where that is little."""
    return f"1 − {1 - cosine:.1e}" if 0.99 < cosine < 1 else f"{cosine:.3g}"


def _place(s: SiteResult) -> str:
    m = s.metrics
    if m is None or m.worst_index is None or not (m.max_abs or m.nonfinite_mismatch):
        return ""
    at = f", at {m.worst_index}" if m.worst_index else ""
    if m.worst_reference is None or m.worst_candidate is None:
        return at
    ours, theirs = words.values_text(m.worst_reference, m.worst_candidate)
    return f"{at}: {theirs} for {ours}"


# -- sites that were looked into -------------------------------------------------------------------


def _sections(
    report: Report, details: dict[Any, SiteDetail], marked: SiteResult | None, page: Page
) -> list[Section]:
    explained: dict[int, Divergence] = {}
    for divergence in report.divergences:
        row = words.row_of(report, divergence)
        if row is not None:
            explained.setdefault(id(row), divergence)
    made = []
    for i, s in enumerate(report.sites):
        found = explained.get(id(s))
        if s.key in details:
            made.append(_section(s, i, details[s.key], found, page, opened=s is marked))
    return sorted(made, key=lambda section: section.verdict not in ("introduced", "suspect"))


def _section(
    s: SiteResult, i: int, detail: SiteDetail, found: Divergence | None, page: Page, opened: bool
) -> Section:
    oracle = any(element.oracle is not None for element in detail.worst)
    return Section(
        anchor=f"s{i}",
        title=words.described(s, Page(width=NAME + 30, unit=page.unit)),
        verdict=words.verdict_text(s, page.unit),
        ratio=words.ratio_text(s.ratio),
        facts=_facts(s, page),
        where=[page.prose(text) for text in detail.where],
        pictures=pictures(detail, f"s{i}"),
        worst=[_element(e, oracle) for e in detail.worst],
        has_oracle=oracle,
        statement="" if found is None else page.prose(found.statement),
        causes=() if found is None else _causes(found, page),
        open=opened,
    )


def _element(e: Element, oracle: bool) -> list[str]:
    ours, theirs = words.values_text(e.reference, e.candidate)
    index = ", ".join(map(str, e.index)) or "the value"
    cells = [index, ours, theirs]
    if oracle:
        cells.append("" if e.oracle is None else f"{e.oracle:.9g}")
    return [*cells, words.error_text(abs(e.candidate - e.reference))]


def _found(d: Divergence, report: Report, page: Page) -> Found:
    row = words.row_of(report, d)
    number = next((i for i, s in enumerate(report.sites) if s is row), None)
    known = d.site in (d.reference, d.candidate) or words.is_between(d, row)
    return Found(
        phase=words.PASS[d.phase],
        blamed=words.blamed(d, page, NAME, row),
        site="" if known else page.name(d.site, NAME),
        link="" if number is None else f"s{number}",
        ratio=words.ratio_text(d.ratio),
        verdict=d.verdict,
        statement=page.prose(d.statement),
        causes=_causes(d, page),
    )


def _causes(d: Divergence, page: Page) -> list[Cause]:
    return [replace(cause, statement=page.prose(cause.statement)) for cause in d.causes]


# -- what was not compared, and notes --------------------------------------------------------------


def _missing(report: Report, page: Page) -> list[Missing]:
    c = report.coverage
    kinds = [
        ("sites of the reference without a partner", c.unmatched_reference, True),
        ("sites of the candidate without a partner", c.unmatched_candidate, True),
        ("parameters of the reference without a partner", c.unmatched_reference_parameters, True),
        ("parameters of the candidate without a partner", c.unmatched_candidate_parameters, True),
        ("skipped as asked", c.skipped, True),
        ("not compared", c.not_compared, False),
    ]
    return [
        Missing(title, [page.prose(line) for line in lines], names)
        for title, lines, names in kinds
        if lines
    ]


def _blind(report: Report, page: Page) -> list[Missing]:
    """Blind spots by reason, all of them."""
    by_reason: dict[str, list[str]] = {}
    for text in report.coverage.blind_spots:
        name, _, why = text.removeprefix("`").partition("`: ")
        by_reason.setdefault(page.prose(why), []).append(page.prose(name))
    return [Missing(why, names) for why, names in by_reason.items()]


def _notes(report: Report, page: Page) -> list[Line]:
    """Every note, those of single sites with the names of these."""
    where: dict[str, list[str]] = {}
    for site in report.sites:
        for note in site.notes:
            where.setdefault(note, []).append(words.label(site)[0] + site.reference)
    lines = [Line(0, page.prose(note)) for note in report.notes]
    return lines + [
        Line(0, f"{page.prose(note)}: {page.names(names, 6)}") for note, names in where.items()
    ]
