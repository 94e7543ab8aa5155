"""How far back a wrong cotangent comes from, where nothing but gradients of parameters tells.

A net in one class shows no cotangents between its inputs and its outputs. Its gradients are made on
the way back, one layer after the other: what arrives at a layer was right if its gradients are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from crosscheck.observers import Key
from crosscheck.results import SiteResult

__all__ = ["Stretch", "layer_of", "wrong_from"]

Stretch = tuple[SiteResult | None, SiteResult]
"""The last right gradient on the way back, if there is one, and the first wrong one."""


def wrong_from(
    gradients: Sequence[SiteResult],
    place: Mapping[Key, int],
    aligned: Collection[str],
    senders: Collection[str],
) -> Stretch | None:
    """Where the way back goes wrong; None where the gradients don't tell.

    Args:
        gradients: all that were compared.
        place: of the reference's values, in the order of its run.
        aligned: the reference's sites whose cotangents were compared themselves.
        senders: the layers that send back a wrong cotangent. Where their own gradients are right,
            they may well be to blame.
    """
    known = []
    for result in gradients:
        layer = layer_of(result.reference)
        if ("activation", layer) in place and layer not in aligned:
            known.append((place["activation", layer], result))
    wrong = [(i, result) for i, result in known if result.verdict != "agree"]
    if not wrong:
        return None
    first = max(wrong, key=lambda one: one[0])
    behind = min(place.get(("activation", sender), first[0]) for sender in senders)
    if first[0] < behind or any(r.verdict == "agree" for i, r in known if i <= first[0]):
        return None  # not one error that all that follows has inherited
    right = [one for one in known if one[0] > first[0]]
    return (min(right, key=lambda one: one[0])[1] if right else None), first[1]


def layer_of(parameter: str) -> str:
    """The layer that a parameter's name says it belongs to."""
    return parameter[: max(0, *map(parameter.rfind, "./"))]
