"""The suite's result as JSON and as text. Renders, never computes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from crosscheck.suite.classify import gibibytes
from crosscheck.suite.jobs import NOT_SPLIT, STATUSES, JobResult, SuiteResult

__all__ = ["STYLES", "closing_line", "counts", "dumps", "evidence", "print_summary", "to_dict"]

SCHEMA = 1
STYLES = {"agree": "green", "suspect": "yellow", "skipped": "dim"}
BAD = "bold red"
WIDTH = 120  # where there is no terminal to ask


# -- JSON ------------------------------------------------------------------------------------------


def to_dict(result: SuiteResult) -> dict[str, Any]:
    """As dicts, lists, str, int, float, bool and None. Keys may be added within a schema."""
    return {
        "schema": SCHEMA,
        "jobs": [_job(r) for r in result.results],
        "not_run": [job.id for job in result.not_run],
        "summary": {
            "jobs": len(result.results),
            **{status: result.count(status) for status in STATUSES},
            "not_run": len(result.not_run),
            "resumed": sum(r.resumed for r in result.results),
            "seconds": result.seconds,
            "interrupted": result.interrupted,
            "exit_status": result.exit_status,
        },
        "environment": dict(result.environment),
    }


def dumps(result: SuiteResult) -> str:
    """As text: one line for each key and each job (to grep, to diff)."""
    lines = []
    for key, value in to_dict(result).items():
        if key == "jobs" and value:
            jobs = ",\n".join("  " + json.dumps(job, allow_nan=False) for job in value)
            lines.append(f'"jobs": [\n{jobs}\n ]')
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}")
    return "{\n " + ",\n ".join(lines) + "\n}"


def _job(r: JobResult) -> dict[str, Any]:
    return {
        "id": r.job.id,
        "pair": r.job.pair,
        "path": r.job.path,
        "candidate": r.job.candidate,
        "seed": r.job.seed,
        "device": r.job.device,
        "status": r.status,
        "seconds": r.seconds,
        "peak_memory_bytes": r.peak_memory_bytes,
        "message": r.message,
        "details": list(r.details),
        "first_divergence": r.first_divergence,
        "largest_ratio": r.largest_ratio,
        "reference": r.reference,
        "candidate_side": r.candidate_side,
        "coverage": r.coverage,
        "effort": r.effort or None,
        "stage": r.stage,
        "signal": r.signal,
        "exit_status": r.exit_status,
        "output": r.output,
        "html": r.html,
        "host": r.host or None,
        "resumed": r.resumed,
        "command": r.job.command,
    }


# -- text ------------------------------------------------------------------------------------------


def print_summary(result: SuiteResult, console: Console) -> None:
    """The table of all jobs, what is to be known of each that does not agree, and the counts."""
    if result.results:
        console.print(_table(result))
    for bad in result.results:
        if bad.status not in ("agree", "skipped"):
            console.print(_account(bad))
    skipped = [r for r in result.results if r.status == "skipped"]
    for reason, jobs in _grouped(skipped):
        console.print(Text(f"skipped {', '.join(jobs)}: {reason}"), soft_wrap=True)
    if result.not_run:
        console.print(Text(f"not run: {', '.join(j.id for j in result.not_run)}"), soft_wrap=True)
    console.print(Text(closing_line(result), style="bold"), soft_wrap=True)


def _table(result: SuiteResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    names: dict[str, set[str]] = {}
    for r in result.results:
        names.setdefault(r.job.pair, set()).add(r.job.path)
    with_seed = len({r.job.seed for r in result.results}) > 1
    columns = ["pair", "candidate", *(["seed"] if with_seed else []), "status"]
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="fold")
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("what was found", overflow="fold")
    for r in result.results:
        pair = r.job.path if len(names[r.job.pair]) > 1 else r.job.pair
        seed = [str(r.job.seed)] if with_seed else []
        cells = [pair, r.job.candidate or "-", *seed]
        # As Text: what comes from a file is no markup.
        row: list[RenderableType] = [Text(cell) for cell in cells]
        row.append(Text(r.status, style=STYLES.get(r.status, BAD)))
        row.append(Text(f"{r.seconds:.1f} s" + (" (kept)" if r.resumed else "")))
        row.append(Text(gibibytes(r.peak_memory_bytes)))
        found = Text(evidence(r), style="dim") if r.status == "agree" else Text(r.message)
        row.append(found)
        table.add_row(*row)
    return table


def evidence(r: JobResult) -> str:
    """What an agreement rests on."""
    coverage = r.coverage or {}
    text = f"{coverage.get('sites', 0)} comparisons"
    if r.largest_ratio is not None:
        text += f", largest ratio {r.largest_ratio:.2g}"
    if not coverage.get("gradients"):
        text += ", no gradients"
    if r.effort == "quick":
        text += ", quick"
    unusual = r.signal or r.exit_status
    told = [line for line in r.details if line.startswith(NOT_SPLIT)]
    for line in dict.fromkeys([*told, *(r.details[-1:] if unusual else ())]):
        text += f"; {line}"
    return text


def _account(r: JobResult) -> Group:
    """Several lines on one job: what it did, what it said, how to see it again."""
    lines = [Text(f"{r.job.id}: {r.status}", style=STYLES.get(r.status, BAD))]
    lines.append(Text(f"  {r.message}"))
    lines += [Text(f"  {line}") for line in r.details]
    for line in r.output.splitlines():
        lines.append(Text(f"  | {line}", style="dim"))
    if r.html:
        lines.append(Text(f"  report: {r.html}"))
    lines.append(Text(f"  again: {r.job.command}"))
    return Group(*lines, Text(""))


def _grouped(skipped: Iterable[JobResult]) -> list[tuple[str, list[str]]]:
    """Jobs by the reason for which they were skipped, without what names the job in it."""
    groups: dict[str, list[str]] = {}
    for r in skipped:
        groups.setdefault(r.message.partition(" needs ")[2] or r.message, []).append(r.job.id)
    return [(f"needs {reason}", jobs) for reason, jobs in groups.items()]


def counts(result: SuiteResult) -> str:
    """``12 agree, 1 diverge, 2 skipped``."""
    parts = [f"{result.count(s)} {s}" for s in STATUSES if result.count(s)]
    parts += [f"{len(result.not_run)} not run"] if result.not_run else []
    return ", ".join(parts) or "nothing was run"


def closing_line(result: SuiteResult) -> str:
    """The counts, the time, and what makes the exit status where that is not seen from them."""
    jobs = len(result.results)
    line = f"{counts(result)}; {jobs} job{'s' * (jobs != 1)} in {result.seconds:.1f} s"
    kept = sum(r.resumed for r in result.results)
    if kept:
        line += f", {kept} of them kept from an earlier run"
    if result.interrupted:
        return f"interrupted: {line}"
    if result.results and not result.compared:
        line += "; nothing was compared"
    if result.require_all and result.count("skipped"):
        line += "; --require-all: what is skipped counts as failed"
    return line
