"""Part of stage 5, align: a layer with a rectifier inside, and the same layer without.

Where what lies behind two such layers differs for another reason, forcing need not tell that they
do not belong together (`trials`): the largest value of a map is the same with ReLU in front and
without. What tells is the bare side alone, run with its value rectified. A rectifier applied twice
is the rectifier: if the code behind the bare layer applies it, nothing behind changes, and the two
layers hold different quantities of one computation. If anything changes, one side has an activation
more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from crosscheck.aligning.alignment import SitePair
from crosscheck.aligning.layout import relative_error
from crosscheck.errors import SideFailed
from crosscheck.kernels.on_device import as_host
from crosscheck.observers import Forcer, Key
from crosscheck.run import Runner
from crosscheck.trace import Trace

__all__ = ["applied_behind"]

Rectifier = Callable[[np.ndarray], np.ndarray]

RECTIFIERS: tuple[Rectifier, ...] = (
    lambda value: np.maximum(value, 0),
    lambda value: np.clip(value, 0, 6),
)
MOST_TRIED = 8
"""Pairs of a check that are looked into, with two forward passes each."""


class Side(NamedTuple):
    """One side of a check, and its free run."""

    runner: Runner
    free: Trace


def applied_behind(
    pairs: Iterable[SitePair], latest: Trace, reference: Side, candidate: Side, same: float
) -> list[SitePair]:
    """Pairs of layers with equal parameters that differ by a rectifier which the bare side applies
    in the code behind.

    Args:
        latest: the candidate's run, forced at what is aligned.
        same: the relative error up to which two values are the same.
    """
    asked = (
        (pair, side, site, rectifier)
        for pair in pairs
        if pair.by == "anchor" and pair.layout is not None
        for side, site, rectifier in _bare(pair, latest, reference, candidate, same)
    )
    found = []
    for _, (pair, side, site, rectifier) in zip(range(MOST_TRIED), asked, strict=False):
        if _hands_on_the_same(side, site, rectifier, same):
            found.append(pair)
    return found


def _bare(
    pair: SitePair, latest: Trace, reference: Side, candidate: Side, same: float
) -> Iterator[tuple[Side, str, Rectifier]]:
    """The side whose value becomes the other's by a rectifier, and by which; at most one."""
    assert pair.layout is not None
    ours = as_host(reference.free.values["activation", pair.reference])
    theirs = as_host(latest.values.get(("activation", pair.candidate)))
    if theirs is None or ours.dtype.kind != "f" or theirs.dtype.kind != "f":
        return
    theirs = pair.layout.to_reference(theirs)
    if relative_error(theirs, ours) <= same:
        return
    for rectifier in RECTIFIERS:
        if relative_error(theirs, rectifier(ours)) <= same:
            yield reference, pair.reference, rectifier
            return
        if relative_error(rectifier(theirs), ours) <= same:
            yield candidate, pair.candidate, rectifier
            return


def _hands_on_the_same(side: Side, site: str, rectifier: Rectifier, same: float) -> bool:
    """Whether nothing behind a site changes if its value is rectified, though it is used there."""
    runner, free = side
    key: Key = ("activation", site)
    if not runner.adapter.capabilities.forcing:
        return False
    rectified = rectifier(as_host(free.values[key]))
    try:
        if _changes(side, {key: rectified}, same):
            return False
        turned = rectified.ravel()[::-1].reshape(rectified.shape)
        return _changes(side, {key: rectified + turned}, same)
    except SideFailed:
        return False


def _changes(side: Side, forced: Mapping[Key, np.ndarray], same: float) -> bool:
    """Whether any value behind what is forced is another one than in the free run."""
    runner, free = side
    here = max(free.place[key] for key in forced)
    run = replace(runner, cotangents=None).record(Forcer(forced))
    return any(
        relative_error(run.values[key], value) > same
        for key, value in free.values.items()
        if key[0] in ("activation", "input") and free.place[key] > here and key in run.values
    )
