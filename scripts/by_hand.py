"""What a person compares by hand, and what two libraries' tolerances say of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from crosscheck.adapters import adapt
from crosscheck.adapters.base import Adapter
from crosscheck.aligning.layout import fitting, relative_error
from crosscheck.aligning.pairing import pair_outputs
from crosscheck.candidate_inputs import inputs_of_candidate
from crosscheck.comparisons import gradient_items, value_of
from crosscheck.cotangents import CandidateCotangents, ReferenceCotangents
from crosscheck.inputs import make_inputs
from crosscheck.judging.judge import in_reference_layout
from crosscheck.observers import Recorder
from crosscheck.pair import Pair, make
from crosscheck.pipeline import calls_of, match_in_order
from crosscheck.run import Runner
from crosscheck.trace import Trace
from crosscheck.weights import Match

__all__ = ["PEERS", "condemned_by", "values_by_hand"]

Arrays = dict[str, np.ndarray]
Pairs = list[tuple[np.ndarray, np.ndarray]]
"""(reference, candidate), both in the reference's layout."""
Values = tuple[Pairs, Pairs]
"""The outputs, and the gradients of all parameters."""


def values_by_hand(
    pair: Pair,
    candidate: str,
    model: Any,
    *,
    seed: int,
    train: bool = False,
    gradients: bool = True,
) -> Values:
    """Both models as they run by themselves, each output and gradient in the reference's layout."""
    sides = adapt(make(pair.reference)), adapt(model)
    ours, theirs = _inputs(pair, candidate, seed, sides[1])
    backward = gradients and all(side.capabilities.cotangents for side in sides)
    seeded = ReferenceCotangents(seed) if backward else None
    first = Runner("reference", sides[0], ours, seeded, train, seed)
    reference = first.record(recorder=Recorder(), passive=True)
    second = Runner("candidate", sides[1], theirs, None, train, seed)
    match = match_in_order(*sides, (reference.info.layers, calls_of(second)), given={})
    if seeded is not None:
        second.cotangents = CandidateCotangents(reference, seeded.given, {})
    free = second.record(passive=True)
    return _outputs(reference, free), _gradients(match, reference, free) if backward else []


def _inputs(pair: Pair, candidate: str, seed: int, side: Adapter) -> tuple[Arrays, Arrays]:
    """The reference's and the candidate's."""
    given = pair.candidate_inputs
    given = given.get(candidate) if isinstance(given, dict) else given
    ours = make_inputs(pair.inputs(seed) if callable(pair.inputs) else pair.inputs, seed=seed)
    return ours, inputs_of_candidate(given, ours, seed, side)[0]


def _outputs(reference: Trace, candidate: Trace) -> Pairs:
    found = []
    for r, c in pair_outputs(reference, candidate, explicit={}):
        truth, value = reference.values["activation", r], candidate.values["activation", c]
        near = min(
            (layout.to_reference(value) for layout in fitting(truth.shape, value.shape)),
            key=lambda v, truth=truth: relative_error(v, truth),
            default=value,
        )
        found.append((truth, near))
    return found


def _gradients(match: Match, reference: Trace, candidate: Trace) -> Pairs:
    found = []
    for item in gradient_items(match, reference, candidate)[0]:
        truth = value_of(item, reference, side="reference")
        value = value_of(item, candidate, side="candidate")
        if truth is not None and value is not None:
            found.append((truth, in_reference_layout(item, value, truth)))
    return found


def _numpy(**tolerances: float) -> Callable[[np.ndarray, np.ndarray], None]:
    return lambda truth, value: np.testing.assert_allclose(value, truth, **tolerances)


def _torch(**tolerances: float) -> Callable[[np.ndarray, np.ndarray], None]:
    def compare(truth: np.ndarray, value: np.ndarray) -> None:
        import torch

        pair = (torch.from_numpy(np.array(a, truth.dtype)) for a in (value, truth))
        torch.testing.assert_close(*pair, **tolerances)

    return compare


_ASSERTIONS = {
    "np.testing.assert_allclose": _numpy(),
    "np.testing.assert_allclose(rtol=1e-3)": _numpy(rtol=1e-3),
    "torch.testing.assert_close": _torch(),
    "torch.testing.assert_close(rtol=1e-3, atol=1e-5)": _torch(rtol=1e-3, atol=1e-5),
}
PEERS = tuple(f"{name}, {what}" for name in _ASSERTIONS for what in ("outputs", "and gradients"))


def condemned_by(peer: str, values: Values) -> bool:
    """Whether one of the comparisons raises."""
    name, _, what = peer.rpartition(", ")
    outputs, gradients = values
    for truth, value in [*outputs, *(gradients if what == "and gradients" else [])]:
        try:
            _ASSERTIONS[name](truth, value)
        except AssertionError:
            return True
    return False
