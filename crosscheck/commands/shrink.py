"""`crosscheck run --shrink`: what follows on a report with a divergence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosscheck.errors import CrosscheckError

if TYPE_CHECKING:
    from crosscheck.pair import Pair
    from crosscheck.results import Report

__all__ = ["shrink_reported"]


def shrink_reported(
    pair: Pair,
    candidate: str | None,
    report: Report,
    directory: Path,
    arguments: Mapping[str, Any],
    say: Callable[[str], None],
) -> str:
    """Shrink the first divergence of ``report``, from the inputs with which it was seen.

    Returns:
        What came of it; where that is nothing, why: the report stands all the same.
    """
    from crosscheck.probes.inputs import BUILT_IN

    options = dict(arguments)
    seen = next((p.name for p in report.probes if p.first is report.first_divergence), None)
    if seen is not None and seen.startswith("seed "):
        options["seed"] = int(seen.removeprefix("seed "))
    probe = seen if seen in BUILT_IN else None
    try:
        made = pair.shrink(candidate, directory=directory, probe=probe, progress=say, **options)
    except CrosscheckError as error:
        return f"not shrunk: {error}"
    return str(made)
