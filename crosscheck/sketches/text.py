"""A sketch as text: which run, which sites, how large, and what it can see."""

from __future__ import annotations

import os
from collections.abc import Iterator

from crosscheck.sketches.make import Record, Sketch
from crosscheck.sketches.probability import kept, misplaced, sees
from crosscheck.traces.file import shown
from crosscheck.traces.recorded import RecordKey

__all__ = ["promise", "tables"]

Row = list[str]


def promise(sketch: Sketch) -> list[str]:
    """Lines on what is kept and with which probability a defect is found."""
    values = len(sketch.records)
    where = f"; {os.path.getsize(sketch.origin):,} bytes" if sketch.origin else ""
    chance = misplaced(sketch.plan.rows, values)
    return [
        f"  a sketch: {values} values, {kept(sketch.plan)}{where}",
        f"  sees: {sees(sketch)}",
        f"  so a defect of 32 floors is found, and at its place, but for a probability of "
        f"{chance:.1g}; what is below the floor of its site is not (docs/traces.md)",
    ]


def tables(sketch: Sketch) -> Iterator[tuple[str, list[Row]]]:
    """(title, rows) of the inputs, the sites and the parameters, as for a trace."""
    inputs = [
        _row(name, sketch.record(("activation", f"input:{name}")), sketch, "")
        for name in sketch.inputs
        if ("activation", f"input:{name}") in sketch.records
    ]
    missing = "" if sketch.inputs else " (not in the file: give them to compare)"
    yield f"inputs{missing}", inputs
    sites = [key for key in sketch.order if key[0] == "activation"]
    yield (
        "sites, in execution order",
        [_row(key[1], sketch.record(key), sketch, "cotangent") for key in sites],
    )
    yield "parameters", list(_parameters(sketch))


def _parameters(sketch: Sketch) -> Iterator[Row]:
    for p in sketch.parameters:
        held = sketch.records.get(("parameter", p.name))
        if held is not None:
            yield _row(p.name, held, sketch, "gradient")
            continue
        found = sketch.records.get(("gradient", p.name))
        gradient = "-" if found is None else f"{found.numbers.l2:.4g}"
        yield [shown(p.name), str(p.value.shape), p.value.dtype.name, "-", "-", gradient]


def _row(name: str, record: Record, sketch: Sketch, beside: str) -> Row:
    """name, shape, dtype, norm, largest, norm of its gradient."""
    cells = [shown(name), str(record.shape), record.dtype]
    bad = int(record.numbers.counts[:3].sum())
    largest = f"{record.numbers.maximum:.4g}"
    cells += [f"{record.numbers.l2:.4g}", f"{largest} ({bad} not finite)" if bad else largest]
    if beside:
        key: RecordKey = (beside, name)
        known = key in sketch.records or key in sketch.same
        cells.append(f"{sketch.record(key).numbers.l2:.4g}" if known else "-")
    return cells
