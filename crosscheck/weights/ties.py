"""Tied weights: one parameter on one side, two on the other.

An adapter lists a shared parameter once, and notes in ``Parameter.also`` as what other layers know
it. Where it cannot know (a function that uses an embedding's table once more), the value tells: a
left-over parameter that equals one in use is taken for its twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.aligning.names import canonical, similarity
from crosscheck.weights.held import holds
from crosscheck.weights.layouts import transforms
from crosscheck.weights.match import Matched

__all__ = ["tied_pairs"]


def tied_pairs(
    pairs: Sequence[Matched],
    reference: Sequence[Parameter],
    candidate: Sequence[Parameter],
    *,
    held: bool = False,
) -> list[Matched]:
    """The pairs, and those that ties add; ``held``: the candidate holds the values already."""
    found = list(pairs)
    used_c = {m.candidate.name for m in found}
    for parameter in candidate:
        if parameter.name not in used_c:
            pair = _held_twice(parameter, reference)
            if pair is None:
                pair = _table_used_twice(parameter, found)
                if pair is not None and held and not holds(pair.reference, parameter):
                    pair = None  # of a head that the reference does not have
            if pair is not None:
                found.append(pair)
    used_r = {p.name for m in found for p in m.references}
    for parameter in reference:
        if parameter.name not in used_r:
            found = _held_once(parameter, found)
    return found


def _held_twice(parameter: Parameter, reference: Sequence[Parameter]) -> Matched | None:
    """The candidate has a parameter of its own for what the reference shares."""
    aliases = [(p, alias) for p in reference for alias in p.also]
    fitting = [
        (p, a, t) for p, a in aliases if (t := transforms(replace(a, name=p.name), parameter))
    ]
    if not fitting:
        return None
    names = canonical([parameter.name, *(a.name for _, a, _ in fitting)])
    own, _, options = max(
        fitting, key=lambda f: similarity(names[parameter.name], names[f[1].name])
    )
    return Matched(own, parameter, options[0], tuple(options[1:]))


def _table_used_twice(parameter: Parameter, pairs: Sequence[Matched]) -> Matched | None:
    """A kernel of the shape of the one embedding table of the reference, which reads it again."""
    tables = [
        m.reference
        for m in pairs
        if m.reference.kind == "embedding" and m.reference.value.ndim == parameter.value.ndim == 2
    ]
    if parameter.role != "weight" or len({p.name for p in tables}) != 1:
        return None
    table = tables[0]
    if sorted(table.value.shape) != sorted(parameter.value.shape):
        return None
    as_kernel = replace(table, kind="dense", axes=("out", "in"))
    options = transforms(as_kernel, parameter)
    return Matched(table, parameter, options[0], tuple(options[1:])) if options else None


def _held_once(parameter: Parameter, pairs: list[Matched]) -> list[Matched]:
    """The reference has a parameter of its own for what the candidate shares.

    Nobody says so where the candidate is a function: then only an embedding's table is taken to be
    shared, and only if the values are equal. (Copies of whole layers are equal too.)
    """
    for k, m in enumerate(pairs):
        if m.more or m.reference.value.shape != parameter.value.shape:
            continue
        named = any(transforms(parameter, alias) for alias in m.candidate.also)
        table = "embedding" in (m.reference.kind, parameter.kind) and parameter.role == "weight"
        if named or (table and np.array_equal(parameter.value, m.reference.value)):
            return [*pairs[:k], replace(m, tied=(*m.tied, parameter)), *pairs[k + 1 :]]
    return pairs
