"""Part of stage 8, locate: parameters that are not each other's, since something beside them takes
part (``weights="keep"``).

A convolution into which its norm has been folded, a weight with the update of an adapter added, a
weight kept as direction and length: what the layers return is the same, the parameters are not, and
others on one side have no counterpart. Nothing says what those that are left would have to be.
"""

from __future__ import annotations

from collections.abc import Sequence

from crosscheck.adapters.base import Parameter
from crosscheck.aligning.fingerprints import PreparedTrace, repeating
from crosscheck.judging.evidence import Evidence
from crosscheck.results import SiteResult
from crosscheck.trace import Trace
from crosscheck.weights.match import Matched

__all__ = ["without_reparametrised"]

PHASES = ("weights", "parameter_gradient")


def without_reparametrised(
    results: Sequence[SiteResult], e: Evidence
) -> tuple[list[SiteResult], list[str]]:
    """The results without those of such parameters that differ; and one sentence on each."""
    left = e.match.unmatched_reference, e.match.unmatched_candidate
    wrong = [r for r in results if r.phase in PHASES and r.verdict != "agree"]
    if not wrong or not any(left):
        return list(results), []
    shown = _Shown(results, e)
    doubted = {r.reference for r in wrong}
    pairs = [m for m in e.match.pairs if not m.more and not m.tied and m.reference.name in doubted]
    beside = {m.reference.name: p for m in pairs if (p := shown.beside(m, left)) is not None}
    dropped = {id(r) for r in wrong if r.reference in beside}
    names = dict.fromkeys(r.reference for r in wrong if r.reference in beside)
    return [r for r in results if id(r) not in dropped], [
        f"`{name}`, or its gradient: `{beside[name][0]}` takes part and has no counterpart; what "
        f"the layers return {'agrees' if beside[name][1] else 'is compared'}"
        for name in names
    ]


class _Shown:
    """What layers of the two sides were seen to return."""

    def __init__(self, results: Sequence[SiteResult], e: Evidence) -> None:
        compared = [r for r in results if r.kind == "activation"]
        self._theirs = {r.candidate: (r.reference, r.verdict == "agree") for r in compared}
        self._ours = {r.reference: (r.candidate, r.verdict == "agree") for r in compared}
        self._runs = e.free_reference, e.free_candidate

    def beside(
        self, m: Matched, left: tuple[Sequence[Parameter], Sequence[Parameter]]
    ) -> tuple[str, bool] | None:
        """A parameter without counterpart that takes part in what the layer of one of a pair's
        parameters returns, by where it lies, and whether that agrees; None where there is none.

        Where it does not, the pair itself may be wrong. Then only what lies in another layer than
        theirs says that they are not each other's.
        """
        ours, theirs = m.reference.layer, m.candidate.layer
        runs = self._runs
        for seen in (_returned, _following):
            sides = (
                (seen(runs[1], theirs, self._theirs), theirs, ours, left, runs[0]),
                (seen(runs[0], ours, self._ours), ours, theirs, left[::-1], runs[1]),
            )
            for returned, own, twin, (there, here), run in sides:
                for layer, agrees in returned:
                    places = [(there, layer)] if agrees or not _lies_at(layer, twin) else []
                    places += [(here, own)] if agrees else []
                    around = [p for some, at in places for p in some if _lies_at(p.layer, at)]
                    between = _between(run, twin, layer)
                    around += [
                        p for p in there if p.layer in between and (agrees or p.layer != twin)
                    ]
                    if around:
                        return around[0].name, agrees
        return None


def _returned(
    trace: Trace, layer: str, known: dict[str, tuple[str, bool]]
) -> list[tuple[str, bool]]:
    """The layers of the other side that return what a layer shall, or what a layer behind it that
    changes nothing hands on; and whether they agree."""
    side = PreparedTrace.of(trace)
    if layer not in side.order:
        return []
    if layer in known:
        return [known[layer]]
    alike = [s for s in _behind(side, layer, known) if side.shapes[s] == side.shapes[layer]]
    return [known[s] for s in repeating(side, layer, alike)]


def _following(
    trace: Trace, layer: str, known: dict[str, tuple[str, bool]]
) -> list[tuple[str, bool]]:
    """Where nothing returns what a layer shall (the activation is part of it here, and a function
    call there): the next one that is compared, which agrees where all behind it do."""
    side = PreparedTrace.of(trace)
    behind = _behind(side, layer, known) if layer not in known else []
    if not behind:
        return []
    return [(known[behind[0]][0], all(known[s][1] for s in behind))]


def _behind(side: PreparedTrace, layer: str, known: dict[str, tuple[str, bool]]) -> list[str]:
    """Those of the known sites that return after a layer, in order."""
    here = side.order.get(layer, len(side.order))
    behind = [s for s in known if side.order.get(s, -1) > here]
    return sorted(behind, key=side.order.__getitem__)


def _between(trace: Trace, layer: str, end: str) -> set[str]:
    """A layer and those that return after it and before another one."""
    place = {site: i for i, site in enumerate(trace.shapes())}
    if layer not in place or end not in place:
        return set()
    return {s for s, i in place.items() if place[layer] <= i < place[end]}


def _lies_at(layer: str, place: str) -> bool:
    """Whether a layer's path is a site's, or lies below it."""
    place = place.partition("#")[0]
    return layer == place or layer.startswith((f"{place}.", f"{place}/"))
