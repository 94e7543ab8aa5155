"""Stage 7, judge, with ``effort="quick"``: one free run of each side, and a-priori floors.

Each side runs on its own values; there is neither an oracle nor a second run. What an honest port
may be off by at a value y of the reference is put together from what is known beforehand and from
what was seen before it:

    η² = (max(½√n, 1)·u·S)² + (G·e·S)² ,    S = max(‖y‖, scale) ,

with u, n and scale as in `noise` (a sum of n terms is off by ½√n·u with the sign of each
rounding at random: Higham & Mary, SIAM J. Sci. Comput. 41, 2019), and e the largest relative error
of all values that were compared before this one, in the order of execution: what the value can
have inherited, magnified G times by one stretch. The same in the maximum norm.

Left alone, e could grow G-fold at every stretch. So the relative error must also stay below C·A,
where A² is the sum of the squares of all relative floors up to there: independent roundings that
are passed on unmagnified add up like that.

The largest of these ratios is ρ. It may be large where the model is ill-conditioned, or where
something is wrong; which of the two takes an oracle to say. So ρ ≤ 8 agrees, and for anything else
the check goes on to the thorough one (`crosscheck.single`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from crosscheck.adapters.base import Adapter
from crosscheck.aligning.alignment import Alignment
from crosscheck.aligning.coverage import coverage_of
from crosscheck.assemble import (
    adapter_notes,
    backward_missing,
    environment_of,
    side_of,
)
from crosscheck.compare import Difference
from crosscheck.comparisons import Item, buffer_items, gradient_items, site_items
from crosscheck.details.stage import weight_map
from crosscheck.free import FreeRuns, aligner_of
from crosscheck.judging.evidence import Evidence
from crosscheck.judging.noise import (
    Floor,
    Judgement,
    Tolerance,
    floors,
    underflow,
    unit_roundoff,
    verdict_of,
)
from crosscheck.judging.precision import dtype_notes, not_finite_notes
from crosscheck.judging.quantised import SHARE, Steps
from crosscheck.judging.reductions import Reductions
from crosscheck.judging.streamed import Looked, look
from crosscheck.losses.judging import judge_loss
from crosscheck.losses.stage import LossStage
from crosscheck.request import Request
from crosscheck.results import PHASES, Details, Report, SiteResult, worst
from crosscheck.traces.stages import unrecorded

__all__ = ["MISSED", "QuickJudge", "escalation", "judge_free_runs", "look_quickly"]

GROWTH = 2.0
"""G: how far one stretch may magnify a relative error."""
ADDED_UP = 2.0
"""C·A is ρ = 8: so many times what independent roundings add up to, at that ratio."""
_BETWEEN = ("input", "cotangent")
MISSED = (
    "each layer's own VJP, and errors below what rounding may have added up to: "
    'effort="quick" compares one free run of each side'
)


def judge_free_runs(
    alignment: Alignment,
    runs: FreeRuns,
    judge: QuickJudge,
    tolerance: Tolerance | None,
    *,
    backward: bool,
) -> tuple[list[SiteResult], list[str]]:
    """Every comparison of two free runs, in the order of execution.

    Returns:
        (results, lines on what could not be compared); nothing behind the first that is not clear.
    """
    match, reference, candidate = runs.match, runs.reference.free, runs.free
    items, missing = site_items(alignment, reference, candidate, backward=backward)
    items = [item for item in items if item.kind != "input_cotangent"]
    if backward:
        gradients, more = gradient_items(match, reference, candidate)
        items += gradients
        missing += more
    items += buffer_items(match, reference, candidate)
    known = {} if runs.streamed is None else runs.streamed.looked
    others = look((i for i in items if i not in known), reference, candidate, tolerance)
    judge.reductions.ahead(items)
    results: list[SiteResult] = []
    for item in items:
        results.append(judge.judge(known[item] if item in known else next(others)))
        if results[-1].verdict != "agree":
            break
    return results, [*missing, MISSED]


@dataclass
class QuickJudge:
    """Judges the items of two free runs one after the other; remembers what was inherited.

    Attributes:
        steps: of a quantised candidate.
        inherited: e, in the 2-norm and in the maximum norm.
        added: A².
    """

    reductions: Reductions
    steps: Steps | None = None
    inherited: tuple[float, float] = (0.0, 0.0)
    added: float = 0.0

    def judge(self, looked: Looked) -> SiteResult:
        """Judge one item; to be called in the order of execution."""
        result, judgement = looked.result, looked.judgement
        if looked.found is not None:
            judgement = self._against(looked.item, looked.found, self._floor(looked))
        if judgement is not None:
            result = result.but(**judgement._asdict())
        return result.but(free_ratio=result.ratio)

    def _floor(self, looked: Looked) -> Floor:
        item = looked.item
        step = 0.0 if self.steps is None else self.steps.held.get(item.candidate_key, 0.0)
        return Floor(
            unit=unit_roundoff(*looked.dtypes),
            reduction=self._terms(item, looked.shape),
            scale=self.reductions.scale(item),
            tiny=max(SHARE * step, *map(underflow, looked.dtypes)),
        )

    def _terms(self, item: Item, shape: tuple[int, ...]) -> float:
        """Terms summed into an element. What layers do is known; the code between them, through
        which inputs and cotangents have come, is taken for a sum over the longest axis."""
        known = self.reductions.length(item)
        return max(known, *shape) if item.kind in _BETWEEN and shape else known

    def _against(self, item: Item, found: Difference, floor: Floor) -> Judgement:
        scale = max(found.truth_l2, floor.scale)
        top = max(found.truth_max, scale / math.sqrt(max(found.size, 1)))
        own = floors(replace(found, l2=0.0, maximum=0.0), floor)
        eta = math.hypot(own[0], GROWTH * self.inherited[0] * scale)
        eta_max = math.hypot(own[1], GROWTH * self.inherited[1] * top)
        ratio = max(found.l2 / eta, found.maximum / eta_max)
        if item.phase != "parameter_gradient" and scale > 0.0:  # of gradients nothing is made
            self.added += (own[0] / scale) ** 2
            self.inherited = (
                max(self.inherited[0], found.l2 / scale),
                max(self.inherited[1], found.maximum / top),
            )
        if scale > 0.0 and self.added > 0.0:
            ratio = max(ratio, found.l2 / scale / (ADDED_UP * math.sqrt(self.added)))
        if found.mismatch:
            ratio = math.inf
        return Judgement(eta / scale if scale > 0.0 else 0.0, ratio, verdict_of(ratio))


# -- the stage -------------------------------------------------------------------------------------


def look_quickly(
    sides: tuple[Adapter, Adapter],
    runs: FreeRuns,
    request: Request,
    loss: LossStage | None,
    weights: Sequence[SiteResult],
    *,
    backward: bool,
) -> tuple[Report, Evidence]:
    """The report of two free runs; only ``agree`` is a verdict.

    Args:
        weights: the results of the parameters.
    """
    truth, candidate = runs.reference.free, runs.free
    request.say("align, and judge the free runs")
    streamed = runs.streamed
    alignment = None if streamed is None else streamed.alignment
    if alignment is None:
        alignment = aligner_of(runs, request).alignment()
    reductions = Reductions(
        sides[0].parameters(), truth, frozenset(p.reference for p in alignment.pairs)
    )
    judge = QuickJudge(reductions, sides[1].steps)
    found, missing = judge_free_runs(alignment, runs, judge, request.tolerance, backward=backward)
    loss_judge, losses, more = judge_loss(
        loss, alignment, truth, candidate, None, tolerance=request.tolerance, backward=backward
    )
    results = sorted([*weights, *losses, *found], key=lambda r: PHASES.index(r.phase))
    missing = [*more, *missing, *backward_missing(sides, request.gradients)]
    missing += unrecorded(alignment, truth) if backward else []
    report = Report(
        verdict=worst([r.verdict for r in results]),
        seed=runs.candidate.seed,
        reference=side_of(sides[0]),
        candidate=side_of(sides[1]),
        environment=environment_of(sides, request.tolerance, "quick"),
        coverage=coverage_of(alignment, runs.match, request.skip, missing),
        divergences=(),
        sites=tuple(results),
        notes=(
            *dtype_notes(results),
            *not_finite_notes(results),
            *runs.notes,
            *_of(loss),
            *adapter_notes(sides),
        ),
        name=request.name,
        details=Details(weights=weight_map(runs.match)),
    )
    evidence = Evidence(
        runs.reference.runner,
        runs.candidate,
        alignment,
        truth,
        candidate,
        candidate,
        runs.match,
        request.tolerance,
        runs.candidate.seed,
        loss=loss_judge,
    )
    return report, evidence


def _of(loss: LossStage | None) -> tuple[str, ...]:
    return () if loss is None else tuple(loss.notes)


def escalation(report: Report) -> str:
    """Why the thorough check was made."""
    first = next(r for r in report.sites if r.verdict != "agree")
    return (
        f'effort="quick" could not clear {first.phase} `{first.reference}` ({first.ratio:.3g} x '
        "what rounding may have added up to): the thorough check decided"
    )
