"""Last: what is left over on both sides and can only be each other (position tables, class tokens).

First those that hold the same numbers, where the two sides are said to be equal. Else a pair is
made only where both sides have as many left of a size, axes of length 1 aside. Several (the layer
scale of each block, bare on one side and a layer's on the other) go together as the values say that
they hold already, else as the paths and then the order of definition say; whether that is right,
running shows (`trials`).
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.aligning.fingerprints import Fingerprints, fingerprints
from crosscheck.aligning.names import canonical, similarity
from crosscheck.judging.noise import unit_roundoff
from crosscheck.weights.expressions import Applied, Reshape, Source
from crosscheck.weights.held import equal_layout, is_placeholder, tells
from crosscheck.weights.layouts import normal_form, transforms
from crosscheck.weights.match import Matched
from crosscheck.weights.transform import Transform

__all__ = ["leftover_pairs"]


def leftover_pairs(
    reference: Sequence[Parameter], candidate: Sequence[Parameter], *, held: bool = False
) -> list[Matched]:
    """The pairs among parameters that have none yet.

    Args:
        held: the candidate holds the reference's values already: equal ones belong together.
    """
    found = _equal_pairs(reference, candidate) if held else []
    ours = _by_content(_without(reference, {m.reference.name for m in found}))
    theirs = _by_content(_without(candidate, {m.candidate.name for m in found}))
    for key, members in theirs.items():
        twins = ours.get(key, [])
        if len(members) == len(twins):
            pairs = _in_pairs(twins, members, held) if len(twins) > 1 else [(twins[0], members[0])]
            made = ((r, c, _layouts(r, c)) for r, c in pairs if _compatible(r, c))
            found += [Matched(r, c, first, (*rest,)) for r, c, (first, *rest) in made]
    return found


def _without(parameters: Sequence[Parameter], names: set[str]) -> list[Parameter]:
    return [p for p in parameters if p.name not in names]


def _equal_pairs(reference: Sequence[Parameter], candidate: Sequence[Parameter]) -> list[Matched]:
    """Those that hold the same numbers in some layout, and that nothing else left over holds."""
    ours, theirs = ([p for p in side if tells(p.value)] for side in (reference, candidate))
    if not (ours and theirs):
        return []
    prints = [np.stack(fingerprints([p.value for p in side])) for side in (ours, theirs)]
    unit = unit_roundoff(*{p.value.dtype for p in (*ours, *theirs)})
    like = Fingerprints(prints[1], 2.0 * unit).like(prints[0])
    near = (zip(*found, strict=True) for found in like)
    pairs = ((ours[i], theirs[j]) for i, j in itertools.chain.from_iterable(near))
    every = ((r, c, equal_layout(r, c)) for r, c in pairs if r.value.size == c.value.size)
    same = [Matched(r, c, layout) for r, c, layout in every if layout is not None]
    counts = Counter(m.reference.name for m in same), Counter(m.candidate.name for m in same)
    return [m for m in same if counts[0][m.reference.name] == counts[1][m.candidate.name] == 1]


def _in_pairs(
    reference: Sequence[Parameter], candidate: Sequence[Parameter], held: bool
) -> list[tuple[Parameter, Parameter]]:
    """As many pairs as there are of either: equal values first, then paths, then places."""
    words_r, words_c = (canonical([p.name for p in side]) for side in (reference, candidate))

    def rank(pair: tuple[tuple[int, Parameter], tuple[int, Parameter]]) -> tuple[float, ...]:
        (i, r), (j, c) = pair
        known = held and not is_placeholder(r.value) and not is_placeholder(c.value)
        equal = known and any(
            np.array_equal(layout.to_candidate(r.value), c.value) for layout in _layouts(r, c)[:1]
        )
        return (not equal, -similarity(words_r[r.name], words_c[c.name]), abs(i - j), i)

    found: dict[int, tuple[Parameter, Parameter]] = {}
    taken: set[int] = set()
    every = itertools.product(enumerate(reference), enumerate(candidate))
    for (i, r), (j, c) in sorted(every, key=rank):
        if i not in found and j not in taken:
            found[i] = (r, c)
            taken.add(j)
    return [found[i] for i in sorted(found)]


def _compatible(reference: Parameter, candidate: Parameter) -> bool:
    """Not a bias for a weight, nor a norm for a convolution, where both sides say what they are;
    nor a layer's outputs for its inputs."""
    roles, kinds = (reference.role, candidate.role), (reference.kind, candidate.kind)
    return all(a == b or "other" in (a, b) for a, b in (roles, kinds)) and bool(
        _layouts(reference, candidate)
    )


def _by_content(parameters: Sequence[Parameter]) -> dict[tuple[object, ...], list[Parameter]]:
    """Parameters by their shape without axes of length 1, and by what they are for."""
    groups: defaultdict[tuple[object, ...], list[Parameter]] = defaultdict(list)
    for p in parameters:
        shape = tuple(length for length in p.value.shape if length != 1)
        if p.value.size > 1:
            groups[shape, p.buffer].append(p)
    return groups


def _layouts(reference: Parameter, candidate: Parameter) -> list[Transform]:
    """How the candidate may hold the reference's numbers, most likely first; none where both sides
    name their axes, and these do not fit."""
    found = transforms(reference, candidate)
    if found or (normal_form(reference) is not None and normal_form(candidate) is not None):
        return found
    if reference.value.shape == candidate.value.shape:
        return [Transform()]
    source = Source(reference.name, reference.value.shape)
    return [Transform.of(Applied(Reshape(candidate.value.shape), source))]
