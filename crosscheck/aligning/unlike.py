"""Part of stage 5, align: inputs of two layers that are not the same quantity, and layers that hand
on what they are given.
"""

from __future__ import annotations

import numpy as np

from crosscheck.aligning.alignment import Alignment, SitePair
from crosscheck.aligning.edges import edges_of, input_error
from crosscheck.aligning.pairing import Pairing
from crosscheck.arrays import is_float
from crosscheck.kernels.on_device import equal
from crosscheck.trace import Trace, owner

__all__ = ["handed_on", "note_idle_inputs", "note_unlike_inputs"]

EXPLAINED = 0.01
"""How much smaller than its input's error, relatively, a layer's error beyond rounding must be for
the input to be another quantity and not the cause of it."""

FEW = 32  # numbers that are compared before all are


def note_unlike_inputs(
    pair: SitePair, error: float, pairing: Pairing, candidate: Trace, *, same_layer: bool
) -> None:
    """Note which inputs of two layers are not the same quantity, since the outputs are equal.

    Args:
        error: of the output, relatively, in ``candidate``, which is not forced at these inputs.
        same_layer: that they are one layer is known otherwise: only where one of them hands its
            input on is that input as right as the output.
    """
    reference = pairing.reference.trace
    if same_layer and not (
        handed_on(reference, pair.reference) or handed_on(candidate, pair.candidate)
    ):
        return
    caused = max(error - pairing.rounding, 0.0)
    for edge in edges_of(pair, pairing, candidate):
        if input_error(edge, pairing, candidate) <= max(pairing.same, caused / EXPLAINED):
            continue
        if not same_layer or (
            _hands_on(reference, edge.reference, pair.reference)
            or _hands_on(candidate, edge.candidate, pair.candidate)
        ):
            pairing.unlike.add((edge.reference, edge.candidate))


def note_idle_inputs(alignment: Alignment, pairing: Pairing, candidate: Trace) -> int:
    """Note the inputs of layers of another type and name that differ, and with which what the layer
    returns is wrong even if they are made the same: what one layer does may begin earlier on the
    other side. That goes for guesses by order, and where one of the two only hands on what it is
    given (a dropout that is off): the code before it does what the other one does.

    Args:
        alignment: what ``candidate`` was forced at.

    Returns:
        How many.
    """
    found = 0
    for edge in alignment.edges:
        r, c = edge.pair.reference, edge.pair.candidate
        if pairing.taken.get(c) != r or edge.pair.layout is None or _named_alike(r, c, pairing):
            continue
        if not input_error(edge, pairing, candidate) > pairing.same:
            continue
        error = pairing.distances(candidate).of("activation", r, c, edge.pair.layout)
        ours = handed_on(pairing.reference.trace, r) == edge.reference
        theirs = handed_on(pairing.candidate.trace, c) == edge.candidate
        if error > pairing.same and (ours != theirs or edge.pair.by == "order"):
            pairing.unlike.add((edge.reference, edge.candidate))
            pairing.changes += 1
            found += 1
    return found


def _named_alike(r: str, c: str, pairing: Pairing) -> bool:
    """Whether two layers have one type, or their names end in the same word."""
    kinds = pairing.reference.kind(r), pairing.candidate.kind(c)
    names = pairing.reference.names[r], pairing.candidate.names[c]
    words = [[word for word in name if not word.lstrip("-").isdigit()][-1:] for name in names]
    return kinds[0] == kinds[1] != "" or words[0] == words[1] != []


def handed_on(trace: Trace, site: str) -> str | None:
    """The input that a layer returns as it is (a dropout that is off), if there is one."""
    slots = trace.inputs_of(owner(site)) if ("activation", site) in trace.values else []
    return next((slot for slot in slots if _hands_on(trace, slot, site)), None)


def _hands_on(trace: Trace, slot: str, site: str) -> bool:
    """Whether a layer returns the very numbers that it is given (a dropout in eval mode)."""
    given, made = trace.values["input", slot], trace.values["activation", site]
    if not is_float(given) or given.size != made.size or given.size == 0:
        return False
    if given.flat[0] != made.flat[0]:  # which tells nearly always
        return False
    given, made = given.reshape(-1), made.reshape(-1)
    return np.array_equal(given[:FEW], made[:FEW]) and equal(given, made)
