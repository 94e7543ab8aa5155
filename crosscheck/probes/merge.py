"""One report of several checks of the same pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from crosscheck.results import (
    PHASES,
    Details,
    Divergence,
    ProbeResult,
    Report,
    SiteResult,
    Verdict,
    worst,
)

__all__ = ["merged"]

Site = tuple[str, str, str, str]


def merged(base: Report, probes: Sequence[tuple[ProbeResult, Report | None]]) -> Report:
    """``base`` with what the probes add.

    The verdict is the worst; where only the candidate raised it is suspect at least, since a crash
    is no divergence and no agreement either. A site that did worse with a probe is shown as it was
    there, and says so. Divergences of the base come first, then what each probe adds to them.
    """
    if not probes:
        return base
    sites = {_key(s): s for s in base.sites}
    divergences = list(base.divergences)
    known = {_place(d) for d in divergences}
    verdicts: list[Verdict] = [base.verdict]
    for result, report in probes:
        if result.verdict == "failed":
            verdicts.append("suspect")
        if report is None:
            continue
        verdicts.append(report.verdict)
        for site in report.sites:
            _take(sites, site, result.name)
        for divergence in report.divergences:
            if _place(divergence) not in known:
                known.add(_place(divergence))
                divergences.append(divergence)
    return replace(
        base,
        verdict=worst(verdicts),
        sites=tuple(sorted(sites.values(), key=lambda s: PHASES.index(s.phase))),
        divergences=tuple(divergences),
        details=_details(base, probes, sites),
        notes=(*base.notes, *_notes(base, probes)),
        probes=tuple(result for result, _ in probes),
    )


def _key(site: SiteResult) -> Site:
    return site.phase, site.kind, site.reference, site.candidate


def _place(d: Divergence) -> tuple[str, str | None, str | None, str]:
    return d.phase, d.reference, d.candidate, d.site


def _take(sites: dict[Site, SiteResult], site: SiteResult, probe: str) -> None:
    """Put a probe's result in the place of one with a milder verdict."""
    before = sites.get(_key(site))
    if before is None or before.verdict != worst([before.verdict, site.verdict]):
        sites[_key(site)] = replace(site, notes=(*site.notes, f"with probe `{probe}`"))


def _details(
    base: Report,
    probes: Sequence[tuple[ProbeResult, Report | None]],
    sites: dict[Site, SiteResult],
) -> Details:
    """Those of the sites as they are shown: of the run in which they were worst."""
    ratios = {s.key: s.ratio for s in sites.values()}
    found = {}
    for report in (base, *(r for _, r in probes if r is not None)):
        theirs = {s.key: s.ratio for s in report.sites}
        for detail in report.details.sites:
            if detail.key not in found and theirs[detail.key] == ratios[detail.key]:
                found[detail.key] = detail
    order = [s.key for s in sites.values() if s.key in found]
    return replace(base.details, sites=tuple(found[key] for key in order))


def _notes(base: Report, probes: Sequence[tuple[ProbeResult, Report | None]]) -> list[str]:
    """Notes that only a probe has."""
    known = set(base.notes)
    found = []
    for result, report in probes:
        for note in () if report is None else report.notes:
            if note not in known:
                known.add(note)
                found.append(f"probe `{result.name}`: {note}")
    return found
