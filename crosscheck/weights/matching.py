"""Which parameter belongs to which: by layer kind, shape, role, path and order of definition.

In this order: what the caller gave; layers that the two sides store in different pieces (recurrent
cells, packed attention: `readings`); then layer by layer, where two layers fit when every weight
has a shape, under its named axes, or under some order of axes where they are unknown, that the
other's can take; last what is left over and equal to a parameter in use, or the same one under
another name (tied weights). Where several fit, the likeness of the paths and the order of
definition decide. If arrays are left that may hold several layers of the other side each, it is
tried again with these taken apart (`stacks`), and done so if less is left then. Nothing is guessed
silently: what remains is listed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from crosscheck.adapters.base import Parameter
from crosscheck.weights.given import WeightMap, given_pairs
from crosscheck.weights.layers import layers_of, with_roles
from crosscheck.weights.layouts import transforms
from crosscheck.weights.leftovers import leftover_pairs
from crosscheck.weights.match import Match, Matched
from crosscheck.weights.paired import paired_layers
from crosscheck.weights.stacks import lengths_of_stacks, stacked_pairs
from crosscheck.weights.ties import tied_pairs
from crosscheck.weights.transform import Transform
from crosscheck.weights.united import unit_pairs

__all__ = ["match_parameters"]


def match_parameters(
    reference: Sequence[Parameter],
    candidate: Sequence[Parameter],
    *,
    given: WeightMap | None = None,
    held: bool = False,
) -> Match:
    """Match parameters; see the module.

    Args:
        reference, candidate: in definition order.
        given: pairs that the caller has decided (`WeightMap`).
        held: the candidate holds the reference's values already: layers with equal values belong
            together, whatever they are called.

    Raises:
        InvalidArgument: ``given`` names a parameter that does not exist, or a transform that does
            not give the candidate's shape. (One reference parameter may feed several of the
            candidate's: tied weights.)
    """
    pairs = given_pairs(reference, candidate, given or {})
    found = _match(pairs, reference, candidate, held=held)
    for length in sorted(lengths_of_stacks(found)):
        stacks = stacked_pairs(
            *_free(pairs, reference, candidate),
            length,
            lambda ours, theirs: match_parameters(ours, theirs, held=held),
            lambda ours, theirs: _match([], ours, theirs, held=held),
        )
        other = _match([*pairs, *stacks], reference, candidate, held=held)
        if other.left_over < found.left_over:
            pairs, found = [*pairs, *stacks], other
    return found


def _match(
    pairs: Sequence[Matched],
    reference: Sequence[Parameter],
    candidate: Sequence[Parameter],
    *,
    held: bool,
) -> Match:
    """All pairs; ``pairs``: those that are known."""
    pairs = [*pairs]
    united = unit_pairs(*_free(pairs, reference, candidate))
    pairs += united.pairs
    free_r, free_c = _free(pairs, reference, candidate)
    free_r = [p for p in free_r if p.name not in united.lost_names]
    layers_r, layers_c = layers_of(free_r), layers_of(free_c)
    layers_r, layers_c = with_roles(layers_r, layers_c), with_roles(layers_c, layers_r)
    simple: list[Matched] = []
    for i, j in paired_layers(layers_r, layers_c, held=held):
        for role, parameter in layers_c[j].parameters.items():
            twin = layers_r[i].parameters.get(role)
            options = transforms(twin, parameter) if twin is not None else []
            if twin is not None and options:
                simple.append(Matched(twin, parameter, options[0], tuple(options[1:])))
    pairs += simple
    pairs = tied_pairs(pairs, reference, candidate, held=held)
    pairs += leftover_pairs(*_free(pairs, reference, candidate), held=held)
    pairs = _by_convention(pairs)
    used_r = {p.name for m in pairs for p in (*m.references, *m.tied)}
    used_c = {m.candidate.name for m in pairs}
    return Match(
        pairs=tuple(pairs),
        unmatched_reference=tuple(p for p in reference if p.name not in used_r),
        unmatched_candidate=tuple(p for p in candidate if p.name not in used_c),
        lost=united.lost,
        partial=united.lost_names,
    )


def _free(
    pairs: Sequence[Matched], reference: Sequence[Parameter], candidate: Sequence[Parameter]
) -> tuple[list[Parameter], list[Parameter]]:
    used_r = {p.name for m in pairs for p in (*m.references, *m.tied)}
    used_c = {m.candidate.name for m in pairs}
    return (
        [p for p in reference if p.name not in used_r],
        [p for p in candidate if p.name not in used_c],
    )


def _by_convention(pairs: list[Matched]) -> list[Matched]:
    """Settle open layouts (square matrices) by those that layers of the same kind show."""
    shown: defaultdict[tuple[str, int], set[Transform]] = defaultdict(set)
    for m in pairs:
        if not m.alternatives and m.transform.expression is None:
            shown[m.reference.kind, m.reference.value.ndim].add(m.transform)
    settled = []
    for m in pairs:
        known = shown[m.reference.kind, m.reference.value.ndim]
        options = [t for t in (m.transform, *m.alternatives) if t in known]
        named = m.reference.axes is not None and m.candidate.axes is not None
        if m.alternatives and not m.decision and not named and len(options) == 1:
            m = replace(m, transform=options[0], alternatives=())
        settled.append(m)
    return settled
