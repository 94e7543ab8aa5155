"""Which elements of the reference's parameters nothing compared depends on, found by altering them.

An element whose gradient is not exactly zero is reached. What is left (all of a buffer; rows of an
embedding that were not looked up; layers that were never called) is altered in forward runs that
are forced at the aligned sites, so that a change shows at the sites of its own layer and one run
asks about all layers at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.arrays import is_float
from crosscheck.compare import compare
from crosscheck.cotangents import ReferenceCotangents
from crosscheck.errors import CannotCompare, CrosscheckError, SideFailed
from crosscheck.judging.evidence import Evidence
from crosscheck.observers import Comparer, Forcer, Key, chain
from crosscheck.probes.randomise import moved
from crosscheck.run import Runner
from crosscheck.trace import owner

__all__ = ["Reach", "has_moved", "unreached"]

MOST_RUNS = 12
SAME = 64.0  # unit roundoffs: what a rerun may differ by without an alteration


@dataclass(frozen=True)
class Reach:
    """What the alterations showed.

    Attributes:
        blind: parameter name -> boolean array of its shape, True where nothing depends on it.
        open: names of parameters that the runs did not settle.
        runs: how many forward runs were made.
    """

    blind: Mapping[str, np.ndarray]
    open: tuple[str, ...]
    runs: int


@dataclass(frozen=True, eq=False)
class _Unit:
    """Elements of one parameter that are altered together."""

    parameter: Parameter
    elements: np.ndarray  # boolean, of the parameter's shape


def has_moved(value: np.ndarray, before: np.ndarray) -> bool:
    """Whether two runs differ by more than a rerun of the same model may."""
    if value.shape != before.shape:
        return True
    if not is_float(before):
        return not np.array_equal(value, before)
    step = float(np.finfo(before.dtype).eps) if before.dtype.kind == "f" else 2.0**-8
    found = compare(value, before)
    return found.mismatch > 0 or found.maximum > SAME * step * found.truth_max


def unreached(evidence: Evidence, *, seed: int) -> Reach:
    """Alter what no gradient vouches for, and see what nothing compared depends on."""
    parameters = evidence.reference.adapter.parameters()
    other = moved(parameters, seed=seed + 1)
    gradients = evidence.free_reference.info.parameter_gradients or _gradients(evidence)
    units = [
        _Unit(p, elements)
        for p in parameters
        if p.name in other and (elements := _doubtful(p, gradients)).any()
    ]
    search = _Search(evidence, other)
    search.settle(units)
    return Reach(search.blind, tuple(dict.fromkeys(search.open)), search.runs)


def _gradients(evidence: Evidence) -> Mapping[str, np.ndarray]:
    """Of a reference that can tell them, though they are not compared; else nothing."""
    r = evidence.reference
    if not r.adapter.capabilities.cotangents:
        return {}
    given = ReferenceCotangents(r.seed)
    try:
        info = Runner(r.side, r.adapter, r.inputs, given, r.train, r.seed).run(
            lambda site, kind, value: None, passive=True
        )
    except (SideFailed, CannotCompare):  # no backward pass through it, or integers only
        return {}
    return info.parameter_gradients


def _doubtful(parameter: Parameter, gradients: Mapping[str, np.ndarray]) -> np.ndarray:
    gradient = gradients.get(parameter.name)
    if gradient is None or gradient.shape != parameter.value.shape:
        return np.ones(parameter.value.shape, bool)
    return np.asarray(gradient == 0)


class _Search:
    def __init__(self, evidence: Evidence, other: Mapping[str, np.ndarray]) -> None:
        r = evidence.reference
        self._runner = Runner(r.side, r.adapter, r.inputs, None, r.train, r.seed)
        self._other = other
        self._before = evidence.free_reference
        self._forcer = Forcer(evidence.alignment.forced_on_reference(evidence.free_reference))
        sites = [p.reference for p in evidence.alignment.pairs]
        slots = [e.reference for e in evidence.alignment.edges]
        self._wanted: set[Key] = {("activation", s) for s in sites} | {("input", s) for s in slots}
        self._buffers = evidence.free_reference.info.buffers
        self.blind: dict[str, np.ndarray] = {}
        self.open: list[str] = []
        self.runs = 0

    def settle(self, units: Sequence[_Unit]) -> None:
        """Decide about every unit, as far as `MOST_RUNS` go."""
        waiting = [part for unit in units for part in self._not_seen(unit)]
        while waiting:
            if self.runs >= MOST_RUNS:
                self.open += [unit.parameter.name for unit in waiting]
                return
            batch = _one_of_each_layer(waiting)
            waiting = [unit for unit in waiting if unit not in batch]
            seen = self._visible(batch)
            if seen is None:  # the model does not run with such values
                self.open += [unit.parameter.name for unit in batch]
                continue
            for unit in batch:
                if unit not in seen:
                    self._mark(unit)
            for unit in seen:
                waiting += self._halves(unit)

    def _not_seen(self, unit: _Unit) -> list[_Unit]:
        """Without the rows of an embedding that came out of it as they are, and were compared.
        What several rows hold, or one number throughout, does not say which was read: those make a
        unit of their own."""
        p = unit.parameter
        if p.kind != "embedding" or p.value.ndim != 2:
            return [unit]
        shown = {
            row.tobytes()
            for kind, site in self._wanted
            if kind == "activation" and owner(site).partition("#")[0] == p.layer
            for value in [self._before.values[kind, site]]
            if value.dtype == p.value.dtype and value.shape[-1:] == p.value.shape[1:]
            for row in value.reshape(-1, p.value.shape[1])
        }
        rows = [row.tobytes() for row in p.value]
        count = Counter(row for row in rows if row in shown)
        found = np.array([row in shown for row in rows])
        alone = np.array([count[row] == 1 for row in rows]) & np.any(p.value != p.value[:, :1], 1)
        parts = [unit.elements & mask[:, None] for mask in (~found, found & ~alone)]
        return [_Unit(p, elements) for elements in parts if elements.any()]

    def _mark(self, unit: _Unit) -> None:
        name = unit.parameter.name
        known = self.blind.get(name)
        self.blind[name] = unit.elements if known is None else known | unit.elements

    def _halves(self, unit: _Unit) -> list[_Unit]:
        """Rows of an embedding that was seen as a whole: one that is read may hide the others."""
        rows = np.flatnonzero(unit.elements.reshape(len(unit.elements), -1).any(axis=1))
        if unit.parameter.kind != "embedding" or len(rows) < 2:
            return []
        halves = []
        for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            chosen = np.zeros(len(unit.elements), bool)
            chosen[part] = True
            shape = (-1, *[1] * (unit.elements.ndim - 1))
            halves.append(_Unit(unit.parameter, unit.elements & chosen.reshape(shape)))
        return halves

    def _visible(self, batch: Sequence[_Unit]) -> list[_Unit] | None:
        """The units of ``batch`` whose alteration moves something; None where it fails to run."""
        moved_sites = self._run(batch)
        if moved_sites is None:
            return None
        own = {unit: _sites_of(unit.parameter, moved_sites) for unit in batch}
        explained = {site for sites in own.values() for site in sites}
        quiet = [unit for unit in batch if not own[unit]]
        if set(moved_sites) <= explained or not quiet:
            return [unit for unit in batch if own[unit]]
        if len(batch) == 1:
            return list(batch)
        # Something moved that is no site of an altered layer: ask in halves.
        if self.runs >= MOST_RUNS:
            self.open += [unit.parameter.name for unit in quiet]
            return list(batch)
        half = max(len(quiet) // 2, 1)
        seen = [unit for unit in batch if own[unit]]
        for part in (quiet[:half], quiet[half:]):
            found = self._visible(part) if part else []
            seen += part if found is None else found
        return seen

    def _run(self, batch: Sequence[_Unit]) -> list[str] | None:
        overrides = {
            u.parameter.name: np.where(u.elements, self._other[u.parameter.name], u.parameter.value)
            for u in batch
        }
        comparer = Comparer(
            lambda key, value: has_moved(value, self._before.values[key]),
            self._wanted,
            changes_only=True,
        )
        self.runs += 1
        try:
            info = self._runner.run(chain(comparer, self._forcer), overrides=overrides)
        except CrosscheckError:  # it does not run with such values, or cannot be given any
            return None
        found = [site for (_, site), changed in comparer.results.items() if changed]
        altered = {u.parameter.name for u in batch}
        for name, value in info.buffers.items():
            if name in altered and has_moved(value, self._buffers[name]):
                found.append(f"{name} (buffer)")
        return found


def _one_of_each_layer(units: Sequence[_Unit]) -> list[_Unit]:
    """At most one unit of any layer, so that each can be told by the sites of its own."""
    taken: set[str] = set()
    chosen = []
    for unit in units:
        layers = {one.layer for one in (unit.parameter, *unit.parameter.also)}
        if not layers & taken:
            taken |= layers
            chosen.append(unit)
    return chosen


def _sites_of(parameter: Parameter, sites: Iterable[str]) -> list[str]:
    layers = {one.layer for one in (parameter, *parameter.also)}
    return [
        site
        for site in sites
        if owner(site).partition("#")[0] in layers or site == f"{parameter.name} (buffer)"
    ]
