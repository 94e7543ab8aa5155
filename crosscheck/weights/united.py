"""Pairs of layers that the two sides store in different pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.aligning.names import canonical, similarity
from crosscheck.weights import attention, recurrent
from crosscheck.weights.assign import assign
from crosscheck.weights.layers import layers_of
from crosscheck.weights.match import Matched
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
    """Match recurrent cells and packed attention."""
    found = United()
    _match(recurrent.units(reference), recurrent.units(candidate), recurrent.bridge, found)
    used_r = {p.name for m in found.pairs for p in m.references} | found.lost_names
    used_c = {m.candidate.name for m in found.pairs}
    layers_r = layers_of([p for p in reference if p.name not in used_r])
    layers_c = layers_of([p for p in candidate if p.name not in used_c])
    triples_r, triples_c = attention.triple_units(layers_r), attention.triple_units(layers_c)
    fused_r = attention.fused_units(layers_r, triples_c) + attention.mixed_units(reference)
    fused_c = attention.fused_units(layers_c, triples_r) + attention.mixed_units(candidate)
    if fused_c and not fused_r:
        _match(triples_r, fused_c, attention.bridge, found)
    elif fused_r and not fused_c:
        _match(fused_r, triples_c, attention.bridge, found)
    return found


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
