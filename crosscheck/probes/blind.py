"""Blind spots: what agreed and could not have differed on these inputs and with these weights.

Nothing is known by its name. A parameter that an alteration leaves as it is (all zeros left out,
all ones left out, equal elements permuted, a symmetric matrix transposed) cannot show that a port
makes this alteration, unless its gradient is compared and comes from automatic differentiation. Of
the other parameters, `reach` alters what has no gradient, and looks whether anything moves. A value
or a cotangent that is zero throughout tests nothing that is linear in it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.arrays import is_float, real_parts
from crosscheck.comparisons import gradient_items
from crosscheck.errors import SideFailed
from crosscheck.judging.evidence import Evidence
from crosscheck.observers import Comparer, Key
from crosscheck.probes.reach import has_moved, unreached
from crosscheck.run import Runner
from crosscheck.trace import owner

__all__ = ["blind_spots", "common", "lines"]

HAND_WRITTEN = ("numpy", "cupy")
"""Candidates whose gradients are formulas of their own: a right one says nothing of the forward
pass."""
ZERO = "is 0 throughout: a port that leaves it out would agree"
ONE = "is 1 throughout: a port that leaves it out or permutes it would agree"
EQUAL = "is the same number throughout: a port that permutes it would agree"
SYMMETRIC = "is symmetric: a port that transposes it would agree"
UNREACHED = "nothing compared depends on it"
UNSETTLED = "was not settled: it cannot be altered, or too many would have to be, one by one"
NO_SIGNAL = "its value is 0 throughout: what is computed from it was not tested"
NO_COTANGENT = "its cotangent is 0 throughout: the backward pass from there on was not tested"
ANNIHILATED = "what it sends back is 0 but for rounding: its VJP was hardly tested"
CONSTANT_INPUT = "is the same throughout: a port that ignores it would agree"
UNREAD_INPUT = "was altered, and nothing compared moved"
SHOWN = 8  # rows named
FIRST = 4
"""Sites that are looked at alone, where that takes less than a run: most inputs are read early."""
FAINT = 2.0**-10
"""What a layer sends back may be rounding alone if it is so much smaller than what it was given;
only then is the oracle asked."""


def blind_spots(evidence: Evidence) -> dict[str, str]:
    """{name of a parameter or site of the reference: why this check was blind to it}."""
    if not evidence.reference.adapter.capabilities.forcing:
        return {}
    found = dict(_unaltered(evidence))
    reach = unreached(evidence, seed=evidence.seed)
    sizes = {p.name: p.value.size for p in evidence.reference.adapter.parameters()}
    for name, elements in reach.blind.items():
        found[name] = _which(elements) if elements.sum() < sizes[name] else UNREACHED
    found |= {name: UNSETTLED for name in reach.open if name not in found}
    return found | _silent_sites(evidence) | _inputs(evidence)


def common(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """What two checks of one model were both blind to."""
    return {name: why for name, why in first.items() if name in second}


# -- alterations that change nothing ---------------------------------------------------------------


def _unaltered(evidence: Evidence) -> list[tuple[str, str]]:
    told = _told_by_gradient(evidence)
    return [
        (p.name, why)
        for p in evidence.reference.adapter.parameters()
        if p.name not in told and (why := _why_unaltered(p))
    ]


def _told_by_gradient(evidence: Evidence) -> set[str]:
    """Parameters whose compared gradient would differ if the forward pass used them otherwise."""
    if evidence.candidate.adapter.framework in HAND_WRITTEN:
        return set()
    gradients = evidence.free_reference.info.parameter_gradients
    items, _ = gradient_items(evidence.match, evidence.free_reference, evidence.forced)
    return {i.reference for i in items if _tells(_wide(gradients[i.reference]))}


def _wide(value: np.ndarray) -> np.ndarray:
    """In float64; of complex numbers both parts."""
    parts: np.ndarray = real_parts([value])[0].astype(np.float64)
    return parts


def _tells(gradient: np.ndarray) -> bool:
    return bool(gradient.any()) and (gradient.size == 1 or float(np.ptp(gradient)) > 0.0)


def _why_unaltered(parameter: Parameter) -> str:
    value = parameter.value
    if not is_float(value) or not value.size:
        return ""
    if (value == value.flat[0]).all():
        if value.flat[0] in (0, 1):
            return ONE if value.flat[0] else ZERO
        return EQUAL if value.size > 1 else ""
    square = value.ndim == 2 and value.shape[0] == value.shape[1]
    return SYMMETRIC if square and np.array_equal(value, value.T) else ""


# -- what was not reached --------------------------------------------------------------------------


def _which(elements: np.ndarray) -> str:
    """Which part of a parameter nothing depends on: rows if it is rows, else a count."""
    for axis in range(elements.ndim):
        rest = tuple(a for a in range(elements.ndim) if a != axis)
        whole = np.asarray(elements.all(axis=rest))
        if whole.sum() * (elements.size // len(whole)) == elements.sum():
            rows = np.flatnonzero(whole)
            shown = ", ".join(map(str, rows[:SHOWN])) + (", ..." if len(rows) > SHOWN else "")
            what = "rows" if axis == 0 else f"places on axis {axis}"
            what = "elements" if elements.ndim == 1 else what
            return f"nothing compared depends on {len(rows)} of its {len(whole)} {what}: {shown}"
    return f"nothing compared depends on {int(elements.sum())} of its {elements.size} elements"


# -- sites -----------------------------------------------------------------------------------------


def _silent_sites(evidence: Evidence) -> dict[str, str]:
    values = evidence.free_reference.values
    found: dict[str, str] = {}
    for pair in evidence.alignment.pairs:
        site = pair.reference
        if site.startswith("input:"):
            continue
        cotangent = values.get(("cotangent", site))
        if _is_zero(values["activation", site]):
            found[site] = NO_SIGNAL
        elif evidence.reference.cotangents is not None and _is_zero(cotangent):
            found[site] = NO_COTANGENT
    for edge in evidence.alignment.edges:
        layer = owner(edge.reference)
        if layer not in found and _annihilates(layer, edge.reference, values, evidence):
            found[layer] = ANNIHILATED
    return _innermost(found, evidence.free_reference.info.parents)


def _is_zero(value: np.ndarray | None) -> bool:
    return value is not None and is_float(value) and value.size > 0 and not value.any()


def _annihilates(
    layer: str, slot: str, values: Mapping[Key, np.ndarray], evidence: Evidence
) -> bool:
    """Whether a layer got a cotangent and sent back nothing but rounding."""
    given, sent = values.get(("cotangent", layer)), values.get(("input_cotangent", slot))
    if given is None or sent is None or not given.any() or not sent.size:
        return False
    if not sent.any():
        return True
    wide = _wide(sent)
    if _rms(wide) > FAINT * _rms(_wide(given)):
        return False
    oracle = evidence.whole_oracle
    truth = None if oracle is None else oracle.values.get(("input_cotangent", slot))
    if truth is None:
        return False
    return bool(np.linalg.norm(wide - _wide(truth)) >= 0.5 * np.linalg.norm(wide))


def _rms(value: np.ndarray) -> float:
    return float(np.sqrt(np.mean(value * value)))


def _innermost(found: Mapping[str, str], parents: Mapping[str, str]) -> dict[str, str]:
    """Without the containers of what is listed for the same reason."""
    outer: set[tuple[str, str]] = set()
    for site, why in found.items():
        while site in parents:
            site = parents[site]
            outer.add((site, why))
    return {site: why for site, why in found.items() if (site, why) not in outer}


# -- inputs ----------------------------------------------------------------------------------------


def _inputs(evidence: Evidence) -> dict[str, str]:
    found = {}
    for name, value in evidence.reference.inputs.items():
        site = f"input:{name}"
        if value.size > 1 and (value == value.flat[0]).all():
            found[site] = CONSTANT_INPUT
        elif _may_be_unread(evidence, site, value) and _is_unread(evidence, name, value):
            found[site] = UNREAD_INPUT
    return found


def _may_be_unread(evidence: Evidence, site: str, value: np.ndarray) -> bool:
    """No cotangent vouches for it."""
    cotangent = evidence.free_reference.values.get(("cotangent", site))
    return value.size > 1 and (cotangent is None or not cotangent.any())


def _is_unread(evidence: Evidence, name: str, value: np.ndarray) -> bool:
    """Whether the same elements in another order change nothing that was compared."""
    r = evidence.reference
    other = np.roll(value.reshape(-1), 1).reshape(value.shape)
    if np.array_equal(other, value):
        return False
    runner = Runner(r.side, r.adapter, {**r.inputs, name: other}, None, r.train, r.seed)
    before = evidence.free_reference.values
    sites = {p.reference for p in evidence.alignment.pairs if p.by != "input"}
    wanted = [key for key in before if key[0] == "activation" and key[1] in sites]
    first = wanted[:FIRST] if r.adapter.taken_by(wanted[:FIRST], ()) is not None else []
    moved: list[Key] = []

    def look(key: Key, now: np.ndarray) -> None:
        if not moved and has_moved(now, before[key]):  # one will do
            moved.append(key)

    try:
        if first:
            runner.run(Comparer(look, set(first), alone=True), passive=True)
        if not moved:
            runner.run(Comparer(look, set(wanted)), passive=True)
    except SideFailed:
        return False  # it is read, at least
    return not moved


def lines(found: Mapping[str, str]) -> tuple[str, ...]:
    """For the report: one line each, "`NAME`: why"."""
    return tuple(f"`{name}`: {why}" for name, why in found.items())
