"""What judging is given (`Evidence`), and what it says of it (`Judged`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from crosscheck.aligning.alignment import Alignment
from crosscheck.comparisons import Item, SiteItems, gradient_items
from crosscheck.judging.judge import Judge
from crosscheck.judging.noise import Tolerance
from crosscheck.judging.reductions import Reductions
from crosscheck.losses.judging import LossJudge
from crosscheck.oracle import oracle
from crosscheck.results import SiteResult
from crosscheck.run import Runner
from crosscheck.trace import Trace
from crosscheck.weights import Match

__all__ = ["Evidence", "Judged", "Part"]

Part = tuple[int, int]
"""The number of a part of a check, from 1, and how many there are (`crosscheck.judging.parts`)."""


@dataclass
class Evidence:
    """Everything that judging may consult.

    Attributes:
        free_float64: makes the reference's free forward pass in float64, or has it already.
        forced: the candidate's forced run; sifted, where ``near`` is given (`sifting`).
        keeps_gradients: whether those of the forced run are needed whatever they are.
        near: what was judged against the reference's own values while the candidate ran.
        free_bounds: the free ratios, where the free runs alone tell that nothing is inherited.
        part: of the comparisons that are to be made (`parts`); None: all.
    """

    reference: Runner
    candidate: Runner
    alignment: Alignment
    free_reference: Trace
    free_candidate: Trace
    forced: Trace
    match: Match
    tolerance: Tolerance | None
    seed: int
    make_judge: Callable[..., Judge] = Judge
    loss: LossJudge | None = None
    free_float64: Callable[[], Trace | None] | None = None
    keeps_gradients: bool = False
    near: Mapping[Item, SiteResult] = field(default_factory=dict)
    free_bounds: Mapping[Item, float | None] | None = None
    part: Part | None = None
    _gradient_items: dict[tuple[str, ...], tuple[list[Item], list[str]]] = field(
        default_factory=dict, init=False
    )

    def new_judge(self) -> Judge:
        """A judge that has no oracle yet."""
        return self.make_judge(
            reference=self.free_reference,
            oracle=None,
            free_oracle=None,
            free_candidate=self.free_candidate,
            reductions=self.reductions,
            tolerance=self.tolerance,
            steps=self.candidate.adapter.steps,
        )

    @cached_property
    def reductions(self) -> Reductions:
        """What is known of the sums behind the reference's values."""
        return Reductions(
            self.reference.parameters(),
            self.free_reference,
            frozenset(p.reference for p in self.alignment.pairs),
        )

    @cached_property
    def site_items(self) -> SiteItems:
        """The comparisons of activations and cotangents."""
        return SiteItems(self.alignment, self.free_reference)

    def gradient_items(self, candidate: Trace) -> tuple[list[Item], list[str]]:
        """`crosscheck.comparisons.gradient_items` for a run of the candidate."""
        names = tuple(candidate.info.parameter_gradients)
        if names not in self._gradient_items:
            found = gradient_items(self.match, self.free_reference, candidate)
            self._gradient_items[names] = found
        return self._gradient_items[names]

    @cached_property
    def free_oracle(self) -> Trace | None:
        """The reference's forward pass in float64, on its own values; made when it is first asked
        for."""
        if self.free_float64 is not None:
            return self.free_float64()
        return oracle(replace(self.reference, cotangents=None))

    def free_in_float64(self, *, backward: bool) -> Trace | None:
        """The same; with a backward pass where one is asked for."""
        made = vars(self).get("free_oracle")
        if backward and not (made and any(kind == "cotangent" for kind, _ in made.values)):
            return oracle(self.reference)
        return self.free_oracle

    @cached_property
    def whole_oracle(self) -> Trace | None:
        """The reference in float64, forced at every aligned site, nothing left out; made when it
        is first asked for."""
        return oracle(self.reference, self.alignment.forced_on_reference(self.free_reference))


@dataclass
class Judged:
    """All results of a check, what could not be compared, and who judged (oracle, floors)."""

    by_item: Mapping[Item, SiteResult]
    not_compared: list[str]
    judge: Judge

    @property
    def results(self) -> list[SiteResult]:
        return list(self.by_item.values())
