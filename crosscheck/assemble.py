"""Part of stage 10, report: puts together what a check says: its results, and beside them sides,
environment, coverage and notes."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crosscheck.adapters.base import Adapter
from crosscheck.adapters.trace import TraceAdapter
from crosscheck.aligning.coverage import coverage_of
from crosscheck.details.stage import details
from crosscheck.devices import as_they_ran
from crosscheck.judging.evidence import Evidence, Judged
from crosscheck.judging.noise import Tolerance
from crosscheck.judging.precision import dtype_notes, not_finite_notes
from crosscheck.request import Request
from crosscheck.results import (
    Divergence,
    Report,
    Side,
    SiteDetail,
    SiteResult,
    Verdict,
    worst,
)
from crosscheck.traces.offline import weights_unknown
from crosscheck.traces.stages import unrecorded

__all__ = [
    "Findings",
    "adapter_notes",
    "backward_missing",
    "environment_of",
    "report_of",
    "side_of",
]


@dataclass(frozen=True)
class Findings:
    """What a check has found.

    Attributes:
        results: of all phases, in order.
        unseen: notes on what only the free runs show.
        missing: lines on what was not compared.
        notes: on the weights, the loss and the steps.
        closer: notes on the operations at which the sides part.
        details: of the steps.
    """

    judged: Judged
    results: list[SiteResult]
    divergences: tuple[Divergence, ...]
    unseen: list[str]
    missing: list[str]
    notes: list[str]
    closer: list[str] = field(default_factory=list)
    details: list[SiteDetail] = field(default_factory=list)


def report_of(
    sides: tuple[Adapter, Adapter],
    request: Request,
    e: Evidence,
    found: Findings,
    before: Sequence[str] = (),
) -> Report:
    """The report of a thorough check.

    Args:
        before: notes that come first.
    """
    results = found.results
    missing = [*found.missing, *backward_missing(sides, request.gradients)]
    if request.gradients and all(side.capabilities.cotangents for side in sides):
        missing += unrecorded(e.alignment, e.free_reference)
    notes = [*before, *found.unseen, *dtype_notes(results), *not_finite_notes(results)]
    notes += [*found.closer, *found.notes]
    verdicts: list[Verdict] = [r.verdict for r in results]
    part = {} if request.part is None else {"part": list(request.part)}
    return Report(
        verdict=worst([*verdicts, "suspect"] if found.unseen else verdicts),
        seed=e.seed,
        reference=side_of(sides[0]),
        candidate=side_of(sides[1]),
        environment={**environment_of(sides, request.tolerance, "thorough"), **part},
        coverage=coverage_of(e.alignment, e.match, request.skip, missing),
        divergences=found.divergences,
        sites=tuple(results),
        notes=(*notes, *adapter_notes(sides)),
        name=request.name,
        details=details(
            results,
            found.judged.by_item,
            found.judged.judge,
            e.forced,
            e.match,
            lambda: {p.name: p.value for p in sides[1].parameters()},
            found.details,
        ),
    )


def backward_missing(sides: tuple[Adapter, Adapter], gradients: bool) -> list[str]:
    """Lines on why there was no backward pass; none where there was."""
    if not gradients:
        return ["backward: gradients=False"]
    return [
        f"backward: the {side} ({adapter.framework}) has no backward pass"
        for side, adapter in zip(("reference", "candidate"), sides, strict=True)
        if not adapter.capabilities.cotangents
    ]


def adapter_notes(sides: tuple[Adapter, Adapter]) -> list[str]:
    """What an adapter has to say about its model (how an ONNX file was exported, ...)."""
    return [
        f"{side} ({adapter.framework}): {note}"
        for side, adapter in zip(("reference", "candidate"), sides, strict=True)
        for note in adapter.notes
    ]


def side_of(adapter: Adapter) -> Side:
    """One side, for the report."""
    return Side(adapter.framework, adapter.version, adapter.device)


def environment_of(
    sides: tuple[Adapter, Adapter], tolerance: Tolerance | None, effort: str
) -> dict[str, Any]:
    """Versions, precision, and how thoroughly was looked."""
    from crosscheck import __version__

    return {
        "crosscheck": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": np.__version__,
        **{side.framework: side.version for side in sides},
        "float32_matmul": "full precision on both sides",
        "bit_generator": "Philox-4x64-10",
        "effort": effort,
        **as_they_ran(sides),
        **weights_unknown(*(s.trace if isinstance(s, TraceAdapter) else s for s in sides)),
        **({} if tolerance is None else {"tolerance": str(tolerance)}),
    }
