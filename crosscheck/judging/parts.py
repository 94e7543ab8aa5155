"""One check in parts, on several machines: each compares one stretch of the run.

In a forced run every aligned value is replaced by the reference's, so that the stretches between
them do not depend on each other. A part runs both sides freely, forces the candidate and judges the
comparisons of its own stretch, with the oracle where that takes one. Calls of layers that none of
these needs are left out where the adapter can (PyTorch).

A part can only clear its stretch. Where one does not, or where the free runs leave alignment
something to look into, it raises `NotCleared`, and the check is to be made as a whole: there is
something to locate and to explain then, for which all runs are needed. So whatever the parts say
when they are joined, the whole check says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from crosscheck.adapters.base import Adapter
from crosscheck.comparisons import Item, every_gradient
from crosscheck.details.stage import OTHERS
from crosscheck.errors import CannotCompare, CannotSplit, InvalidArgument
from crosscheck.judging.evidence import Evidence, Part
from crosscheck.judging.left_out import spared_of_candidate
from crosscheck.results import PHASES, Report, SiteKey, SiteResult
from crosscheck.trace import RunInfo, Trace, owner

__all__ = [
    "NotCleared",
    "as_whole",
    "joined",
    "left_out",
    "of_part",
    "require_cleared",
    "require_splittable",
]


class NotCleared(CannotCompare):
    """A part does not clear its stretch: check the whole."""


def require_splittable(sides: Sequence[Adapter], part: Part | None) -> None:
    """Raise `CannotSplit` for a part of what has no forced run to split, or nothing to judge the
    stretches by. Nothing has been run then."""
    if part is None:
        return
    whole = "check it as a whole"
    for side in sides:
        if not side.capabilities.forcing:
            raise CannotSplit(part, f"a check of a recorded run ({side.framework})", fix=whole)
    if not sides[0].capabilities.float64:
        framework = sides[0].framework
        what = f"a check whose reference ({framework}) has no float64 to judge each stretch by"
        raise CannotSplit(part, what, fix=f"{whole}, or make the {framework} model the candidate")


def of_part(items: Sequence[Item], reference: Trace, part: Part | None) -> list[Item]:
    """The comparisons of a part: those of a stretch of the reference's run, forward and backward.

    Args:
        items: all comparisons.
        reference: its free run.
        part: None: all of them.
    """
    if part is None:
        return list(items)
    number, count = part
    bounds = _bounds(reference, count)
    return [item for item in items if bounds.get(_call(item, reference), 0) == number - 1]


def _bounds(reference: Trace, count: int) -> dict[str, int]:
    """Layer call -> its stretch. They hold about as many elements each."""
    sizes: dict[str, int] = {}
    for site, shape in reference.shapes().items():
        size = 1
        for length in shape:
            size *= length
        sizes[owner(site)] = sizes.get(owner(site), 0) + size
    total, before, found = max(1, sum(sizes.values())), 0, {}
    for call, size in sizes.items():
        found[call] = min(count - 1, before * count // total)
        before += size
    return found


def _call(item: Item, reference: Trace) -> str:
    """The layer call that a comparison belongs to, forward and backward."""
    if item.kind == "parameter":
        path = item.reference.rpartition(".")[0] or item.reference.rpartition("/")[0]
        layers = reference.info.layers
        while path and path not in layers:
            path = path.rpartition(".")[0] or path.rpartition("/")[0]
        return path
    return owner(item.reference)


def left_out(e: Evidence, items: Iterable[Item]) -> frozenset[str]:
    """The candidate's layer calls that its forced run need not compute for these comparisons."""
    if e.part is None:
        return frozenset()
    forced = e.alignment.forced_on_candidate(e.free_reference)
    gradients = every_gradient(e.match, e.free_reference)
    wanted = [*items, *of_part(gradients, e.free_reference, e.part)]
    return spared_of_candidate(e.candidate, e.free_candidate, wanted, forced)


def as_whole(e: Evidence, info: RunInfo, needless: frozenset[str]) -> RunInfo:
    """What a run without the calls in ``needless`` says of the model, with the structure of the
    free run, and zeros for the gradients of parameters that only those calls use."""
    if e.part is None:
        return info
    free, gradients = e.free_candidate.info, dict(info.parameter_gradients)
    paths = {call.partition("#")[0] for call in needless}
    for p in e.candidate.parameters() if gradients else ():
        around = [p.layer[:i] for i, c in enumerate(p.layer) if c in "./"]
        if p.trainable and not paths.isdisjoint([p.layer, *around]):
            gradients.setdefault(
                p.name, np.broadcast_to(np.zeros((), p.value.dtype), p.value.shape)
            )
    structure = {"layers": free.layers, "sources": free.sources, "parents": free.parents}
    return replace(info, parameter_gradients=gradients, **structure)  # type: ignore[arg-type]


def require_cleared(e: Evidence, results: Mapping[Item, SiteResult]) -> None:
    """Raise `NotCleared` where a comparison of a part does not agree, or was doubtful enough to ask
    the whole oracle: that judges all comparisons then, and not those of one part."""
    if e.part is None:
        return
    where = "part {} of {}".format(*e.part)
    wrong = next((r for r in results.values() if r.verdict != "agree"), None)
    if wrong is not None:
        raise NotCleared(
            f"{where} does not clear {wrong.phase} `{wrong.reference}` (ratio {wrong.ratio:.3g}): "
            "the whole check decides"
        )
    if "whole_oracle" in vars(e):
        raise NotCleared(f"{where} holds something doubtful: the whole check decides")


def joined(reports: Sequence[Report]) -> Report:
    """The report of the whole check, from those of all its parts in order.

    Raises:
        InvalidArgument: a part is missing, or one does not agree.
    """
    parts = [report.environment.get("part") for report in reports]
    wanted = [[number, len(reports)] for number in range(1, len(reports) + 1)]
    if [list(part or ()) for part in parts] != wanted or not reports:
        raise InvalidArgument(f"these are no parts of one check, in order: {parts}")
    if any(report.verdict != "agree" for report in reports):
        raise InvalidArgument("a part does not agree: make the check as a whole")
    first = reports[0]
    sites: dict[SiteKey, SiteResult] = {}
    for report in reports:
        for site in report.sites:
            sites.setdefault(site.key, site)
    environment = {k: v for k, v in first.environment.items() if k != "part"}
    details = {d.key: d for report in reports for d in report.details.sites}
    largest = sorted(details.values(), key=lambda d: sites[d.key].ratio, reverse=True)
    return replace(
        first,
        environment={**environment, "parts": len(reports)},
        sites=tuple(sorted(sites.values(), key=lambda site: PHASES.index(site.phase))),
        notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
        details=replace(first.details, sites=tuple(largest[:OTHERS])),
    )
