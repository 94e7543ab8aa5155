"""``crosscheck show``: what a trace, a sketch or a saved report holds, in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from crosscheck.commands.common import deliver, failures, renderings
from crosscheck.errors import InvalidArgument

if TYPE_CHECKING:
    import numpy as np

    from crosscheck.sketches.make import Sketch
    from crosscheck.traces.recorded import RecordedTrace

__all__ = ["show"]

CHUNK = 1 << 18  # elements: a norm in float64 takes 2 MiB, whatever the tensor's size


@click.command()
@click.argument("file", metavar="FILE")
@renderings
@click.option("--html", "html_path", metavar="F", help="Of a report: write the HTML page.")
def show(file: str, html_path: str | None, **shown: Any) -> None:
    """Show a trace or sketch (.safetensors) or a saved report (.json).

    Of a trace: inputs, sites in order with shapes, dtypes and norms, parameters, seed, versions.
    Of a sketch the same, and what it can see with which probability.
    Of a report: what the check printed; --markdown, --junit and --html render it again.

    \b
    Exit status: 0 shown, 2 no such file, or it is damaged.

    \b
    Examples:
      crosscheck show ref.safetensors
      crosscheck show report.json --verbose
    """
    with failures():
        if file.lower().endswith(".safetensors"):
            if html_path or any(shown.values()):
                raise InvalidArgument("--markdown, --junit, --html and --verbose are for reports")
            lines = trace_lines(file)
        else:
            from crosscheck.report.load import load_report

            report = load_report(file)
            lines = None
    if lines is None:
        deliver(report, None, html_path, shown=True, **shown)
    if hasattr(sys.stdout, "reconfigure"):  # names that the encoding does not have
        sys.stdout.reconfigure(errors="backslashreplace")
    for line in lines:
        click.echo(line)


def trace_lines(file: str) -> list[str]:
    """A trace or a sketch as text.

    Raises:
        TraceFormatError: neither; says why.
    """
    from crosscheck.sketches.file import sketched
    from crosscheck.sketches.text import promise, tables
    from crosscheck.traces.load import load_trace

    sketch = sketched(file)
    if sketch is not None:
        found = [_section(title, rows) for title, rows in tables(sketch)]
        return [
            *_heading(file, sketch),
            *promise(sketch),
            *(line for part in found for line in part),
        ]
    trace = load_trace(file)
    floor = "measured in float64" if trace.rounding else "not measured"
    return [
        *_heading(file, trace),
        f"  rounding: {floor}",
        *_section("inputs", [_cells(n, v, trace, "") for n, v in trace.inputs.items()]),
        *_section("sites, in execution order", list(_sites(trace))),
        *_section("parameters", list(_parameters(trace))),
    ]


def _heading(file: str, run: RecordedTrace | Sketch) -> list[str]:
    """Which run it is."""
    from crosscheck.traces.file import TensorFile, shown

    writer = shown(TensorFile(file).metadata.get("crosscheck.version", "")) or "another program"
    mode = "train" if run.train else "eval"
    who = shown(f"{run.framework} {run.version}".strip())
    return [
        f"{file}: {who} on {shown(run.device)}, {mode} mode",
        f"  seed {'unknown' if run.seed is None else run.seed}; written by crosscheck {writer}",
        f"  inputs_sha256: {run.inputs_sha256}",
    ]


def _sites(trace: RecordedTrace) -> Iterable[list[str]]:
    for kind, name in trace.values:
        if kind == "activation":
            yield _cells(name, trace.values[kind, name], trace, "cotangent")


def _parameters(trace: RecordedTrace) -> Iterable[list[str]]:
    for p in trace.parameters:
        yield _cells(p.name, p.value, trace, "gradient")


def _cells(name: str, value: np.ndarray, trace: RecordedTrace, gradient: str) -> list[str]:
    """name, shape, dtype, norm, largest, norm of its gradient."""
    from crosscheck.traces.file import shown

    absent = gradient == "gradient" and name not in trace.held  # a placeholder, of any size
    norm, largest = ("-", "-") if absent else _size(value)
    cells = [shown(name), str(value.shape), value.dtype.name, norm, largest]
    if gradient == "cotangent":
        found = trace.values.get(("cotangent", name))
        cells.append("-" if found is None else _size(found)[0])
    elif gradient == "gradient":
        found = trace.info.parameter_gradients.get(name)
        cells.append("-" if found is None else _size(found)[0])
    return cells


def _size(value: np.ndarray) -> tuple[str, str]:
    """The 2-norm and the largest magnitude of the finite elements; how many are not."""
    import numpy as np

    flat = value.reshape(-1)
    total, largest, hidden = 0.0, 0.0, 0
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        wide = np.abs(part.astype(np.complex128 if part.dtype.kind == "c" else np.float64))
        finite = np.isfinite(wide)
        hidden += part.size - int(finite.sum())
        wide = np.where(finite, wide, 0.0)
        with np.errstate(over="ignore"):
            total += float(np.dot(wide, wide))
        largest = max(largest, float(wide.max(initial=0.0)))
    text = f"{largest:.4g}"
    return f"{total**0.5:.4g}", f"{text} ({hidden} not finite)" if hidden else text


def _section(title: str, rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["", f"{title}: none"]
    last = "gradient" if title == "parameters" else "cotangent"
    table = [("", "shape", "dtype", "norm", "largest", last)[: len(rows[0])], *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table]
    return ["", f"{title} ({len(rows)})", *(f"  {line}".rstrip() for line in lines)]
