"""Stage 10, report: one self-contained HTML page; nothing is loaded from anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from string import Template

from crosscheck.report import headline, probes, words
from crosscheck.report.words import Line, Page, Unit
from crosscheck.results import Divergence, Report, SiteResult

__all__ = ["render"]

_NO_LIMIT = 10_000  # characters: a page scrolls, names stay whole

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { color-scheme: light dark; --bg: #fff; --fg: #1c1f24; --soft: #667; --line: #dde;
  --agree: #117a37; --suspect: #946200; --diverge: #b3201f; --inherited: #0b6a86; --mark: #f4f5f9; }
@media (prefers-color-scheme: dark) { :root { --bg: #14161a; --fg: #e4e6ea; --soft: #9aa1ad;
  --line: #30343c; --agree: #5fce84; --suspect: #e5b454; --diverge: #ff8077; --inherited: #6cc7e0;
  --mark: #1d2026; } }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; background: var(--bg);
  color: var(--fg); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.35rem; border-left: .4rem solid currentColor; padding-left: .8rem; }
h2 { font-size: 1.05rem; margin-top: 2rem; }
code, td.n { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th { text-align: left; color: var(--soft); font-weight: 500; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.n { white-space: nowrap; text-align: right; }
tr.first { background: var(--mark); }
.agree, .ok { color: var(--agree); } .suspect { color: var(--suspect); }
.diverge, .introduced { color: var(--diverge); } .inherited { color: var(--inherited); }
.dim { color: var(--soft); } p { margin: .3rem 0; white-space: pre-wrap; }
.in4 { margin-left: 1.5rem; }
</style>
</head>
<body>
<h1 class="$verdict">$sentence</h1>
$summary
$divergences
$sites
$coverage
$environment
</body>
</html>
""")


def render(report: Report) -> str:
    """``report`` as an HTML document: verdict, divergences, every site, coverage, environment."""
    page = Page(width=_NO_LIMIT, unit=Unit.of(report))
    first, *summary = headline.headline(report, page)
    return _PAGE.substitute(
        title=escape(f"{report.verdict} · crosscheck" + (f" · {report.name}" * bool(report.name))),
        verdict=report.verdict,
        sentence=_code(first.text),
        summary=_paragraphs(summary),
        divergences=_divergences(report, page),
        sites=_sites(report, page),
        coverage=_paragraphs(
            [
                *headline.coverage(report, page),
                *probes.probes(report, page),
                *probes.blind_spots(report, page),
            ]
        ),
        environment=_paragraphs(
            [Line(0, "environment", "title"), *headline.environment(report, page)]
        )
        + _flags(report, page),
    )


def _code(text: str) -> str:
    pieces = [escape(piece) for piece in text.split("`")]
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces))


def _paragraphs(lines: Iterable[Line]) -> str:
    made = []
    for line in lines:
        if line.tone == "title":
            made.append(f"<h2>{_code(line.text)}</h2>")
        else:
            made.append(f'<p class="{line.tone} in{line.indent}">{_code(line.text)}</p>')
    return "\n".join(made)


def _table(heads: Iterable[str], rows: Iterable[str]) -> str:
    cells = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{cells}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _divergences(report: Report, page: Page) -> str:
    if not report.divergences:
        return ""
    heads = ("phase", "to blame", "seen at", "ratio", "verdict", "what")
    rows = (_divergence(d, page) for d in report.divergences)
    return f"<h2>divergences ({len(report.divergences)})</h2>\n{_table(heads, rows)}"


def _divergence(d: Divergence, page: Page) -> str:
    causes = [
        f"{'cause (reproduced)' if c.verified else 'consistent with'}: {c.statement}"
        for c in d.causes
    ]
    what = "<br>".join(_code(page.prose(text)) for text in (d.statement, *causes) if text)
    return (
        f"<tr><td>{words.PASS[d.phase]}</td><td>{_code(words.blamed(d, page))}</td>"
        f"<td>{_code(page.name(d.site))}</td><td class=n>{words.ratio_text(d.ratio)}</td>"
        f'<td class="{d.verdict}">{d.verdict}</td><td>{what}</td></tr>'
    )


def _sites(report: Report, page: Page) -> str:
    first = report.first_divergence
    marked = words.row_of(report, first) if first is not None else None
    numbers = ("error", page.unit.short, "ratio", "free")
    heads = ("phase", "site", "shape", "dtype", *numbers, "verdict")
    rows = (_site(s, page, s is marked) for s in report.sites)
    return f"<h2>sites ({len(report.sites)})</h2>\n{_table(heads, rows)}"


def _site(s: SiteResult, page: Page, marked: bool) -> str:
    shapes, dtypes = words.shapes(s), (s.dtype, s.candidate_dtype or s.dtype)
    shown = " / ".join(dict.fromkeys(str(shape) for shape in shapes))
    kinds = " / ".join(dict.fromkeys(dtypes))
    before, name = words.label(s)
    verdict = words.verdict_text(s, page.unit)
    numbers = (
        "" if s.metrics is None else words.error_text(s.metrics.rel_l2),
        words.error_text(s.noise_floor),
        words.ratio_text(s.ratio),
        "" if s.free_ratio is None else words.ratio_text(s.free_ratio),
    )
    cells = "".join(f"<td class=n>{escape(n)}</td>" for n in numbers)
    notes = "".join(f'<br><span class="dim">{escape(page.prose(n))}</span>' for n in s.notes)
    return (
        f"<tr{' class=first' if marked else ''}><td>{words.PASS[s.phase]}</td>"
        f"<td>{before}<code>{escape(page.clean(name))}</code>{notes}</td>"
        f"<td>{escape(shown)}</td><td>{escape(page.clean(kinds))}</td>{cells}"
        f'<td class="{verdict}">{verdict}</td></tr>'
    )


def _flags(report: Report, page: Page) -> str:
    if not report.environment:
        return ""
    rows = (
        f"<tr><td>{escape(page.prose(str(key)))}</td>"
        f"<td><code>{escape(page.prose(str(value)))}</code></td></tr>"
        for key, value in report.environment.items()
    )
    return _table(("setting", "value"), rows)
