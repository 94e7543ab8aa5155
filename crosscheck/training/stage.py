"""The training step: the optimizers of both sides, over one step or several.

Every step starts from the reference's weights θₖ, on both sides. The first one's forward and
backward pass are those of the check; later ones run again with θₖ and the alignment of the first.
Then both optimizers are given θₖ and the *reference's* gradients, each keeps a state of its own,
and what they make of it is compared (`updates`). The reference's result is θₖ₊₁.

Nothing is written to the models: values are passed as overrides.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from crosscheck.adapters.base import Adapter
from crosscheck.adapters.trace import TraceAdapter
from crosscheck.cotangents import CandidateCotangents, ReferenceCotangents
from crosscheck.details.stage import DIFFERENT, of_updates
from crosscheck.errors import (
    CannotCompare,
    CrosscheckError,
    InvalidArgument,
    SideFailed,
    capped,
)
from crosscheck.explain.fresh import fresh_inputs
from crosscheck.explain.updates import UpdateEvidence
from crosscheck.explain.verify import causes
from crosscheck.judging.evidence import Evidence
from crosscheck.locating.locate import Locator
from crosscheck.locating.severed import Severed
from crosscheck.losses.judging import judge_loss
from crosscheck.observers import Forcer
from crosscheck.optimizers.definition import excluded
from crosscheck.optimizers.rules import Rule
from crosscheck.optimizers.sides import SideOptimizer, both, side_optimizer
from crosscheck.oracle import oracle
from crosscheck.pipeline import judge_all, with_vjps
from crosscheck.request import Request
from crosscheck.results import PHASES, Cause, Divergence, SiteDetail, SiteResult
from crosscheck.run import Runner
from crosscheck.training.layout import Layout
from crosscheck.training.microbatches import split
from crosscheck.training.stepping import Made, Steppers
from crosscheck.training.updates import Conditioning, Given, Past, judge_update

__all__ = ["Trained", "in_order", "trained"]

KNOWS_FROZEN = ("torch", "keras", "tensorflow")
EXPLAINED = 5
Arrays = Mapping[str, np.ndarray]


@dataclass
class Trained:
    """What the optimizer step and the later steps add to a report."""

    results: list[SiteResult] = field(default_factory=list)
    divergences: list[Divergence] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: list[SiteDetail] = field(default_factory=list)


def in_order(results: Sequence[Any]) -> list[Any]:
    """Results or divergences by step and phase."""
    return sorted(results, key=lambda r: (r.step, PHASES.index(r.phase)))


def trained(
    sides: tuple[Adapter, Adapter], e: Evidence, request: Request, first: Sequence[SiteResult]
) -> Trained:
    """Make ``request.steps`` steps.

    Args:
        e: the runs of the check, which is the first step.
        first: its results. What diverges there and again later is reported once.

    Raises:
        CannotCompare: the reference gives no gradients.
        InvalidArgument: an optimizer that cannot be used on its side.
        SideFailed: an optimizer, or a model with later weights, raised.
    """
    return _Training(sides, e, request, first).run()


class _Training:
    def __init__(
        self,
        sides: tuple[Adapter, Adapter],
        e: Evidence,
        request: Request,
        first: Sequence[SiteResult],
    ) -> None:
        self._sides, self._request, self._e = sides, request, e
        self._out = Trained()
        self._seen = {_key(r) for r in first if r.verdict != "agree"}
        if isinstance(sides[0], TraceAdapter):
            _require_recorded(sides[0], request.steps)
        self._layout = Layout.of(e.match, sides[1].framework in KNOWS_FROZEN)
        self._optimizers = self._chosen()
        self._out.not_compared += self._layout.missing
        left = [p.name for p in e.match.unmatched_reference if p.trainable]
        self._out.not_compared += [f"update of `{n}`: it has no counterpart" for n in left]
        # The candidate has no place for a later value of these, so both sides keep the first one.
        self._unmatched = {p.name for p in e.match.unmatched_reference}
        self._kept = self._unmatched | e.match.partial
        if request.steps > 1 and (kept := sorted({*left, *e.match.partial})):
            self._out.notes.append(
                "later steps start from the first values of what the candidate has no counterpart "
                f"for: {capped(kept)}"
            )

    def _chosen(self) -> tuple[SideOptimizer, SideOptimizer]:
        given = both(self._request.optimizer)
        found = []
        for side, one, adapter in zip(("reference", "candidate"), given, self._sides, strict=True):
            try:
                found.append(side_optimizer(one, adapter, self._exempt(one, side)))
            except InvalidArgument as error:
                raise InvalidArgument(f"the {side}'s {error}") from error.__cause__
        return found[0], found[1]

    def _exempt(self, given: Any, side: str) -> frozenset[str]:
        """The side's own names of the parameters that a named optimizer does not let decay."""
        if not isinstance(given, Rule) or not given.exclude:
            return frozenset()
        names = excluded(given.exclude, self._sides[0].parameters())
        if side == "reference":
            return names
        found = set()
        for m in self._e.match.pairs:
            inside = {p.name in names for p in m.references}
            if inside == {True, False}:
                raise InvalidArgument(
                    f"optimizer=: exclude names a part of `{m.candidate.name}`, which the "
                    "candidate holds as one"
                )
            if inside == {True}:
                found.add(m.candidate.name)
        return frozenset(found)

    # -- steps -------------------------------------------------------------------------------

    def run(self) -> Trained:
        values = {p.name: np.array(p.value) for p in self._sides[0].parameters()}
        pair = Steppers(self._optimizers, self._layout)
        past = Past()
        for step in range(1, self._request.steps + 1):
            self._request.say(f"step {step} of {self._request.steps}: optimizer")
            now = self._e if step == 1 else self._again(values, step)
            given = [self._gradients(now, values, o.accumulate) for o in self._optimizers]
            past = past.then(Given(values, tuple(given[0]), tuple(given[1])))
            made = pair.step(past, now.forced.info.parameter_gradients)
            results = self._judged(pair, made, past, step)
            self._take(results, now)
            room = DIFFERENT - len(self._out.details)
            self._out.details += of_updates(results, made.changes, room)
            if self._request.explain:
                self._explain(results, made, past)
            moved = {**made.after, **now.free_reference.info.buffers}
            moved = {name: value for name, value in moved.items() if name not in self._kept}
            values = {**values, **moved}
        self._out.notes += pair.notes()
        self._out.results = in_order(self._out.results)
        self._out.divergences = in_order(self._out.divergences)
        return self._out

    def _again(self, values: Arrays, step: int) -> Evidence:
        """The runs of the check once more, with the weights of a later step."""
        e, say = self._e, self._request.say
        say(f"step {step}: forward and backward with the reference's weights")
        source = copy.copy(e.reference.cotangents)  # it remembers the latest outputs
        ours = replace(e.reference, values=values, cotangents=source)
        free = ours.record(passive=True)
        theirs = replace(e.candidate, values=self._layout.to_candidate(values))
        if isinstance(theirs.cotangents, CandidateCotangents):
            given = getattr(source, "given", theirs.cotangents.given)
            theirs.cotangents = replace(theirs.cotangents, reference=free, given=given)
        free, free_oracle = with_vjps(ours, free), oracle(ours)
        backward = theirs.cotangents is not None
        own = theirs.record(passive=True)
        loss, losses, missing = judge_loss(
            getattr(source, "stage", None),
            e.alignment,
            free,
            own,
            free_oracle,
            tolerance=e.tolerance,
            backward=backward,
        )
        later = replace(
            e,
            reference=ours,
            candidate=theirs,
            free_reference=free,
            free_candidate=own,
            forced=theirs.record(Forcer(e.alignment.forced_on_candidate(free))),
            loss=loss,
            near={},  # what was found of the first step says nothing of this one
            free_bounds=None,
        )
        later.free_oracle = free_oracle
        judged = judge_all(later, backward=backward)
        severed = Severed(free, later.forced, judged.results)
        results = in_order([replace(r, step=step) for r in (*losses, *severed.kept)])
        self._take(results, later)
        lines = [*missing, *judged.not_compared, *severed.not_compared]
        self._out.not_compared += [f"step {step}: {line}" for line in lines]
        return later

    def _take(self, results: Sequence[SiteResult], e: Evidence) -> None:
        """Put results on record, with divergences for those that are new."""
        self._out.results += results
        fresh = [r for r in results if r.verdict == "agree" or _key(r) not in self._seen]
        self._out.divergences += Locator(e.alignment, e.free_reference, e.forced).locate(fresh)
        self._seen |= {_key(r) for r in fresh if r.verdict != "agree"}

    # -- gradients ---------------------------------------------------------------------------

    def _gradients(self, e: Evidence, values: Arrays, parts: int) -> list[dict[str, np.ndarray]]:
        """The reference's gradients at ``values``, of every micro-batch."""
        found = e.free_reference.info.parameter_gradients
        ours, theirs = (o.accumulate for o in self._optimizers)
        if parts == 1 and found and ours == theirs:
            return [self._complete(found)]
        if not self._sides[0].capabilities.cotangents or isinstance(self._sides[0], TraceAdapter):
            raise CannotCompare(
                f"optimizer=: the reference ({self._sides[0].framework}) gives no gradients"
                + (" of parts of its batch" if parts > 1 else "")
                + ", which both optimizers are fed with.\n  Fix: a reference with a backward pass"
            )
        source = e.reference.cotangents or ReferenceCotangents(e.seed, self._request.skip)
        whole = replace(e.reference, cotangents=source)
        runners = [whole] if parts == 1 else split(whole, parts)
        return [self._complete(g) for g in self._run(runners)]

    def _run(self, runners: Sequence[Runner]) -> list[Arrays]:
        """Gradients of some runs; in float64 where the two sides cut the batch differently, since
        how sums over parts of it are rounded is no affair of the optimizer's."""
        ours, theirs = (o.accumulate for o in self._optimizers)
        if ours != theirs and self._sides[0].capabilities.float64:
            try:
                traces = [runner.record(passive=True, float64=True) for runner in runners]
                return [trace.info.parameter_gradients for trace in traces]
            except SideFailed:
                pass  # not everything runs in float64
        return [runner.record(passive=True).info.parameter_gradients for runner in runners]

    def _complete(self, gradients: Arrays) -> dict[str, np.ndarray]:
        """One for each trainable parameter that is matched; a missing one is zero."""
        return {
            p.name: gradients.get(p.name, np.zeros(p.value.shape, np.float32))
            for p in self._sides[0].parameters()
            if p.trainable and not p.buffer and p.name not in self._unmatched
        }

    # -- the update --------------------------------------------------------------------------

    def _judged(self, pair: Steppers, made: Made, past: Past, step: int) -> list[SiteResult]:
        rule = self._optimizers[0].rule
        exempt = self._exempt_of(rule)

        def measured(name: str) -> Conditioning | None:
            if rule is None or name not in past.steps[-1].reference[0]:
                return None
            return Conditioning.of(rule, exempt, name, past)

        everything = {**self._layout.compared, **self._layout.frozen}
        order = [p.name for p in self._sides[0].parameters() if p.name in everything]
        return [
            judge_update(
                *everything[name],
                made.changes[name],
                step=step,
                tolerance=self._request.tolerance,
                measured=functools.partial(measured, name),
            )
            for name in order
        ]

    def _exempt_of(self, rule: Rule | None) -> frozenset[str]:
        patterns = () if rule is None else rule.exclude
        return excluded(patterns, self._sides[0].parameters())

    # -- causes ------------------------------------------------------------------------------

    def _explain(self, results: Sequence[SiteResult], made: Made, past: Past) -> None:
        flagged = {(r.reference, r.step): r for r in results if r.verdict != "agree"}
        for i, d in enumerate(self._out.divergences[: EXPLAINED * len(PHASES)]):
            result = flagged.get((str(d.reference), d.step))
            if d.phase == "update" and result is not None and not d.causes:
                found = self._causes(str(d.reference), made, past)
                self._out.divergences[i] = replace(d, causes=found)

    def _causes(self, name: str, made: Made, past: Past) -> tuple[Cause, ...]:
        rule = self._optimizers[0].rule
        if name in self._layout.frozen:
            return ()
        first = self._evidence(name, made, past, rule)

        def fresh() -> UpdateEvidence | None:
            if any(o.once for o in self._optimizers):
                return None
            try:
                other, changed = self._on_fresh(past)
            except CrosscheckError:
                return None
            second = self._evidence(name, changed, other, rule)
            # How a side rounds its state adds up over the steps.
            return replace(second, eta=second.eta * len(other.steps))

        return causes(first, fresh)

    def _on_fresh(self, past: Past) -> tuple[Past, Made]:
        """New optimizers on other gradients, one step further: a factor and a term that come to the
        same in one step differ in the next."""
        pair = Steppers(self._optimizers, self._layout)
        other, made = Past(), None
        for given in (*past.steps, past.steps[-1]):
            ours, theirs = (tuple(map(self._fresh, given.of(s))) for s in ("reference", ""))
            other = other.then(Given(given.values, ours, theirs))
            made = pair.step(other, {})
        assert made is not None
        return other, made

    def _fresh(self, gradients: Arrays) -> Arrays:
        return fresh_inputs(gradients, seed=self._e.seed + 1) or gradients

    def _evidence(self, name: str, made: Made, past: Past, rule: Rule | None) -> UpdateEvidence:
        parameter, held = self._layout.compared[name]
        return UpdateEvidence.of(
            parameter, held, made.changes[name], rule, self._exempt_of(rule), past
        )


def _require_recorded(reference: TraceAdapter, steps: int) -> None:
    if steps > 1:
        raise InvalidArgument(
            "steps=: a recorded reference has made one step; give the model itself for more"
        )
    if not all(p.name in reference.trace.held for p in reference.parameters() if p.trainable):
        raise CannotCompare(
            "optimizer=: the recorded reference does not hold its parameters, from which a step "
            "begins.\n  Fix: record it with --parameters"
        )


def _key(result: SiteResult) -> tuple[str, str, str]:
    return result.phase, result.kind, result.reference
