"""The two sides' losses side by side: values and gradients -> results, like any other site's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from crosscheck.aligning.alignment import Alignment
from crosscheck.aligning.layout import SAME
from crosscheck.arrays import is_float
from crosscheck.compare import Difference, compare
from crosscheck.comparisons import Item
from crosscheck.errors import InvalidArgument, SideFailed
from crosscheck.inputs import normal
from crosscheck.judging.judge import shrinks, site_result
from crosscheck.judging.noise import (
    DIVERGE,
    Floor,
    Tolerance,
    judge,
    underflow,
    unit_roundoff,
    within,
)
from crosscheck.losses.evaluate import LossValue, evaluate
from crosscheck.losses.sides import wide
from crosscheck.losses.stage import LossStage
from crosscheck.losses.targets import Outputs
from crosscheck.results import SiteResult
from crosscheck.trace import Trace

__all__ = ["BY", "LossJudge", "judge_loss", "moved", "pick"]

BY = "loss"
"""``aligned_by`` of the results of this stage."""
DRAWS = 4
SETTLED = 4.0 * DIVERGE
"""Ratio up to which the candidate's loss in float64 decides."""


@dataclass
class LossJudge:
    """Judges the candidate's loss on the reference's outputs.

    Attributes:
        outputs: of the reference's free run.
        free_candidate: the candidate's outputs of its free run.
        free_oracle: the reference's outputs in float64; None where it has none.
        backward: whether gradients are compared.
    """

    stage: LossStage
    outputs: Outputs
    free_candidate: Outputs
    free_oracle: Outputs | None
    tolerance: Tolerance | None
    backward: bool
    _spreads: dict[str, tuple[float, float]] = field(default_factory=dict)

    @cached_property
    def reference(self) -> LossValue:
        """The reference's own loss."""
        return self.stage.reference(self.outputs)

    @cached_property
    def truth(self) -> LossValue:
        """The loss in float64."""
        return self.stage.truth(self.outputs)

    @cached_property
    def candidate(self) -> LossValue:
        """The candidate's loss on the same outputs."""
        return self.stage.candidate(self.outputs)

    def results(self) -> list[SiteResult]:
        """The loss, then its gradient with respect to each output that it reads."""
        return [self._settled(site, item) for site, item in self.items()]

    def items(self) -> Iterator[tuple[str, Item]]:
        """(output, or nothing for the value; the comparison)."""
        yield "", Item("loss", "activation", "loss", "loss", SAME, BY)
        if not self.backward:
            return
        read = [site for site in self.stage.places if site in self.truth.gradients]
        for number, site in enumerate(read):
            name = f"loss:{number}" if number else "loss"
            yield site, Item("backward", "input_cotangent", name, name, SAME, BY)

    def output_of(self, result: SiteResult) -> str:
        """The output whose gradient a result is about; nothing for the value."""
        same = (result.phase, result.reference)
        return next(site for site, item in self.items() if (item.phase, item.reference) == same)

    # -- one comparison ----------------------------------------------------------------------------

    def _settled(self, site: str, item: Item) -> SiteResult:
        """Judged; and again with what perturbations do, in float64, and a second time."""
        result = self._judged(site, item, self.candidate)
        if result.verdict == "agree" or self.tolerance is not None:
            return result
        self._measure(site)
        result = self._judged(site, item, self.candidate)
        result = self._rescaled(site, result)
        if result.verdict == "agree":
            return result
        second = self._judged(site, item, self.stage.candidate(self.outputs))
        if second.verdict == "agree" and second.ratio != result.ratio:
            note = f"unstable: ratio {result.ratio:.3g}, then {second.ratio:.3g}"
            result = replace(result, verdict="suspect", notes=(note,))
        return result

    def _judged(self, site: str, item: Item, candidate: LossValue) -> SiteResult:
        value, reference, truth = (pick(v, site) for v in (candidate, self.reference, self.truth))
        if self.tolerance is not None:
            judgement = within(self.tolerance, value, reference)
        else:
            judgement = judge(*_errors(value, reference, truth), self.floor(site))
        result = site_result(item, reference, value, value, judgement)
        return replace(result, free_ratio=self._free_ratio(site))

    def floor(self, site: str) -> Floor:
        """What rounding may do to the value, or to the gradient at an output."""
        given = [self.outputs[s] for s in self.stage.places]
        found = [pick(v, site) for v in (self.candidate, self.reference)]
        dtypes = [v.dtype for v in (*given, *found)] + [
            d for c, d in self.stage.dtypes.items() if "float" in d.name
        ]
        l2, top = self._spreads.get(site, (0.0, 0.0))
        return Floor(
            unit=unit_roundoff(*dtypes),
            reduction=self._terms(site),
            scale=self._scale(site),
            pert_l2=l2,
            pert_max=top,
            tiny=max(underflow(v.dtype) for v in found),
        )

    def _terms(self, site: str) -> float:
        """n: how many numbers are summed into the value; into a gradient, those of the classes."""
        if not site:
            return float(sum(v.size for v in self.outputs.values() if is_float(v)))
        terms = self.stage.terms(self.outputs)
        axes = [t.options["axis"] for t in terms if site in t.outputs and "axis" in t.options]
        return float(max((self.outputs[site].shape[a] for a in axes), default=1))

    def _scale(self, site: str) -> float:
        """The size of a gradient that is made of larger numbers than its own; 0 for the others.

        CTC sums probabilities in logarithms: an error of u·|log p| in a logarithm is a relative
        one in the posterior that the gradient is made of.
        """
        found = [t for t in self.stage.terms(self.outputs) if t.name == "ctc" and site in t.outputs]
        if not found:
            return 0.0
        (term, *_) = found
        summed = replace(term, options={**term.options, "reduction": "sum"})
        mean = float(evaluate((summed,), wide(self.outputs)).value) / len(term.target["labels"])
        return float(np.linalg.norm(pick(self.truth, site))) * max(1.0, mean)

    def _measure(self, site: str) -> None:
        """e_pert: the response of the truth to outputs that are moved by a unit roundoff."""
        unit = self.floor(site).unit
        base, found = pick(self.truth, site), []
        for draw in range(DRAWS):
            there = self.stage.truth(moved(self.outputs, unit, draw))
            found.append(compare(pick(there, site), base))
        self._spreads[site] = (
            float(np.sqrt(np.mean([d.l2**2 for d in found]))),
            float(np.sqrt(np.mean([d.maximum**2 for d in found]))),
        )

    def _rescaled(self, site: str, result: SiteResult) -> SiteResult:
        """Rounding shrinks in float64, a mistake does not."""
        if result.verdict == "agree" or result.ratio > SETTLED:
            return result
        try:
            precise = self.stage.candidate(self.outputs, float64=True)
        except (SideFailed, InvalidArgument):
            return result  # it has no float64: it stays as it is
        value = pick(precise, site)
        if value.dtype != np.float64:
            return result
        truth = pick(self.truth, site)
        rounding = shrinks(compare(value, truth), compare(pick(self.candidate, site), truth))
        if rounding is True:
            return replace(result, verdict="agree", notes=("rounding: it vanishes in float64",))
        if rounding is False:
            return replace(result, verdict="diverge", notes=("not rounding: it stays in float64",))
        return result

    def _free_ratio(self, site: str) -> float | None:
        if self._free is None:
            return None
        value, truth = (pick(v, site) for v in self._free)
        reference = pick(self.reference, site)
        return judge(*_errors(value, reference, truth), self.floor(site)).ratio

    @cached_property
    def _free(self) -> tuple[LossValue, LossValue] | None:
        """(the candidate's loss on its own outputs, the truth on the oracle's)."""
        if self.free_oracle is None:
            return None
        value = self.stage.free_candidate(self.free_candidate, self.outputs)
        return value, self.stage.truth(self.free_oracle)


def judge_loss(
    stage: LossStage | None,
    alignment: Alignment,
    reference: Trace,
    candidate: Trace,
    free_oracle: Trace | None,
    *,
    tolerance: Tolerance | None,
    backward: bool,
) -> tuple[LossJudge | None, list[SiteResult], list[str]]:
    """Judge the loss of a check, if it has one.

    Args:
        reference, candidate: the free runs.

    Returns:
        (who judged, the results, lines on what could not be compared)
    """
    if stage is None:
        return None, [], []
    outputs = reference.outputs()
    if stage.by_definition is None:  # no backward pass has asked for it
        stage.begin(outputs)
    missing = stage.align(alignment, outputs, candidate.outputs())
    if missing:
        return None, [], missing
    found = LossJudge(
        stage,
        outputs,
        candidate.outputs(),
        None if free_oracle is None else free_oracle.outputs(),
        tolerance,
        backward,
    )
    return found, found.results(), []


def pick(found: LossValue, site: str) -> np.ndarray:
    """The value, or the gradient at an output; one that never arrived is a zero."""
    if not site:
        return found.value
    if site in found.gradients:
        return found.gradients[site]
    raise KeyError(site)


def _errors(
    value: np.ndarray, reference: np.ndarray, truth: np.ndarray
) -> tuple[Difference, Difference]:
    return compare(value, truth), compare(reference, truth)


def moved(outputs: Outputs, unit: float, seed: int) -> Mapping[str, np.ndarray]:
    """Outputs in float64, each element moved by a relative perturbation of size ``unit``."""
    return {
        site: v * (1.0 + unit * normal(seed, f"loss {site}", v.shape)) if is_float(v) else v
        for site, v in wide(outputs).items()
    }
