"""Stage 10, report: what is said in sentences: verdict, further divergences, coverage, notes.

Gives plain lines with names in backquotes; `terminal` and `html` dress them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from crosscheck.report import probes, words
from crosscheck.report.words import Line, Page
from crosscheck.results import PHASES, Divergence, Metrics, Report, Side, SiteResult

__all__ = ["coverage", "environment", "further", "headline", "verdict_sentence"]

CAUSES = 3
NOTES = 6
FURTHER = 12
_SUSPECT = (
    "between {0.suspect:g} x and {0.diverge:g} x is neither rounding nor proof: "
    "try other seeds, or float64"
)

_UNKNOWN_WEIGHTS = (
    "but the weights were neither given nor compared, since they were not recorded: where the two "
    "sides' differ, that is why (`crosscheck record --parameters` keeps them)"
)


def headline(report: Report, page: Page) -> list[Line]:
    """The verdict, and what a reader needs to start looking."""
    lines = [Line(0, verdict_sentence(report, page), report.verdict)]
    first = report.first_divergence
    if first is None:
        return lines + _compared(report, page)
    row = words.row_of(report, first)
    lines += probes.seen_with(report, first, page)
    if first.statement:
        lines.append(Line(2, page.prose(first.statement)))
    if "weights" in report.environment:
        lines.append(Line(2, _UNKNOWN_WEIGHTS))
    if row is not None:
        lines += _both_sides(report, row, page)
    lines.append(Line(2, _size(first, row, page)))
    lines += _where(report, first, row, page)
    if first.verdict == "suspect" and page.unit.suspect < first.ratio <= page.unit.diverge:
        lines.append(Line(2, _SUSPECT.format(page.unit)))
    return lines + _causes(first, page)


def verdict_sentence(report: Report, page: Page) -> str:
    """The first line: the verdict, and where."""
    named = f" ({page.prose(report.name)})" if report.name else ""
    start = f"{report.verdict}{named}: "
    first = report.first_divergence
    if first is not None:
        return start + _first_at(report, first, page)
    if not report.sites:
        return start + "nothing was compared"
    if report.verdict != "agree":
        return start + (
            probes.failure(report, page) or "no layer could be named; see the sites below"
        )
    return start + _same_function(report)


def _same_function(report: Report) -> str:
    reference, candidate = _framework(report.reference), _framework(report.candidate)
    who = f"{reference} and {candidate}"
    if reference == candidate:
        who = f"both sides ({reference})"
    phases = {s.phase for s in report.sites}
    only = "" if phases & {"backward", "parameter_gradient"} else " (gradients not compared)"
    within = "" if report.environment.get("tolerance") is None else " within the tolerance"
    return f"{who} compute the same function{within}{only}"


def _framework(side: Side) -> str:
    return f"{side.framework} {side.version}".strip()


def _compared(report: Report, page: Page) -> list[Line]:
    if not report.sites:
        return [Line(2, "no activation, cotangent or parameter: this is no evidence of anything")]
    peak = max(report.sites, key=lambda s: words.magnitude(s.ratio))
    ratio = f"{words.ratio_text(peak.ratio)} x {page.unit.name}"
    how_much = f"{words.listed(words.tally(report.sites))} compared"
    at_most = f"largest ratio {ratio} at {words.described(peak, page)}"
    if len(how_much) + len(at_most) + 4 <= page.width:
        return [Line(2, f"{how_much}; {at_most}")]
    return [Line(2, how_much), Line(2, at_most)]


def _first_at(report: Report, first: Divergence, page: Page) -> str:
    row = words.row_of(report, first)
    position = "" if row is None else _position(report, row)
    name = page.name(first.site, 160)
    if first.phase != "forward":
        start = f"first in {words.blamed(first, page, 160, row)}{position}"
        return f"{start}{_by_the_code(first, page)}" if words.is_between(first, row) else start
    if row is not None and row.kind == "input":
        return f"first in the input of {name}{position}, introduced by the code before that layer"
    end = "introduced there" if not first.between else "introduced there or just before"
    return f"first at {name}{position}, {end}"


def _by_the_code(first: Divergence, page: Page) -> str:
    scope = first.reference or first.candidate
    of = "" if scope is None or scope.startswith("output") else f" of {page.name(scope)}"
    return f", introduced by the code{of} behind it"


def _position(report: Report, row: SiteResult) -> str:
    same = [s for s in report.sites if words.noun(s) == words.noun(row)]
    index = next(i for i, s in enumerate(same) if s is row)
    agree = sum(s.verdict == "agree" for s in same[:index])
    return f" ({words.noun(row)[0]} {index + 1} of {len(same)}; {agree} agree)"


def _both_sides(report: Report, row: SiteResult, page: Page) -> list[Line]:
    reference, candidate = words.shapes(row)
    left = f"reference {report.reference.framework} {row.dtype} {reference}"
    right = f"candidate {report.candidate.framework} {row.candidate_dtype or row.dtype} {candidate}"
    parts = [page.prose(left), page.prose(right)]
    if row.reference != row.candidate:
        parts[1] += f" at {page.name(row.candidate, page.width - 12)}"
    joined = "   ".join(parts)
    return [Line(2, text) for text in ([joined] if len(joined) + 2 <= page.width else parts)]


def _size(first: Divergence, row: SiteResult | None, page: Page) -> str:
    metrics = first.metrics or (row.metrics if row is not None else None)
    ratio = words.ratio_text(first.ratio)
    error = "" if metrics is None else f"relative error {words.error_text(metrics.rel_l2)}"
    if math.isfinite(first.ratio):
        size = f"{ratio} x {page.unit.name}{_floor(first, row, metrics, page)}"
        text = f"{error}, {size}" if error else size
    else:
        reason = f": {words.why_infinite(row)}" if row is not None else ""
        text = f"ratio {ratio}{reason}" + (f" ({error} where finite)" if error else "")
    worst = _worst(metrics)
    return f"{text}; {worst}" if worst else text


def _floor(first: Divergence, row: SiteResult | None, metrics: Metrics | None, page: Page) -> str:
    if row is None or page.unit.short != "floor":
        return ""
    # The ratio is the larger of two norms. Where the reader could not get it by dividing the
    # numbers shown, it is the maximum norm that spoke: say so.
    if metrics is not None and first.ratio * row.noise_floor > 3 * metrics.rel_l2:
        return " in the worst element"
    return f" {words.error_text(row.noise_floor)}"


def _worst(metrics: Metrics | None) -> str:
    if metrics is None or metrics.worst_index is None:
        return ""
    at = f"worst at {metrics.worst_index}" if metrics.worst_index else "the value"
    if metrics.worst_reference is None or metrics.worst_candidate is None:
        return f"{at}: {words.error_text(metrics.max_abs)} apart"
    reference, candidate = words.values_text(metrics.worst_reference, metrics.worst_candidate)
    return f"{at}: {candidate} for {reference}"


def _where(report: Report, first: Divergence, row: SiteResult | None, page: Page) -> list[Line]:
    lines = []
    blame = first.reference or first.candidate
    there = first.site == blame or words.is_between(first, row)
    if first.phase == "backward" and row is not None and not there:
        lines.append(Line(2, f"seen at {words.described(row, page)}"))
    if first.between:
        start = f"after {page.name(first.after)} and " if first.after else ""
        verb = "lies" if len(first.between) == 1 else "lie"
        lines.append(
            Line(
                2,
                f"{page.names(first.between)} {verb} {start}before it, without a partner on the "
                "other side: the error may be there",
            )
        )
    if row is not None:
        lines.append(Line(2, _agree_before(report, first, row, page)))
    return lines


def _agree_before(report: Report, first: Divergence, row: SiteResult, page: Page) -> str:
    earlier = PHASES[: PHASES.index(first.phase)]
    before = [s for s in report.sites if s.phase in earlier]
    same = [s for s in report.sites if s.phase == first.phase]
    before += same[: next(i for i, s in enumerate(same) if s is row)]
    agree = [s for s in before if s.verdict == "agree"]
    if not agree:
        return "nothing before it agrees" if before else "it is the first value compared"
    last = f"; the last is {page.name(first.after)}" if first.after else ""
    if first.after and agree[-1].kind == "input" and agree[-1].reference == first.after:
        last = f"; the last is {words.described(agree[-1], page)}"
    return f"agreeing before it: {words.listed(words.tally(agree))}{last}"


def _causes(first: Divergence, page: Page) -> list[Line]:
    lines = []
    for cause in first.causes[:CAUSES]:
        left = words.ratio_text(cause.residual_ratio)
        how = (
            f"cause (reproduced, {left} x {page.unit.name})"
            if cause.verified
            else f"consistent with (not reproduced, {left} x {page.unit.name} remains)"
        )
        tone = "cause" if cause.verified else ""
        lines.append(Line(2, f"{how}: {page.prose(cause.statement)}", tone))
    hidden = len(first.causes) - CAUSES
    if hidden > 0:
        lines.append(Line(2, f"and {words.counted(hidden, 'cause', 'causes')} less likely"))
    return lines


def further(report: Report, page: Page) -> list[Line]:
    """Every divergence but the first, one line each, by the layer to blame."""
    first = report.first_divergence
    rest = [d for d in report.divergences if d is not first]
    if not rest:
        return []
    groups: dict[str, list[Divergence]] = {}
    for divergence in rest:
        groups.setdefault(_layer(report, divergence), []).append(divergence)
    suspects = sum(d.verdict == "suspect" for d in rest)
    kinds = [
        words.counted(len(rest) - suspects, "divergence", "divergences"),
        words.counted(suspects, "suspect", "suspects"),
    ]
    counts = [k for k in kinds if not k.startswith("0 ")]
    lines = [Line(0, f"further, by layer: {words.listed(counts)}", "title")]
    shown = 0
    for layer, members in groups.items():
        if shown == FURTHER:
            break
        lines.append(Line(2, page.name(layer)))
        for divergence in members[: FURTHER - shown]:
            lines.append(Line(4, _one_line(report, divergence, page), tight=True))
            shown += 1
    if len(rest) > shown:
        lines.append(Line(2, f"and {len(rest) - shown} more (all are in report.json)", "dim"))
    return lines


def _layer(report: Report, divergence: Divergence) -> str:
    if words.is_between(divergence, words.row_of(report, divergence)):
        return divergence.site
    name = divergence.reference or divergence.candidate or divergence.site
    if divergence.phase in ("forward", "loss", "backward"):
        return name
    return name.rpartition(".")[0] or name


def _one_line(report: Report, divergence: Divergence, page: Page) -> str:
    row = words.row_of(report, divergence)
    what = words.blamed(divergence, page)
    if divergence.phase == "forward":
        what = "input" if row is not None and row.kind == "input" else "activation"
        if divergence.site != (divergence.reference or divergence.candidate):
            what += f" of {page.name(divergence.site)}"
    elif words.is_between(divergence, row):
        what = "the cotangent that arrives there"
    elif divergence.phase == "backward":
        what = "VJP"
        if divergence.site != (divergence.reference or divergence.candidate):
            what += f", seen at {page.name(divergence.site)}"
    if row is not None and not math.isfinite(divergence.ratio):
        what += f"; {words.why_infinite(row)}"
    cause = next((c for c in divergence.causes if c.verified), None)
    if cause is not None:
        what += f"; cause: {page.prose(cause.statement)}"
    mark = "?" if divergence.verdict == "suspect" else "!"
    times = "x" if math.isfinite(divergence.ratio) else " "
    return f"{mark} {words.ratio_text(divergence.ratio):>7} {times}  {what}"


def coverage(report: Report, page: Page) -> list[Line]:
    """How much was compared, and everything that was not."""
    c = report.coverage
    gaps = [
        ("sites without a partner, reference", c.unmatched_reference),
        ("sites without a partner, candidate", c.unmatched_candidate),
        ("parameters without a partner, reference", c.unmatched_reference_parameters),
        ("parameters without a partner, candidate", c.unmatched_candidate_parameters),
        ("skipped as asked", c.skipped),
    ]
    total = words.counted(c.aligned, "site", "sites") + " aligned, "
    total += words.counted(c.parameters_matched, "parameter", "parameters") + " matched"
    if not any(names for _, names in gaps) and not c.not_compared:
        total += "; nothing unmatched, skipped or left out"
    lines = [Line(0, "coverage", "title"), Line(2, total)]
    for what, names in gaps:
        if names:
            lines.append(Line(2, f"{what} ({len(names)}): {page.names(names)}"))
    if c.not_compared:
        lines.append(Line(2, f"not compared ({len(c.not_compared)}):"))
        lines += _bullets(c.not_compared, page)
    return lines


def environment(report: Report, page: Page) -> list[Line]:
    """What ran where, in one line, then the notes."""
    sides = [
        f"{who} {_framework(side)} on {side.device}"
        for who, side in (("reference", report.reference), ("candidate", report.candidate))
    ]
    text = f"{', '.join(sides)}; seed {report.seed}"
    tolerance = report.environment.get("tolerance")
    text += "" if tolerance is None else f"; tolerance {tolerance}"
    return [Line(0, page.prose(text), "dim"), *_notes(report, page)]


def _bullets(texts: Sequence[str], page: Page) -> list[Line]:
    lines = [Line(4, "- " + page.prose(text)) for text in texts[:NOTES]]
    hidden = len(texts) - NOTES
    return lines + ([Line(4, f"and {hidden} more")] if hidden > 0 else [])


def _notes(report: Report, page: Page) -> list[Line]:
    where: dict[str, list[str]] = {}
    for result in report.sites:
        for note in result.notes:
            where.setdefault(note, []).append(words.label(result)[0] + result.reference)
    texts = [page.prose(note) for note in report.notes]
    texts += [f"{page.prose(note)}: {page.names(names, 3)}" for note, names in where.items()]
    lines = [Line(0, f"note: {text}") for text in texts[:NOTES]]
    hidden = len(texts) - NOTES
    if hidden > 0:
        lines.append(Line(0, f"and {words.counted(hidden, 'more note', 'more notes')}"))
    return lines
