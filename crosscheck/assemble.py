"""Part of stage 10, report: what a check says beside its results: sides, environment, coverage."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from crosscheck.adapters.base import Adapter
from crosscheck.aligning.alignment import Alignment
from crosscheck.devices import as_they_ran
from crosscheck.judging.noise import Tolerance
from crosscheck.request import Request
from crosscheck.results import Coverage, Side
from crosscheck.weights import Match

__all__ = ["adapter_notes", "backward_missing", "coverage_of", "environment_of", "side_of"]


def coverage_of(
    alignment: Alignment, match: Match, request: Request, missing: list[str]
) -> Coverage:
    """What was paired and what was not; ``missing``: lines on what was not compared."""
    return Coverage(
        aligned=len(alignment.pairs),
        unmatched_reference=alignment.unmatched_reference,
        unmatched_candidate=alignment.unmatched_candidate,
        skipped=tuple(request.skip),
        parameters_matched=len(match.pairs),
        unmatched_reference_parameters=tuple(p.name for p in match.unmatched_reference),
        unmatched_candidate_parameters=tuple(p.name for p in match.unmatched_candidate),
        not_compared=tuple(missing),
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
        **({} if tolerance is None else {"tolerance": str(tolerance)}),
    }
