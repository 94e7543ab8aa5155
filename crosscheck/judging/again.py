"""Part of stage 7, judge: runs that are made again for a few comparisons.

Who looks at three values of a large model once more needs no others. Where the adapter can leave
layers out (`crosscheck.judging.left_out`), such a run computes the layers in question and the code
around them, and goes backward only if something there is in question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from crosscheck.comparisons import Item
from crosscheck.errors import SideFailed
from crosscheck.explain.fresh import fresh_inputs
from crosscheck.judging.evidence import Evidence
from crosscheck.judging.judge import Judge
from crosscheck.judging.left_out import gives_the_same, spared, spared_of_candidate
from crosscheck.judging.reductions import Reductions
from crosscheck.observers import Forcer, Key
from crosscheck.oracle import oracle
from crosscheck.run import Runner
from crosscheck.trace import Trace

__all__ = ["CandidateAgain", "forwards_only", "fresh_runs"]


class CandidateAgain:
    """The candidate's forced run with what ``items`` compare, and little else; it may be made more
    than once. What can be left out is found, and tried, once."""

    def __init__(self, e: Evidence, items: Iterable[Item]) -> None:
        wanted = list(items)
        self._runner = forwards_only(e.candidate, wanted)
        self._onto = e.alignment.forced_on_candidate(e.free_reference)
        self._needless = needless_of_candidate(e, wanted)

    def run(self, onto: Mapping[Key, np.ndarray] | None = None, *, float64: bool = False) -> Trace:
        """Run it.

        Args:
            onto: what it is forced onto instead of the reference's values; of the same keys.

        Raises:
            SideFailed: it fails where it did not before.
        """
        values = self._onto if onto is None else onto

        def without(calls: frozenset[str]) -> Trace:
            return self._runner.record(Forcer(values, needless=calls), float64=float64)

        return _sparing(without, self._needless)


def _sparing(run: Callable[[frozenset[str]], Trace], calls: frozenset[str]) -> Trace:
    """A run without these calls; the whole one, should that fail."""
    if calls:
        with suppress(SideFailed):
            return run(calls)
    return run(frozenset())


def needless_of_candidate(e: Evidence, items: Sequence[Item]) -> frozenset[str]:
    """The calls that the candidate's forced run can do without for these comparisons."""
    forced = e.alignment.forced_on_candidate(e.free_reference)
    found = spared_of_candidate(e.candidate, e.free_candidate, items, forced)
    runner = forwards_only(e.candidate, items)
    same = bool(found) and gives_the_same(runner, items, forced, found, e.forced)
    return found if same else frozenset()


def forwards_only(runner: Runner, items: Iterable[Item]) -> Runner:
    """Without the backward pass, if none of ``items`` is of it and it takes no other program."""
    transparent = runner.adapter.capabilities.transparent
    if transparent and all(item.phase == "forward" for item in items):
        return replace(runner, cotangents=None)
    return runner


def fresh_runs(
    e: Evidence, judge: Judge, *, seed: int, backward: bool, only: Sequence[Item] | None = None
) -> tuple[Trace, Trace, Judge] | None:
    """Both sides on other inputs: the reference's run, the candidate's, forced onto it, and who
    judges them. None where there are no other inputs, or a recorded run.

    One run of each side and of the oracle. The candidate is forced as before, so that its own
    inputs need no translation.

    Args:
        only: the comparisons that will be made; the candidate's run and the oracle hold no others.

    Raises:
        CrosscheckError: a model cannot take the new inputs, or gives nothing to compare.
    """
    inputs = fresh_inputs(e.reference.inputs, seed=seed)
    if inputs is None or not e.reference.adapter.capabilities.forcing:
        return None
    cotangents = e.reference.cotangents if backward else None
    first = replace(e.reference, inputs=inputs, cotangents=cotangents)
    reference = first.record()
    second = e.candidate if backward else replace(e.candidate, cotangents=None)
    ours = e.alignment.forced_on_reference(reference)
    theirs = e.alignment.forced_on_candidate(reference)
    spare = frozenset[str](), frozenset[str]()
    if only is not None:
        spare = spared(first, reference, only, ours), needless_of_candidate(e, only)
    forced = oracle(first, ours, needless=spare[0])
    if forced is None and spare[0]:
        forced = oracle(first, ours)
    candidate = _sparing(lambda calls: second.record(Forcer(theirs, needless=calls)), spare[1])
    again = e.make_judge(
        reference=reference,
        oracle=forced,
        free_oracle=None,
        free_candidate=candidate,
        reductions=Reductions(
            first.parameters(),
            reference,
            frozenset(p.reference for p in e.alignment.pairs),
        ),
        perturbations=judge.perturbations,
    )
    return reference, candidate, again
