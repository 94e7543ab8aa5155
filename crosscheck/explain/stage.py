"""Stage 9, explain: located divergences -> the same, with causes.

For each of the first divergences every registered hypothesis looks at the reference's layer, what
it was given and what the candidate made of it, and may say what the mistake is together with a way
to predict the candidate's value. `verify` keeps what reproduces it, on these inputs and on fresh
ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from crosscheck.errors import CrosscheckError
from crosscheck.explain.evidence import Evidence
from crosscheck.explain.gather import Sites, at_weights, on_fresh_inputs
from crosscheck.explain.loss_evidence import at_loss
from crosscheck.explain.verify import causes
from crosscheck.judging.evidence import Evidence as Check
from crosscheck.judging.judge import Judge
from crosscheck.losses.judging import BY
from crosscheck.results import Cause, Divergence, SiteResult

__all__ = ["MOST", "explained"]

MOST = 5  # so many divergences are explained; what follows from the first looks like it


def explained(
    divergences: Sequence[Divergence],
    results: Sequence[SiteResult],
    check: Check,
    judge: Judge,
) -> tuple[Divergence, ...]:
    """The divergences, the first `MOST` of them with causes where any were found.

    Args:
        divergences: one for each of ``results`` that does not agree, in the same order.
        results: every comparison.
        check: both sides, the alignment and the traces of the check.
        judge: of the check, for the oracle's values and the floors.
    """
    flagged = [result for result in results if result.verdict != "agree"]
    chosen = list(zip(divergences, flagged, strict=True))[:MOST]
    backward = check.reference.cotangents is not None
    first = Sites(check, check.free_reference, check.forced, judge, backward)
    fresh = _Fresh(first, [result for _, result in chosen])
    found = [replace(d, causes=_causes(result, first, fresh)) for d, result in chosen]
    return (*found, *divergences[len(found) :])


class _Fresh:
    """The runs on fresh inputs, made once and only when something needs them."""

    def __init__(self, first: Sites, wanted: Sequence[SiteResult]) -> None:
        self._first, self._wanted = first, wanted
        self._sites: Sites | None = None
        self._asked = False

    def at(self, result: SiteResult) -> Evidence | None:
        if not self._asked:
            self._asked = True
            try:
                self._sites = self._made()
            except CrosscheckError:
                self._sites = None  # a model that cannot take them: nothing is verified
        return None if self._sites is None else self._sites.at(result)

    def _made(self) -> Sites | None:
        items = [item for result in self._wanted if (item := self._first.item(result)) is not None]
        backward = any(item.phase in ("backward", "parameter_gradient") for item in items)
        check, judge = self._first.check, self._first.judge
        return on_fresh_inputs(check, judge, backward=backward, only=items)


def _causes(result: SiteResult, first: Sites, fresh: _Fresh) -> tuple[Cause, ...]:
    if result.phase == "weights":
        weights = at_weights(first.check, result)
        return () if weights is None else causes(weights, lambda: weights)
    if result.aligned_by == BY and first.check.loss is not None:
        loss, judge = at_loss(first.check.loss, result), first.check.loss
        return () if loss is None else causes(loss, lambda: at_loss(judge, result, fresh=True))
    evidence = first.at(result)
    if evidence is not None and result.reference.startswith("input:"):
        return causes(evidence, lambda: evidence)  # what both were fed: no run makes it
    return () if evidence is None else causes(evidence, lambda: fresh.at(result))
