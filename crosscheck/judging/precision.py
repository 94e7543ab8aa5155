"""Part of stage 7, judge: how coarsely each side holds each value (its grain).

A value is held in the type that its side shows it in. What a layer computes in cannot be seen from
outside; but a layer that returns bfloat16 rounded its inputs and weights to bfloat16 somewhere
(autocast does, on the way into a matmul), so those have the grain of what they are made into. Of
the two sides the coarser counts: a port that openly holds less is judged as what it is, and the
report says that it does. One that holds float32 and *computes* in less shows float32, is judged as
float32, and is found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.aligning.alignment import Alignment
from crosscheck.errors import capped
from crosscheck.judging.noise import unit_roundoff
from crosscheck.judging.quantised import Steps
from crosscheck.observers import Key
from crosscheck.results import SiteResult
from crosscheck.taps import Kind
from crosscheck.trace import Trace, owner

__all__ = ["Grains", "coarser_unit", "dtype_notes", "grains_of", "not_finite_notes"]

_TWINS: tuple[tuple[Kind, Kind], ...] = (
    ("activation", "cotangent"),
    ("input", "input_cotangent"),
)


@dataclass(frozen=True)
class Grains:
    """Unit roundoffs by the reference's names, each the coarser of the two sides'.

    Attributes:
        values: of what a run shows.
        parameters: of the weights, by the reference's name.
        theirs: of what the candidate's run shows, by the candidate's names.
        steps, parameter_steps: the same for quantised candidates, absolute (`quantised.Steps`).
    """

    values: Mapping[Key, float] = field(default_factory=dict)
    parameters: Mapping[str, float] = field(default_factory=dict)
    theirs: Mapping[Key, float] = field(default_factory=dict)
    steps: Mapping[Key, float] = field(default_factory=dict)
    parameter_steps: Mapping[str, float] = field(default_factory=dict)


def grains_of(
    alignment: Alignment,
    reference: Trace,
    candidate: Trace,
    parameters: Sequence[tuple[Parameter, Parameter]] = (),
    steps: Steps | None = None,
) -> Grains:
    """The grain of every value of the two runs, and of the matched parameters.

    Args:
        parameters: (reference, candidate) pairs.
        steps: of a quantised candidate.
    """
    steps = steps or Steps()
    ours, theirs = _shown(reference), _shown(candidate)
    pairs = {p.reference: p.candidate for p in alignment.pairs}
    slots = {r: c for edge in alignment.edges for r, c in edge.slots()}
    for names, (outer, back) in zip((pairs, slots), _TWINS, strict=True):
        for kind in (outer, back):
            for r, c in names.items():
                _share(ours, (kind, r), theirs, (kind, c))
    made = {
        layer.name: max(_made(ours, layer.layer), _made(theirs, twin.layer))
        for layer, twin in parameters
    }
    held = {
        layer.name: max(unit_roundoff(layer.value.dtype, twin.value.dtype), made[layer.name])
        for layer, twin in parameters
    }
    rounded = {
        (kind, r): steps.passed[kind, c]
        for names, (kind, _) in zip((pairs, slots), _TWINS, strict=True)
        for r, c in names.items()
        if (kind, c) in steps.passed
    }
    stored = {
        layer.name: steps.parameters[twin.name]
        for layer, twin in parameters
        if twin.name in steps.parameters
    }
    return Grains(_into_layers(ours), held, _into_layers(theirs), rounded, stored)


def _shown(trace: Trace) -> dict[Key, float]:
    return {key: unit_roundoff(value.dtype) for key, value in trace.values.items()}


def _share(ours: dict[Key, float], key: Key, theirs: dict[Key, float], twin: Key) -> None:
    coarser = max(ours.get(key, 0.0), theirs.get(twin, 0.0))
    if key in ours:
        ours[key] = coarser
    if twin in theirs:
        theirs[twin] = coarser


def _made(units: Mapping[Key, float], layer: str) -> float:
    return units.get(("activation", layer), 0.0)


def _into_layers(units: Mapping[Key, float]) -> dict[Key, float]:
    """What goes into a layer has at least the grain of what comes out."""
    return {
        (kind, site): max(unit, _made(units, owner(site))) if kind == "input" else unit
        for (kind, site), unit in units.items()
    }


def dtype_notes(results: Iterable[SiteResult]) -> list[str]:
    """One line for each pair of floating-point types in which the sides hold one value."""
    found: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for r in results:
        types = (r.dtype, r.candidate_dtype)
        if r.phase == "forward" and types[0] != types[1] and all("float" in t for t in types):
            found[types] += 1
            first.setdefault(types, r.reference)
    return [
        f"the candidate holds {theirs} where the reference holds {ours} ({count} "
        f"value{'s' if count > 1 else ''}, first `{first[ours, theirs]}`): judged by the rounding "
        f"of {_coarser(ours, theirs)}"
        for (ours, theirs), count in found.items()
    ]


def not_finite_notes(results: Iterable[SiteResult]) -> list[str]:
    """A line where parameters or outputs hold NaN or Inf on both sides: what these elements would
    have been, and whatever they reach, cannot tell the two apart."""
    found = [
        r
        for r in results
        if r.metrics is not None
        and r.metrics.nonfinite > r.metrics.nonfinite_mismatch
        and (r.phase == "weights" or (r.phase == "forward" and _is_output(r.reference)))
    ]
    if not found:
        return []
    verb = "hold" if found[1:] else "holds"
    return [
        f"{capped(r.reference for r in found)} {verb} NaN or Inf in the same places on both sides: "
        "a mistake in what these elements reach would not be seen"
    ]


def _is_output(site: str) -> bool:
    return site.partition(":")[0] == "output"


@cache
def coarser_unit(*names: str) -> float:
    """The largest unit roundoff of types given by their names; 0 for those that have none."""
    return max(_unit(name) for name in names)


def _coarser(*names: str) -> str:
    return max(names, key=_unit)


@cache
def _unit(name: str) -> float:
    import ml_dtypes

    if "float" not in name:
        return 0.0
    return unit_roundoff(np.dtype(name if name in np.sctypeDict else getattr(ml_dtypes, name)))
