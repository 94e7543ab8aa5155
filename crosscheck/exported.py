"""A candidate that is a file made of the reference: nothing can be copied, nothing needs to be.

An exporter transposes, joins and folds parameters, and some lose their names by it. Copying would
have to undo that. But such a file holds the reference's numbers already, which its arrays show.
"""

from __future__ import annotations

from dataclasses import replace

from crosscheck.adapters.base import Adapter
from crosscheck.errors import capped
from crosscheck.request import Request
from crosscheck.weights.held import tells

__all__ = ["keeping_own"]


def keeping_own(sides: tuple[Adapter, Adapter], request: Request) -> Request:
    """The request with ``weights="keep"`` and a note, where the candidate is a file that holds the
    reference's numbers; else as it is.

    That takes at least half of the reference's parameters, bit for bit, or one where the file says
    that others were merged (a norm into a convolution). Parameters of one number repeated (an
    untrained norm) say nothing. What is not among the file's numbers is named, and compared like
    everything else where it has a counterpart.
    """
    if request.weights != "copy":
        return request
    reference, candidate = sides
    telling = [p for p in reference.parameters() if tells(p.value)]
    there = candidate.held({p.name: p.value for p in telling})
    if not there or (2 * len(there) < len(telling) and not candidate.merged()):
        return request
    note = (
        f"the file holds the numbers of {len(there)} of {len(telling)} parameters of the reference "
        "already, some without a name to copy them to: both sides keep their weights "
        '(weights="keep")'
    )
    others = [p.name for p in telling if p.name not in there]
    if others:
        note += f"; in another form, or not at all: {capped(others)}"
    return replace(request, weights="keep", told=(*request.told, note))
