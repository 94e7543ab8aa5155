"""Last: what is left over on both sides and can only be each other (position tables, class tokens).

Nothing is chosen: a pair is made only where one parameter is the sole one left of its size on
either side, axes of length 1 aside.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from crosscheck.adapters.base import Parameter
from crosscheck.weights.expressions import Applied, Reshape, Source
from crosscheck.weights.match import Matched
from crosscheck.weights.transform import Transform

__all__ = ["leftover_pairs"]


def leftover_pairs(reference: Sequence[Parameter], candidate: Sequence[Parameter]) -> list[Matched]:
    """The pairs among parameters that have none yet."""
    ours, theirs = _by_content(reference), _by_content(candidate)
    found = []
    for key, members in theirs.items():
        twins = ours.get(key, [])
        if len(members) == len(twins) == 1 and _compatible(twins[0], members[0]):
            found.append(Matched(twins[0], members[0], _reshaped(twins[0], members[0])))
    return found


def _compatible(reference: Parameter, candidate: Parameter) -> bool:
    """Not a bias for a weight, nor a norm for a convolution, where both sides say what they are."""
    roles, kinds = (reference.role, candidate.role), (reference.kind, candidate.kind)
    return all(a == b or "other" in (a, b) for a, b in (roles, kinds))


def _by_content(parameters: Sequence[Parameter]) -> dict[tuple[object, ...], list[Parameter]]:
    """Parameters by their shape without axes of length 1, and by what they are for."""
    groups: defaultdict[tuple[object, ...], list[Parameter]] = defaultdict(list)
    for p in parameters:
        shape = tuple(length for length in p.value.shape if length != 1)
        if p.value.size > 1:
            groups[shape, p.buffer].append(p)
    return groups


def _reshaped(reference: Parameter, candidate: Parameter) -> Transform:
    if reference.value.shape == candidate.value.shape:
        return Transform()
    source = Source(reference.name, reference.value.shape)
    return Transform.of(Applied(Reshape(candidate.value.shape), source))
