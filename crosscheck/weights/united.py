"""Pairs of layers that the two sides store in different pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.aligning.names import canonical, similarity
from crosscheck.weights import recurrent
from crosscheck.weights.assign import assign
from crosscheck.weights.families import GATED, QKV, mixed_units
from crosscheck.weights.layers import Layer, layers_of
from crosscheck.weights.match import Matched
from crosscheck.weights.packed import Family, bridge, packed_units, several_units
from crosscheck.weights.readings import Bridge, Composed, Reading, Unit, compose
from crosscheck.weights.transform import Transform

__all__ = ["United", "unit_pairs"]


@dataclass
class United:
    """What the units gave: pairs, and what of the reference found no place in its counterpart."""

    pairs: list[Matched] = field(default_factory=list)
    lost: tuple[str, ...] = ()
    lost_names: frozenset[str] = frozenset()


def unit_pairs(reference: Sequence[Parameter], candidate: Sequence[Parameter]) -> United:
    """Match recurrent cells, and what one side packs into one layer."""
    found = United()
    _match(recurrent.units(reference), recurrent.units(candidate), recurrent.bridge, found)
    layers = _free_layers(reference, candidate, found)
    before = len(found.pairs)
    _match_packed(QKV, *layers, (mixed_units(reference), mixed_units(candidate)), found)
    if len(found.pairs) > before:
        layers = _free_layers(reference, candidate, found)
    _match_packed(GATED, *layers, ([], []), found)
    return found


def _free_layers(
    reference: Sequence[Parameter], candidate: Sequence[Parameter], found: United
) -> tuple[list[Layer], list[Layer]]:
    used_r = {p.name for m in found.pairs for p in m.references} | found.lost_names
    used_c = {m.candidate.name for m in found.pairs}
    return (
        layers_of([p for p in reference if p.name not in used_r]),
        layers_of([p for p in candidate if p.name not in used_c]),
    )


def _match_packed(
    family: Family,
    ours: Sequence[Layer],
    theirs: Sequence[Layer],
    mixed: tuple[list[Unit], list[Unit]],
    into: United,
) -> None:
    """Match layers that are several on one side and one on the other.

    Args:
        mixed: further units that hold all of a family, of either side.
    """
    several_r, several_c = several_units(family, ours), several_units(family, theirs)
    packed_r = packed_units(family, ours, several_c) + mixed[0]
    packed_c = packed_units(family, theirs, several_r) + mixed[1]
    if packed_c and not packed_r and len(several_r) > len(several_c):
        _match(several_r, packed_c, bridge, into)
    elif packed_r and not packed_c and len(several_c) > len(several_r):
        _match(packed_r, several_c, bridge, into)


def _match(ours: Sequence[Unit], theirs: Sequence[Unit], bridge: Bridge, into: United) -> None:
    score, likeness = _scores(ours, theirs)
    for i, j in assign(score, likeness):
        a, b = ours[i], theirs[j]
        _add(a, b, _options(a, b, bridge), into)


def _scores(ours: Sequence[Unit], theirs: Sequence[Unit]) -> tuple[np.ndarray, np.ndarray]:
    score = np.zeros((len(ours), len(theirs)))
    likeness = np.zeros_like(score)
    words_r, words_c = canonical(u.path for u in ours), canonical(u.path for u in theirs)
    for i, a in enumerate(ours):
        for j, b in enumerate(theirs):
            if any(_same_layer(x, y) for x in a.readings for y in b.readings):
                likeness[i, j] = similarity(words_r[a.path], words_c[b.path])
                score[i, j] = 1.0 + 2.0 * (a.backward == b.backward) + 3.0 * likeness[i, j] ** 2
    return score, likeness


def _same_layer(a: Reading, b: Reading) -> bool:
    """Whether two readings are of one kind and hold weights of the same shapes (biases aside)."""

    def weights(reading: Reading) -> dict[str, tuple[int, ...]]:
        slots = reading.slots.items()
        return {s: node.shape for s, node in slots if not s.startswith("b") and "bias" not in s}

    return a.kind == b.kind and weights(a) == weights(b)


def _options(a: Unit, b: Unit, bridge: Bridge) -> list[tuple[Reading, Reading, Composed]]:
    """Every reading of one with every reading of the other; those that amount to the same once."""
    found: dict[str, tuple[Reading, Reading, Composed]] = {}
    for x in a.readings:
        for y in b.readings:
            if _same_layer(x, y):
                composed = compose(x, y, bridge)
                key = str(sorted((n, str(t)) for n, t in composed.transforms.items()))
                found.setdefault(key, (x, y, composed))
    options = list(found.values())
    return [o for o in options if set(o[2].transforms) == set(options[0][2].transforms)]


def _add(
    a: Unit, b: Unit, options: Sequence[tuple[Reading, Reading, Composed]], into: United
) -> None:
    ours = {p.name: p for p in a.parameters}
    kind, first = options[0][0].kind, options[0][2]
    lost = [(name, slot) for name, slot in first.lost if np.any(ours[name].value)]
    lost.sort(key=lambda entry: not entry[1].endswith(".n"))  # where the reason is a deeper one
    decision = ""
    if len(options) > 1:
        decision = f"{kind}: {' | '.join(dict.fromkeys(c.label for *_, c in options))}"
    for parameter in b.parameters:
        if parameter.name not in first.transforms:
            continue
        names, transform = first.transforms[parameter.name]
        alternatives: list[Transform] = [c.transforms[parameter.name][1] for *_, c in options[1:]]
        fallback = [p for p in a.parameters if p.role == "bias"] or list(a.parameters)
        made_of = [ours[n] for n in names] or fallback[:1]
        into.pairs.append(
            Matched(
                made_of[0],
                parameter,
                transform,
                tuple(alternatives),
                more=tuple(made_of[1:]),
                decision=decision,
            )
        )
    into.lost += tuple(_lost_text(a, b, ours[name], slot, kind) for name, slot in lost)
    into.lost_names |= {name for name, _ in first.lost}


def _lost_text(a: Unit, b: Unit, parameter: Parameter, slot: str, kind: str) -> str:
    text = (
        f"reference parameter `{parameter.name}` {parameter.value.shape} has no place in the "
        f"candidate's `{b.path}`"
    )
    if kind == "gru" and slot.endswith(".n"):
        return (
            f"{text}: there the new state has one bias, here two, of which the reset gate scales "
            "the second.\n  Fix: a GRU that applies the reset gate after the product and has both "
            "biases (in Keras reset_after=True), or bias=False on both sides."
        )
    return f"{text} (its {slot}).\n  Fix: give the candidate's layer that parameter."
