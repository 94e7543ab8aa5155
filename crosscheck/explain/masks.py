"""Masked scores: another number for minus infinity is no mistake where nothing behind tells.

Scores that a query may not see are set to -inf, to the lowest float or to -1e9, or have such a
number added; a softmax makes zeros of all of them. So the number itself says nothing. What does:
that both sides hide the same elements, that all the others agree, and that the candidate computes
what it should behind its own number. That is tried: its forced run is made once more with its own
number in the place of the reference's. A row that is hidden as a whole (NaN with -inf, a mean with
a finite number), or a number that lets something through, shows there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.aligning.layout import Layout
from crosscheck.comparisons import Item, value_of
from crosscheck.errors import SideFailed
from crosscheck.explain.evidence import Evidence, Prediction, Proposal
from crosscheck.explain.hidden import hidden_by, hidden_in, number_of
from crosscheck.explain.numbers import tidy
from crosscheck.explain.registry import register
from crosscheck.judging.evidence import Evidence as Check
from crosscheck.judging.judge import Judge, in_reference_layout
from crosscheck.observers import Forcer, Key
from crosscheck.results import SiteResult

__all__ = ["another_number", "excuse_masks"]

MOST_ALONE = 16
"""Masks that are tried one by one, where all of them together do not pass."""
WORSE = 2.0
"""What differs already may do so by so many times as much: it is judged on its own."""
SAME_BEHIND = (
    "masked by {} where the reference has {}: the same elements, and everything behind is the same"
)

Results = dict[Item, SiteResult]


def excuse_masks(e: Check, judge: Judge, results: Results) -> None:
    """Let masks agree that differ in their number alone; changes ``results``, with a note on each.

    Args:
        e: both sides, the alignment and the traces of the check.
        judge: of the check.
        results: of the forced run, those that agree included.
    """
    sides = e.reference.adapter.capabilities, e.candidate.adapter.capabilities
    if not all(side.forcing for side in sides):
        return
    flagged = (i for i, r in results.items() if r.verdict != "agree" and r.metrics is not None)
    masks = {item: mask for item in flagged if (mask := _mask_at(e, judge, item)) is not None}
    if not masks:
        return
    passed = masks if _is_same_behind(e, judge, results, masks) else {}
    if not passed and 1 < len(masks) <= MOST_ALONE:
        alone = {item: {item: mask} for item, mask in masks.items()}
        passed = {
            i: masks[i] for i, one in alone.items() if _is_same_behind(e, judge, results, one)
        }
    judge.masked = frozenset(passed)
    results.update({item: mask.result for item, mask in passed.items()})


@dataclass(frozen=True)
class _Mask:
    """A site where both sides hide the same elements, and all others agree.

    Attributes:
        result: what is said of it, should the number make no difference.
        mixed: the reference's value with the candidate's own number, in the candidate's layout.
    """

    result: SiteResult
    mixed: np.ndarray


def _mask_at(e: Check, judge: Judge, item: Item) -> _Mask | None:
    if item.phase != "forward" or item.candidate in e.forced.info.outputs:
        return None
    reference = value_of(item, e.free_reference, side="reference")
    raw = value_of(item, e.forced, side="candidate")
    if reference is None or raw is None or not isinstance(item.layout, Layout):
        return None
    value = in_reference_layout(item, raw, reference)
    hidden = hidden_by(reference)
    theirs = None if value is None else hidden_by(value)
    if value is None or hidden is None or theirs is None or not np.array_equal(hidden, theirs):
        return None
    rest = replace(judge, ties={item: hidden}).judge(item, e.forced)
    if rest.verdict != "agree":
        return None
    note = SAME_BEHIND.format(number_of(value, hidden), number_of(reference, hidden))
    notes = (*(n for n in rest.notes if not n.startswith("tie:")), note)
    ours = item.layout.to_candidate(np.where(hidden, value, reference))
    return _Mask(replace(rest, free_ratio=None, notes=notes), ours)


def _is_same_behind(e: Check, judge: Judge, results: Results, masks: Mapping[Item, _Mask]) -> bool:
    """Whether nothing else that is compared differs any more than it did, when the candidate
    computes with its own numbers for what is masked."""
    own: dict[Key, np.ndarray] = {}
    for item, mask in masks.items():
        own[item.candidate_key] = mask.mixed
        passed_on = (s for s, made in e.forced.info.sources.items() if made == item.candidate)
        if item.kind == "activation":
            own |= {("input", slot): mask.mixed for slot in passed_on}
    forced = Forcer(e.alignment.forced_on_candidate(e.free_reference))
    try:
        again = e.candidate.record(Forcer(own), forced)
    except SideFailed:
        return False
    others = [item for item in results if item not in masks]
    return all(
        after.verdict == "agree" or after.ratio <= WORSE * results[item].ratio
        for item, after in judge.judge_many(others, again).items()
    )


# -- where it is a mistake -------------------------------------------------------------------------


@register("forward")
def mask_number(e: Evidence) -> Iterator[Proposal]:
    """Another number for what is masked, or one that is added to masked scores."""
    hidden = hidden_by(e.reference)
    if hidden is None or e.candidate.shape != hidden.shape:
        return
    found = e.candidate[hidden]
    if np.all(found == found[0]):
        yield Proposal(
            "mask_value",
            f"masked scores are {found[0]:.6g}, not {number_of(e.reference, hidden)}"
            + _of_whole_rows(hidden),
            functools.partial(_filled, number=float(found[0])),
            constants=1,
        )
    for slot, x in enumerate(e.inputs):
        if x.dtype.kind == "f" and x.shape == hidden.shape:
            yield from another_number(e, functools.partial(_Added, slot))


@dataclass(frozen=True)
class _Added:
    """Masked scores are what a layer was given, plus a number."""

    slot: int
    number: float

    def __call__(self, e: Evidence) -> np.ndarray:
        return _where_hidden(e, e.inputs[self.slot] + self.number)


@register("forward")
def flags(e: Evidence) -> Iterator[Proposal]:
    """True for False: what one side keeps, the other drops."""
    if set(np.unique(e.reference)) == {0.0, 1.0}:
        text = "the flags are inverted: True where the reference has False"
        yield Proposal("mask_polarity", text, lambda e: 1.0 - e.reference)


def _filled(e: Evidence, *, number: float) -> np.ndarray:
    return _where_hidden(e, np.full(e.reference.shape, number))


def _where_hidden(e: Evidence, value: np.ndarray) -> np.ndarray:
    return np.where(hidden_in(e.reference), value, e.reference)


def another_number(e: Evidence, made: Callable[[float], Prediction]) -> Iterator[Proposal]:
    """A number that is added to masked scores, not put in their place.

    Args:
        made: the prediction with a number added to scores where they are masked.
    """
    hidden = hidden_by(e.reference)
    if hidden is None or e.candidate.shape != hidden.shape:
        return
    bare = np.asarray(made(0.0)(e))
    number = float(np.median((e.candidate - bare)[hidden]))
    if not np.isfinite(number) or number >= 0.0:
        return
    number, text = tidy(number, lambda k: e.fits_candidate(np.asarray(made(k)(e))))
    ours = number_of(e.reference, hidden)
    statement = f"{text} is added to masked scores, which are {ours} in the reference"
    yield Proposal("mask_value", statement + _of_whole_rows(hidden), made(number), constants=1)


def _of_whole_rows(hidden: np.ndarray) -> str:
    """What makes a difference of the number, where it is small enough on both sides."""
    rows = int(np.count_nonzero(hidden.all(-1)))
    if not rows:
        return ""
    return f"; in {rows} row{'s' if rows > 1 else ''} nothing else is left for the softmax"
