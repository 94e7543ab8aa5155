"""The first layer that diverges, cut out: what it was given, and what the two sides made of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.aligning.layout import Layout
from crosscheck.arrays import is_float
from crosscheck.judging.evidence import Evidence
from crosscheck.observers import Key
from crosscheck.results import Divergence
from crosscheck.trace import owner

__all__ = ["Cut", "CutSide", "cut_out"]


@dataclass(frozen=True)
class CutSide:
    """One side of a cut.

    Attributes:
        layer: its path (no call number); empty for the model itself.
        inputs: (keyword, or "" for one by position; array), in this side's layout.
        cotangent: what arrives at its output; None forward.
        gradient_of: position of the input, or name of the parameter, whose gradient it is.
        value: what it gave, in this side's own layout.
    """

    layer: str
    inputs: tuple[tuple[str, np.ndarray], ...]
    cotangent: np.ndarray | None
    gradient_of: int | str | None
    value: np.ndarray


@dataclass(frozen=True)
class Cut:
    """A diverging layer alone.

    Attributes:
        output: which of several outputs, as the end of a site's name (``:1``); empty for the first.
        layout: of the candidate's value against the reference's.
    """

    phase: str
    reference: CutSide
    candidate: CutSide
    output: str
    layout: Layout

    def compared(self) -> tuple[np.ndarray, np.ndarray]:
        """(reference's, candidate's) value as they were captured, in the reference's layout."""
        return self.reference.value, self.layout.to_reference(self.candidate.value)


def cut_out(evidence: Evidence, first: Divergence) -> Cut | str:
    """The layer of ``first`` with its captured inputs, or why there is none to cut out."""
    if first.reference is None or first.candidate is None:
        return "one side has no layer to blame: the code between the layers is at fault"
    if first.phase == "forward":
        return _forward(evidence, first)
    if first.phase == "backward":
        return _backward(evidence, first)
    if first.phase == "parameter_gradient":
        return _gradient(evidence, first)
    return f"a difference in the {first.phase} phase is not that of one layer"


def _forward(e: Evidence, first: Divergence) -> Cut | str:
    pair = next((p for p in e.alignment.pairs if p.reference == first.site), None)
    if pair is None or pair.reference != first.reference or pair.layout is None:
        return "the difference lies in the code before a layer, or in a change of shape"
    sides = _side(e, "reference", pair.reference), _side(e, "candidate", pair.candidate)
    return _cut(first.phase, *sides, pair.layout, pair.reference)


def _backward(e: Evidence, first: Divergence) -> Cut | str:
    edge = next((one for one in e.alignment.edges if one.reference == first.site), None)
    if edge is None or owner(edge.reference) != first.reference:
        return "the difference lies in the code that passes a cotangent on"
    if edge.also_reference or edge.also_candidate:
        return "the VJP is a sum over several inputs"
    sides = []
    for side, slot in (("reference", edge.reference), ("candidate", edge.candidate)):
        slots = _slots(e, side, owner(slot))
        sides.append(_side(e, side, owner(slot), ("input_cotangent", slot), slots.index(slot)))
    return _cut(first.phase, sides[0], sides[1], edge.layout, "")


def _gradient(e: Evidence, first: Divergence) -> Cut | str:
    match = next((m for m in e.match.pairs if m.reference.name == first.reference), None)
    if match is None or not match.is_permutation or match.candidate.name != first.candidate:
        return "the parameter has another form on the other side"
    sides = []
    for side, parameter in (("reference", match.reference), ("candidate", match.candidate)):
        if not _slots(e, side, parameter.layer):
            return f"`{parameter.layer}` of the {side} is not observed"
        sides.append(_with_gradient(e, side, parameter))
    axes = match.transform.axes
    back = None if axes is None else tuple(int(a) for a in np.argsort(axes))
    return _cut(first.phase, sides[0], sides[1], Layout(back), "")


def _with_gradient(e: Evidence, side: str, parameter: Parameter) -> CutSide:
    trace = e.free_reference if side == "reference" else e.forced
    value = trace.info.parameter_gradients[parameter.name]
    leaf = parameter.name[len(parameter.layer) :].lstrip("./")
    base = _side(e, side, parameter.layer)
    cotangent = _value(e, side, ("cotangent", parameter.layer))
    return CutSide(base.layer, base.inputs, cotangent, leaf, value)


def _cut(phase: str, ours: CutSide, theirs: CutSide, layout: Layout, site: str) -> Cut | str:
    if not ours.inputs or not theirs.inputs:
        return "what goes into it was not seen"
    suffix = site[len(owner(site)) :]
    return Cut(phase, ours, theirs, suffix, layout)


def _slots(e: Evidence, side: str, site: str) -> list[str]:
    trace = e.free_reference if side == "reference" else e.forced
    return trace.inputs_of(site)


def _side(
    e: Evidence,
    side: str,
    site: str,
    result: Key | None = None,
    position: int | None = None,
) -> CutSide:
    """``result``: of a VJP, where it is seen; ``position``: which input's."""
    layer = owner(site)
    found = []
    for slot in _slots(e, side, layer):
        keyword = slot[len(layer) :].rpartition(":")[2]
        value = _value(e, side, ("input", slot))
        assert value is not None
        found.append(("" if keyword.isdecimal() else keyword, value))
    trace = e.free_reference if side == "reference" else e.forced
    path = layer.partition("#")[0]
    if not found and site in trace.info.outputs:  # the model itself, whose inputs are sites
        path = ""
        runner = e.reference if side == "reference" else e.candidate
        several = len(runner.inputs) > 1
        found = [(name if several else "", value) for name, value in runner.inputs.items()]
    return CutSide(
        path,
        tuple(found),
        None if result is None else _value(e, side, ("cotangent", layer)),
        position,
        trace.values[result or ("activation", site)],
    )


def _value(e: Evidence, side: str, key: Key) -> np.ndarray | None:
    """What a layer was given in the forced run: what it was forced to, else what arrived."""
    if side == "reference":
        return e.free_reference.values.get(key)
    forced = e.alignment.forced_on_candidate(e.free_reference).get(key)
    arrived = e.forced.values.get(key)
    if forced is None or arrived is None or not is_float(arrived):
        return arrived
    return np.asarray(forced, arrived.dtype)
