"""Hypotheses on layers, asked also about the code between layers.

A function without a module of its own (``F.interpolate``, a reshape, ``F.gelu``) shows only in what
the next layer is given, or in what its container returns. There every value that was at hand may
have been its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from crosscheck.explain.activations import (
    another_function,
    elu_alpha,
    leaky_slope,
    named,
    sharper,
    softmax_axis,
)
from crosscheck.explain.evidence import Evidence, Prediction, Proposal
from crosscheck.explain.pools import pooling
from crosscheck.explain.rearranged import flattened, patch_merging, pixel_shuffle
from crosscheck.explain.registry import Hypothesis, register
from crosscheck.explain.resize import resized
from crosscheck.explain.rotary import rotary

__all__: list[str] = []

MOST_VALUES = 4  # of those at hand, the latest
FUNCTIONS: tuple[Hypothesis, ...] = (
    another_function,  # first: it is asked only where the reference's function is known
    leaky_slope,
    elu_alpha,
    sharper,
    softmax_axis,
    pooling,
    flattened,
    patch_merging,
    pixel_shuffle,
    resized,
    rotary,
)


@register("forward")
def function_between_layers(e: Evidence) -> Iterator[Proposal]:
    """What is known of layers, for a function of one of the values at hand."""
    for name in list(e.nearby)[-MOST_VALUES:]:
        alone = _given(e, name)
        assert alone.x is not None
        known = named(alone.x, e.reference) if alone.x.shape == e.reference.shape else None
        for hypothesis in FUNCTIONS if known else FUNCTIONS[1:]:
            for proposal in hypothesis(alone):
                if proposal.predict is not None:
                    yield replace(proposal, predict=_Of(proposal.predict, name))


def _given(e: Evidence, name: str) -> Evidence:
    return replace(e, inputs=(e.nearby[name],), parameters=(), nearby={})


class _Of:
    """A prediction that is made of a value at hand."""

    def __init__(self, predict: Prediction, name: str) -> None:
        self._predict, self._name = predict, name

    def __call__(self, e: Evidence) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        return self._predict(_given(e, self._name))
