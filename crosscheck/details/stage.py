"""Part of stage 10, report: gathers what a page shows of single sites, while the arrays are there.

Looked into are the sites that do not agree and the few largest ratios of the others, so that the
cost and the size of a report stay bounded (`crosscheck.details.spread` looks into one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import nlargest
from typing import TYPE_CHECKING, Any

import numpy as np

from crosscheck.comparisons import Item, value_of
from crosscheck.details.spread import Values, examine
from crosscheck.judging.judge import Judge, in_reference_layout
from crosscheck.kernels.on_device import as_host
from crosscheck.results import Details, SiteDetail, SiteKey, SiteResult, WeightPair
from crosscheck.trace import Trace
from crosscheck.weights import Match
from crosscheck.weights.match import Matched
from crosscheck.weights.spelling import spelled

if TYPE_CHECKING:
    from crosscheck.training.updates import Stepped

__all__ = ["chosen", "details", "of_updates", "weight_map"]

DIFFERENT, OTHERS = 24, 3


def details(
    results: Sequence[SiteResult],
    items: Iterable[Item],
    judge: Judge,
    candidate: Trace,
    match: Match,
    held: Callable[[], Mapping[str, np.ndarray]],
    more: Sequence[SiteDetail] = (),
) -> Details:
    """What a page shows beside the results.

    Args:
        items: the comparisons that ``judge`` made in the run ``candidate``.
        held: gives the candidate's parameters by name, as they are now; called where one of them
            is looked into, since a framework may have to copy all of them.
        more: of sites that others have looked into (`of_updates`).
    """
    some = chosen(results)
    names = {result.reference for result in some}
    known: dict[SiteKey, Item] = {
        (i.phase, i.kind, i.reference, i.candidate, 1): i for i in items if i.reference in names
    }
    pairs = {(m.reference_name, m.candidate.name): m for m in match.pairs}

    def values(result: SiteResult) -> Values | None:
        if result.phase == "weights":
            return _weight(pairs.get((result.reference, result.candidate)), held())
        item = known.get(result.key)
        return None if item is None else _value(item, judge, candidate)

    return Details((*_looked_into(some, values), *more), weight_map(match))


def of_updates(
    results: Sequence[SiteResult], changes: Mapping[str, Stepped], room: int = DIFFERENT
) -> list[SiteDetail]:
    """Where the changes that two optimizers make to a parameter differ; ``room`` for so many."""
    flagged = [r for r in results if r.verdict != "agree" and r.reference in changes]
    return [examine(r, _change(changes[r.reference])) for r in flagged[: max(room, 0)]]


def _change(made: Stepped) -> Values:
    return Values(made.reference, made.candidate, made.truth)


def _looked_into(
    results: Sequence[SiteResult], values: Callable[[SiteResult], Values | None]
) -> tuple[SiteDetail, ...]:
    found = []
    for result in results:
        arrays = values(result)
        if arrays is not None:
            found.append(examine(result, arrays))
    return tuple(found)


def chosen(results: Sequence[SiteResult]) -> list[SiteResult]:
    """Those that do not agree, the first of them, and the largest ratios of the others."""
    different = [r for r in results if r.verdict != "agree"][:DIFFERENT]
    others = (r for r in results if r.verdict == "agree" and r.ratio > 0)
    taken = {id(r) for r in (*different, *nlargest(OTHERS, others, key=lambda r: r.ratio))}
    return [r for r in results if id(r) in taken]


def _value(item: Item, judge: Judge, candidate: Trace) -> Values | None:
    reference = value_of(item, judge.reference, side="reference")
    if reference is None:
        return None
    raw = value_of(item, candidate, side="candidate")
    value = in_reference_layout(item, raw, reference)
    if value is None:
        return None
    truth = judge.truth(item, reference)
    known = None if truth is reference else as_host(truth)
    return Values(as_host(reference), as_host(value), known)


def _weight(m: Matched | None, held: Mapping[str, np.ndarray]) -> Values | None:
    if m is None or m.candidate.name not in held:
        return None
    value: np.ndarray | None = held[m.candidate.name]
    if m.is_permutation:
        value = m.transform.to_reference(held[m.candidate.name])
    return None if value is None or value.shape != m.truth.shape else Values(m.truth, value)


# -- the weight map --------------------------------------------------------------------------------


def weight_map(match: Match) -> tuple[WeightPair, ...]:
    """The map that was found, in the candidate's order."""
    return tuple(
        WeightPair(m.candidate.name, m.reference_name, _steps(m), tuple(m.candidate.value.shape))
        for m in match.pairs
    )


def _steps(m: Matched) -> str:
    """The steps as `crosscheck weights` writes them."""
    if m.transform.function is not None:
        return "a function"
    value: Any = spelled(m.transform.node(m.reference.name, m.reference.value.shape))
    if isinstance(value, str):
        return "same"
    inner, steps = value
    nested = isinstance(inner, list) and not all(isinstance(name, str) for name in inner)
    return repr(value) if nested else str(steps)
