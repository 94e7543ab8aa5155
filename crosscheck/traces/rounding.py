"""How far rounding took each value of a run: measured once, kept with the trace.

Two floors for two uses. *Accumulated*: the error against the free run in float64, for a candidate
that ran on its own values. *Local*: the error against a float64 run that is forced onto the
recorded values at every site, or what perturbing those by a unit roundoff does to it, whichever is
larger: for a candidate that can be forced onto the same values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from crosscheck.arrays import is_inexact
from crosscheck.compare import compare
from crosscheck.comparisons import Item
from crosscheck.judging.judge import Judge
from crosscheck.judging.perturb import measure
from crosscheck.judging.reductions import Reductions
from crosscheck.oracle import oracle
from crosscheck.run import Runner
from crosscheck.taps import COTANGENT_OF
from crosscheck.trace import Trace
from crosscheck.traces.recorded import RecordKey, Rounding

__all__ = ["accumulated", "item_key", "items_of", "local"]

_PHASE_KINDS = {"parameter_gradient": "gradient", "buffer": "buffer"}


def item_key(item: Item) -> RecordKey:
    """(kind, name) of the record that a comparison reads on the reference's side."""
    return _PHASE_KINDS.get(item.phase, item.kind), item.reference


def accumulated(runner: Runner, free: Trace) -> dict[RecordKey, Rounding]:
    """The error of every float record against the free run in float64; empty if there is none."""
    wide = oracle(runner)
    if wide is None:
        return {}
    if runner.cotangents is not None:  # each layer's own VJP takes a run that is forced
        again = oracle(runner, wide.values)
        vjps = {} if again is None else again.values
        more = {key: value for key, value in vjps.items() if key not in wide.values}
        wide = replace(wide, values={**wide.values, **more})
    return _errors(free, wide)


def local(runner: Runner, free: Trace, *, seed: int) -> dict[RecordKey, Rounding]:
    """What each stretch between two sites adds by itself; empty if there is no float64 run."""
    forced = oracle(runner, free.values)
    if forced is None:
        return {}
    found = _errors(free, forced)
    parameters = runner.parameters()
    judge = Judge(
        reference=free,
        oracle=forced,
        free_oracle=None,
        free_candidate=free,
        reductions=Reductions(parameters, free, frozenset()),
    )
    items = [item for item in items_of(free) if item_key(item) in found]
    moved = measure(runner, judge, items, free.values, parameters=parameters, seed=seed)
    for item, response in moved.items():
        own = found[item_key(item)]
        found[item_key(item)] = Rounding(
            max(own.l2, response.l2), max(own.maximum, response.maximum)
        )
    return found


def items_of(free: Trace) -> Iterator[Item]:
    """Every record of a run as something to compare with itself."""
    backward = set(COTANGENT_OF.values())
    for kind, site in free.values:
        phase: Any = "backward" if kind in backward else "forward"
        yield Item(phase, kind, site, site, None, "")
    for name in free.info.parameter_gradients:
        yield Item("parameter_gradient", "parameter", name, name, None, "")
    for name in free.info.buffers:
        yield Item("buffer", "parameter", name, name, None, "")


def _errors(free: Trace, wide: Trace) -> dict[RecordKey, Rounding]:
    """(kind, name) -> the error of each float record against the run in float64."""
    found = {}
    for key, value, truth in _pairs(free, wide):
        if truth is not None and truth.shape == value.shape and is_inexact(value):
            error = compare(value, truth)
            found[key] = Rounding(error.l2, error.maximum)
    return found


def _pairs(free: Trace, wide: Trace) -> Iterable[tuple[RecordKey, np.ndarray, np.ndarray | None]]:
    for key, value in free.values.items():
        yield key, value, wide.values.get(key)
    groups: tuple[tuple[str, Mapping[str, np.ndarray], Mapping[str, np.ndarray]], ...] = (
        ("gradient", free.info.parameter_gradients, wide.info.parameter_gradients),
        ("buffer", free.info.buffers, wide.info.buffers),
    )
    for kind, ours, theirs in groups:
        for name, value in ours.items():
            yield (kind, name), value, theirs.get(name)
