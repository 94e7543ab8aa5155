"""An audit as one self-contained page, with histograms of weights, activations and gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape
from string import Template
from typing import Any

from crosscheck.auditing.results import AuditReport, Finding

__all__ = ["render"]

_STATISTICS = ("mean", "std", "min", "max")
_SHOWN = 24

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { color-scheme: light dark; --bg: #fff; --fg: #1c1f24; --soft: #667; --line: #dde;
  --ok: #117a37; --suspicious: #946200; --wrong: #b3201f; --bar: #5b7db8; }
@media (prefers-color-scheme: dark) { :root { --bg: #14161a; --fg: #e4e6ea; --soft: #9aa1ad;
  --line: #30343c; --ok: #5fce84; --suspicious: #e5b454; --wrong: #ff8077; --bar: #7ea2e0; } }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; background: var(--bg);
  color: var(--fg); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.35rem; border-left: .4rem solid currentColor; padding-left: .8rem; }
h2 { font-size: 1.05rem; margin-top: 2rem; }
code { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th { text-align: left; color: var(--soft); font-weight: 500; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.healthy, .ok { color: var(--ok); } .suspicious { color: var(--suspicious); }
.wrong, .error, .incomplete { color: var(--wrong); } .skipped, .note, .soft { color: var(--soft); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .8rem; overflow-wrap: anywhere; }
svg { width: 100%; height: 4rem; } rect { fill: var(--bar); }
polyline { fill: none; stroke: var(--bar); stroke-width: 2; vector-effect: non-scaling-stroke; }
td.number { font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
<h1 class="$verdict">$headline</h1>
<p class="soft">$model</p>
<div class="scroll"><table>
<thead><tr><th>check</th><th>result</th><th>what was seen</th></tr></thead>
<tbody>
$rows
</tbody>
</table></div>
$pictures
</body>
</html>
""")


def render(report: AuditReport) -> str:
    """The page; every name in it is escaped."""
    failed = sum(f.failed for f in report.findings)
    title = f"audit: {report.verdict}" + (f" ({report.name})" if report.name else "")
    return _PAGE.substitute(
        title=escape(title),
        verdict=report.verdict,
        headline=escape(f"{title}, {failed} of {len(report.findings)} checks do not pass"),
        model=escape(f"{report.framework} {report.version}, seed {report.seed}"),
        rows="\n".join(_row(f) for f in report.findings),
        pictures="\n".join(_pictures(report)),
    )


def _row(finding: Finding) -> str:
    mark = {"pass": "ok", "skipped": "skipped", "error": "error"}.get(
        finding.status, finding.severity
    )
    return (
        f"<tr><td><code>{escape(finding.check)}</code></td>"
        f'<td class="{mark}">{mark}</td><td>{escape(finding.statement)}</td></tr>'
    )


def _pictures(report: AuditReport) -> Iterator[str]:
    details = {finding.check: finding.details for finding in report.findings}
    yield from _data(details.get("inputs_are_normalised", {}), details.get("labels_look_right", {}))
    yield from _learning(details.get("overfits_a_few_examples", {}))
    initial = details.get("weights_are_initialised", {})
    alive = details.get("units_are_alive", {}).get("inputs", {})
    groups = {
        "Parameters": initial.get("parameters"),
        "Activations": initial.get("activations"),
        "Inputs of activation functions": {n: found["input"] for n, found in alive.items()},
        "Gradients": initial.get("gradients"),
    }
    for title, found in groups.items():
        if found:
            drawn = "\n".join(_picture(name, h) for name, h in found.items())
            yield f'<h2>{title}</h2>\n<div class="grid">\n{drawn}\n</div>'


def _data(inputs: Mapping[str, Any], labels: Mapping[str, Any]) -> Iterator[str]:
    if inputs:
        rows = [[name, *(f"{seen[k]:.4g}" for k in _STATISTICS)] for name, seen in inputs.items()]
        yield "<h2>Inputs, right before the net</h2>" + _table(["input", *_STATISTICS], rows)
    if labels:
        rows = [
            [name, ", ".join(f"{kind}: {n}" for kind, n in [*counts.items()][:_SHOWN])]
            for name, counts in labels.items()
        ]
        yield "<h2>Labels</h2>" + _table(["target", f"how often (the first {_SHOWN})"], rows)


def _learning(learnt: Mapping[str, Any]) -> Iterator[str]:
    losses = [v for v in learnt.get("losses", ()) if math.isfinite(v)]
    if len(losses) < 2:
        return
    top, low = max(losses), min(losses)
    points = " ".join(
        f"{i},{1 - (v - low) / ((top - low) or 1.0):.4f}" for i, v in enumerate(losses)
    )
    text = f"the loss of a few examples while they are learnt: {losses[0]:.4g} to {low:.4g}"
    yield (
        f"<h2>Learning a few examples by heart</h2>\n<figure>"
        f'<svg viewBox="0 -0.05 {len(losses) - 1} 1.1" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(text)}"><polyline points="{points}"/></svg>'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )
    rows = [[str(i), *(f"{v:.4g}" for v in seen)] for i, seen in enumerate(learnt["predictions"])]
    if rows:
        head = ["looked", *(f"output {i}" for i in range(len(rows[0]) - 1))]
        yield "<p>The first outputs meanwhile:</p>" + _table(head, rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "\n".join(
        "<tr>" + "".join(f'<td class="number">{escape(cell)}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{titles}</tr></thead>\n<tbody>\n{body}\n'
        "</tbody></table></div>"
    )


def _picture(name: str, histogram: Mapping[str, Any]) -> str:
    counts = histogram["counts"]
    top, n = max([*counts, 1]), len(counts)
    bars = "".join(
        f'<rect x="{i}" y="{1 - c / top:.4f}" width="0.9" height="{c / top:.4f}"/>'
        for i, c in enumerate(counts)
        if c
    )
    text = (
        f"{histogram['from']:.3g} to {histogram['to']:.3g}, mean {histogram['mean']:.3g}, "
        f"deviation {histogram['std']:.3g}"
    )
    label = escape(f"{name}: {text}", quote=True)
    return (
        f'<figure><svg viewBox="0 0 {n} 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}">{bars}</svg>'
        f"<figcaption><code>{escape(name)}</code><br>{escape(text)}</figcaption></figure>"
    )
