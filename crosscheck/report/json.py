"""Stage 10, report: ``report.json``, schema 1.

Strict JSON has no infinity and no NaN. An infinite number (the ratio where shapes or non-finite
values differ) is written as 1.7976931348623157e308, the largest double, with its sign; NaN is
written as null. Tuples are lists. Keys may be added within a schema, never renamed or removed.

``details`` is there where something was looked into: what a page shows of single sites, the weight
map, the command (`crosscheck.results.Details`, key by key; docs/report.md).
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import sys
from collections.abc import Mapping
from typing import Any

from crosscheck.results import (
    Cause,
    Coverage,
    Details,
    Divergence,
    Metrics,
    ProbeResult,
    Report,
    Side,
    SiteResult,
)

__all__ = ["SCHEMA", "dumps", "to_dict"]

SCHEMA = 1


def to_dict(report: Report) -> dict[str, Any]:
    """``report`` as dicts, lists, str, int, finite float, bool and None."""
    first = report.first_divergence
    return {
        "schema": SCHEMA,
        "name": report.name,
        "verdict": report.verdict,
        "seed": plain(report.seed),
        "reference": _side(report.reference),
        "candidate": _side(report.candidate),
        "environment": plain(report.environment),
        "coverage": _coverage(report.coverage),
        "first_divergence": None if first is None else _divergence(first),
        "divergences": [_divergence(d) for d in report.divergences],
        "sites": [_site(s) for s in report.sites],
        "notes": plain(report.notes),
        "probes": [_probe(p) for p in report.probes],
        **({"details": _plainly(report.details)} if report.details != Details() else {}),
    }


def dumps(report: Report) -> str:
    """``report.json`` as text: one line for each key, site and divergence (to grep, to diff)."""
    document = to_dict(report)
    details = document.pop("details", None)
    lines = _lines(document, " ")
    if details is not None:
        inner = ",\n  ".join(_lines(details, "  "))
        lines.append(f'"details": {{\n  {inner}\n }}')
    return "{\n " + ",\n ".join(lines) + "\n}"


def _lines(document: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in document.items():
        if isinstance(value, list) and value:
            items = ",\n".join(f"{indent} {_line(item)}" for item in value)
            lines.append(f"{_line(key)}: [\n{items}\n{indent}]")
        else:
            lines.append(f"{_line(key)}: {_line(value)}")
    return lines


def plain(value: Any) -> Any:
    """``value`` in the types of strict JSON; what JSON has no word for becomes its ``str``."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, numbers.Integral):  # NumPy's integers are registered as such
        return int(value)
    if isinstance(value, numbers.Real):
        return _finite(float(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(v) for v in value), key=repr)
    if type(value).__name__ in ("bool", "bool_"):  # NumPy's own, which is not a bool
        return bool(value)
    return str(value)


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _finite(value: float) -> float | None:
    if math.isnan(value):
        return None
    return math.copysign(sys.float_info.max, value) if math.isinf(value) else value


def _plainly(record: Any) -> Any:
    """A dataclass of plain data, and what is in it."""
    if dataclasses.is_dataclass(record):
        fields = dataclasses.fields(record)
        return {f.name: _plainly(getattr(record, f.name)) for f in fields}
    if isinstance(record, tuple):
        return [_plainly(item) for item in record]
    return plain(record)


def _side(side: Side) -> dict[str, Any]:
    return {"framework": side.framework, "version": side.version, "device": side.device}


def _coverage(c: Coverage) -> dict[str, Any]:
    return {
        "aligned": plain(c.aligned),
        "unmatched_reference": plain(c.unmatched_reference),
        "unmatched_candidate": plain(c.unmatched_candidate),
        "skipped": plain(c.skipped),
        "parameters_matched": plain(c.parameters_matched),
        "unmatched_reference_parameters": plain(c.unmatched_reference_parameters),
        "unmatched_candidate_parameters": plain(c.unmatched_candidate_parameters),
        "not_compared": plain(c.not_compared),
        "blind_spots": plain(c.blind_spots),
    }


def _metrics(m: Metrics | None) -> dict[str, Any] | None:
    if m is None:
        return None
    return {
        "rel_l2": plain(m.rel_l2),
        "max_abs": plain(m.max_abs),
        "worst_index": plain(m.worst_index),
        "cosine": plain(m.cosine),
        "nonfinite": plain(m.nonfinite),
        "nonfinite_mismatch": plain(m.nonfinite_mismatch),
        "worst_reference": plain(m.worst_reference),
        "worst_candidate": plain(m.worst_candidate),
    }


def _cause(cause: Cause) -> dict[str, Any]:
    return {
        "name": cause.name,
        "statement": cause.statement,
        "verified": plain(cause.verified),
        "residual_ratio": plain(cause.residual_ratio),
    }


def _divergence(d: Divergence) -> dict[str, Any]:
    return {
        "phase": d.phase,
        "reference": d.reference,
        "candidate": d.candidate,
        "site": d.site,
        "after": d.after,
        "ratio": plain(d.ratio),
        "metrics": _metrics(d.metrics),
        "causes": [_cause(c) for c in d.causes],
        "verdict": d.verdict,
        "statement": d.statement,
        "between": plain(d.between),
        **({"step": d.step} if d.step > 1 else {}),
    }


def _probe(p: ProbeResult) -> dict[str, Any]:
    return {
        "name": p.name,
        "verdict": p.verdict,
        "first": None if p.first is None else _divergence(p.first),
        "what": p.what,
        "reason": p.reason,
    }


def _site(s: SiteResult) -> dict[str, Any]:
    return {
        "phase": s.phase,
        "reference": s.reference,
        "candidate": s.candidate,
        "shape": plain(s.shape),
        "dtype": s.dtype,
        "verdict": s.verdict,
        "noise_floor": plain(s.noise_floor),
        "ratio": plain(s.ratio),
        "free_ratio": plain(s.free_ratio),
        "metrics": _metrics(s.metrics),
        "kind": s.kind,
        "candidate_shape": plain(s.candidate_shape),
        "candidate_dtype": s.candidate_dtype,
        "aligned_by": s.aligned_by,
        "notes": plain(s.notes),
        **({"step": s.step} if s.step > 1 else {}),
    }
