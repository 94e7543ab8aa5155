"""What a person compares by hand, and what two libraries' tolerances say of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from crosscheck.adapters import adapt
from crosscheck.aligning.layout import fitting, relative_error
from crosscheck.aligning.pairing import pair_outputs
from crosscheck.comparisons import gradient_items, value_of
from crosscheck.cotangents import CandidateCotangents, ReferenceCotangents
from crosscheck.inputs import make_inputs
from crosscheck.judging.judge import in_reference_layout
from crosscheck.observers import Recorder
from crosscheck.pair import Pair, make
from crosscheck.pipeline import calls_of, match_in_order
from crosscheck.run import Runner

__all__ = ["PEERS", "condemned_by", "values_by_hand"]

Values = tuple[list[tuple[np.ndarray, np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]
"""(reference, candidate) of the outputs, and of the gradients of all parameters."""


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
    inputs = make_inputs(pair.inputs(seed) if callable(pair.inputs) else pair.inputs, seed=seed)
    theirs = inputs
    given = pair.candidate_inputs
    given = given.get(candidate) if isinstance(given, dict) else given
    if callable(given):
        theirs = make_inputs(given({k: v.copy() for k, v in inputs.items()}), seed=seed)
    backward = gradients and all(side.capabilities.cotangents for side in sides)
    seeded = ReferenceCotangents(seed)
    ours = Runner("reference", sides[0], inputs, seeded if backward else None, train, seed)
    reference = ours.record(recorder=Recorder(), passive=True)
    other = Runner("candidate", sides[1], theirs, None, train, seed)
    match = match_in_order(*sides, (reference.info.layers, calls_of(other)), given={})
    if backward:
        other.cotangents = CandidateCotangents(reference, seeded.given, {})
    free = other.record(passive=True)
    outputs = []
    for r, c in pair_outputs(reference, free, explicit={}):
        truth, value = reference.values["activation", r], free.values["activation", c]
        layouts = fitting(truth.shape, value.shape)
        near = min(
            (layout.to_reference(value) for layout in layouts),
            key=lambda v: relative_error(v, truth),
            default=value,
        )
        outputs.append((truth, near))
    of_parameters = []
    if backward:
        for item in gradient_items(match, reference, free)[0]:
            truth, value = (
                value_of(item, trace, side=side)  # type: ignore[assignment]
                for trace, side in ((reference, "reference"), (free, "candidate"))
            )
            if truth is not None and value is not None:
                of_parameters.append((truth, in_reference_layout(item, value, truth)))
    return outputs, of_parameters


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
