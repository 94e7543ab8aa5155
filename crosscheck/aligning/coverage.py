"""What an alignment and a match of parameters have covered, for the report."""

from __future__ import annotations

from collections.abc import Iterable

from crosscheck.aligning.alignment import Alignment
from crosscheck.results import Coverage
from crosscheck.weights import Match

__all__ = ["coverage_of"]


def coverage_of(
    alignment: Alignment, match: Match, skip: Iterable[str], missing: Iterable[str]
) -> Coverage:
    """What was paired and what was not.

    Args:
        skip: sites that were left out because somebody said so.
        missing: lines on what was not compared.
    """
    return Coverage(
        aligned=len(alignment.pairs),
        unmatched_reference=alignment.unmatched_reference,
        unmatched_candidate=alignment.unmatched_candidate,
        skipped=tuple(skip),
        parameters_matched=len(match.pairs),
        unmatched_reference_parameters=tuple(p.name for p in match.unmatched_reference),
        unmatched_candidate_parameters=tuple(p.name for p in match.unmatched_candidate),
        not_compared=tuple(missing),
    )
