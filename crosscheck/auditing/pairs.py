"""What an audit takes of a pair: one of its models, with the inputs, loss and targets of a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crosscheck.adapters import adapt
from crosscheck.candidate_inputs import inputs_of_candidate
from crosscheck.errors import InvalidArgument
from crosscheck.inputs import make_inputs
from crosscheck.pair import Pair, make

__all__ = ["Chosen", "of_pair"]


@dataclass(frozen=True)
class Chosen:
    """The first four arguments of `crosscheck.audit`."""

    model: Any
    inputs: Any
    loss: Any = None
    targets: Any = None


def of_pair(pair: Pair, candidate: str | None = None, *, seed: int = 0) -> Chosen:
    """One implementation of a pair, as that pair's check would run it.

    Args:
        candidate: its name; None for the reference.
        seed: of inputs and targets that the pair draws.

    Raises:
        InvalidArgument: no candidate is called so.
    """
    inputs = pair.inputs(seed) if callable(pair.inputs) else pair.inputs
    loss, targets = pair.options.get("loss"), pair.options.get("targets")
    targets = targets(seed) if callable(targets) else targets
    if candidate is None:
        return Chosen(make(pair.reference), inputs, loss, targets)
    if candidate not in pair.candidates():
        raise InvalidArgument(
            f"{pair.name} has no candidate {candidate!r}; it has {pair.candidates()}"
        )
    chosen = pair.candidate[candidate] if isinstance(pair.candidate, dict) else pair.candidate
    given = pair.candidate_inputs
    given = (
        given.get(candidate)
        if isinstance(pair.candidate, dict) and isinstance(given, dict)
        else given
    )
    model = make(chosen)
    ours = make_inputs(inputs, seed=seed)
    return Chosen(model, inputs_of_candidate(given, ours, seed, adapt(model))[0], loss, targets)
