"""Part of stage 8, locate, for two recorded runs: which of many differences came first.

Values are taken in execution order. A departure is an unbroken run of values that do not agree; it
begins where all before it agrees, so that its first value is to blame. The first departure beyond
doubt ends the search: whatever differs after it may be inherited, and is left a suspect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from crosscheck.aligning.alignment import Alignment
from crosscheck.locating.gradients import layer_of
from crosscheck.locating.locate import Locator
from crosscheck.results import PHASES, Divergence, SiteResult, Verdict, worst
from crosscheck.trace import Trace

__all__ = ["Departures", "locate"]

INHERITED = "differs behind the first departure: inherited, or wrong in itself"
_STATEMENTS = {
    ("forward", "activation"): "every value before it agrees",
    ("backward", "input_cotangent"): "the layer's own VJP is wrong: its activations and the "
    "cotangent that it was given agree with the reference's",
    ("parameter_gradient", "parameter"): "the gradient of this parameter is wrong: the activations "
    "and the cotangent behind it agree with the reference's",
}


@dataclass(frozen=True)
class Departures:
    """The judged values of two free runs, with the first departures picked out.

    Attributes:
        results: all of them in the order of the phases; what may be inherited is a suspect, with
            a note.
        blamed: id of a result to blame -> the worst verdict of the departure that it begins.
    """

    results: tuple[SiteResult, ...]
    blamed: dict[int, Verdict]

    @classmethod
    def of(cls, results: Sequence[SiteResult]) -> Departures:
        """Sort out the results of one comparison (each ratio is of the free runs)."""
        groups = {p: [r for r in results if r.phase == p] for p in PHASES}
        blamed: dict[int, Verdict] = {}
        blamed |= {id(r): r.verdict for r in groups["weights"] if r.verdict != "agree"}
        forward = _first(groups["forward"])
        certain = "diverge" in forward.values()
        backward = {} if certain else _first(groups["backward"])
        blamed |= forward | backward
        if not certain:
            right = {r.reference for r in groups["backward"] if r.verdict == "agree"}
            for r in groups["parameter_gradient"]:
                if r.verdict != "agree" and (not backward or layer_of(r.reference) in right):
                    blamed[id(r)] = r.verdict
            blamed |= {id(r): r.verdict for r in groups["buffer"] if r.verdict != "agree"}
        kept: list[SiteResult] = []
        verdicts: dict[int, Verdict] = {}
        for r in (r for phase in PHASES for r in groups[phase]):
            new = _free(r, blamed=id(r) in blamed)
            kept.append(new)
            if id(r) in blamed:
                verdicts[id(new)] = blamed[id(r)]
        return cls(tuple(kept), verdicts)

    @property
    def verdict(self) -> Verdict:
        """Of the whole comparison."""
        return worst([*(r.verdict for r in self.results), *self.blamed.values()])


def _first(rows: Sequence[SiteResult]) -> dict[int, Verdict]:
    """The departures up to and with the first one beyond doubt: id of its first value -> verdict"""
    found: dict[int, Verdict] = {}
    start: SiteResult | None = None
    for row in rows:
        if row.verdict == "agree":
            start = None
        else:
            start = start or row
            found[id(start)] = worst([found.get(id(start), "agree"), row.verdict])
        if start is None and "diverge" in found.values():
            break
    return found


def _free(row: SiteResult, *, blamed: bool) -> SiteResult:
    """A result of free runs: its ratio is the free ratio; behind a departure it is no verdict."""
    if row.phase == "weights":
        return row
    row = replace(row, free_ratio=row.ratio)
    if row.verdict == "agree" or blamed:
        return row
    return replace(row, verdict="suspect", notes=(*row.notes, INHERITED))


class _FreeLocator(Locator):
    """Names the place of a departure, in words that hold without forcing."""

    def _blame(self, result: SiteResult, gradients: Sequence[SiteResult]) -> Any:
        blame = super()._blame(result, [])  # free gradients have inherited what is wrong before
        statement = _STATEMENTS.get((result.phase, result.kind))
        if statement is not None:
            blame = replace(blame, statement=statement)
        if blame.candidate is None and blame.reference is not None:
            partners = {p.reference: p.candidate for p in self.alignment.pairs}
            blame = replace(blame, candidate=partners.get(blame.reference))
        return blame


def locate(
    departures: Departures, alignment: Alignment, reference: Trace, candidate: Trace
) -> tuple[Divergence, ...]:
    """The divergences: one for each departure to blame, in execution order."""
    rows = [r for r in departures.results if r.verdict == "agree" or id(r) in departures.blamed]
    found = _FreeLocator(alignment, reference, candidate).locate(rows)
    verdicts = [departures.blamed[id(r)] for r in rows if r.verdict != "agree"]
    return tuple(
        replace(d, verdict="suspect" if v == "suspect" else "diverge")
        for d, v in zip(found, verdicts, strict=True)
    )
