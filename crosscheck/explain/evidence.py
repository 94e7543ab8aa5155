"""What an explanation may look at, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.compare import Difference, compare
from crosscheck.explain.hidden import hidden_by, ratio_beside
from crosscheck.judging.judge import without_fill
from crosscheck.judging.noise import AGREE, Floor, judge
from crosscheck.results import Phase

__all__ = ["Evidence", "Prediction", "Proposal", "Sibling", "Use"]

Prediction = Callable[..., "np.ndarray | tuple[np.ndarray, np.ndarray]"]


@dataclass(frozen=True)
class Use:
    """One layer that reads a parameter: how it reads it, on what, and what came back to it.

    Attributes:
        kind: of the layer, as in `crosscheck.adapters.base.Parameter`.
        inputs: its inputs; ``given``: the cotangent at its output. float64, integers as they are.
    """

    kind: str
    inputs: tuple[np.ndarray, ...]
    given: np.ndarray | None


@dataclass(frozen=True)
class Sibling:
    """A layer that the code around a wrong input calls: what it was given, returned and owns.

    Attributes:
        when: -1 before the layer that is given the wrong input, 0 that layer itself, 1 behind it.
        inputs, output: in the reference, float64.
    """

    name: str
    when: int
    inputs: tuple[np.ndarray, ...]
    output: np.ndarray
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One divergence on one set of inputs; all arrays in the reference's layout, floats in float64.

    Attributes:
        phase: see `crosscheck.results.Phase`.
        kind: ``"activation"``, ``"input"``, ``"cotangent"``, ``"input_cotangent"``,
            ``"parameter"``.
        layer: class name of the reference's layer, ``""`` where none is known.
        reference: what the value should have been (the float64 oracle's).
        candidate: what the candidate had. A prediction never sees it.
        inputs: what the layer was given, the same on both sides.
        output: what the reference's layer made of it (backward).
        given: the cotangent at the layer's output (backward).
        slot: which of ``inputs`` the cotangent belongs to (``input_cotangent``).
        which: of the layer's outputs, the one that is compared; 0 for most.
        parameters: of the layer, values in float64.
        parameter: the one that is compared (weights, gradients, buffers).
        before: value of that buffer before the step.
        others: further parameters of the reference of the same shape, by name (weights).
        nearby: forward, values that the code between the layers (or inside a container) had at
            hand, by site; backward, cotangents that the value's may be a sum of.
        absent: those of ``nearby`` that have no partner in the candidate, with the parameters of
            theirs that it has no counterpart of.
        siblings: of a wrong input, or of a wrong cotangent at an output, the layers that the code
            around it calls.
        uses: every layer that reads ``parameter`` (parameter gradients).
        train: whether the model ran in train mode.
        floor, own: what rounding may do here, and the reference's own error against the oracle.
    """

    phase: Phase
    reference: np.ndarray
    candidate: np.ndarray
    floor: Floor
    own: Difference
    kind: str = "activation"
    layer: str = ""
    inputs: tuple[np.ndarray, ...] = ()
    output: np.ndarray | None = None
    given: np.ndarray | None = None
    slot: int = 0
    which: int = 0
    parameters: tuple[Parameter, ...] = ()
    parameter: Parameter | None = None
    before: np.ndarray | None = None
    others: Mapping[str, np.ndarray] = field(default_factory=dict)
    nearby: Mapping[str, np.ndarray] = field(default_factory=dict)
    absent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    siblings: tuple[Sibling, ...] = ()
    uses: tuple[Use, ...] = ()
    train: bool = False

    def ratio(self, prediction: np.ndarray, value: np.ndarray | None = None) -> float:
        """How far ``value`` (default: the candidate's) is from a prediction, over the floor η."""
        value = self.candidate if value is None else value
        if prediction.shape != value.shape:
            return float("inf")
        if self._hidden is not None:
            own, floor = self.own, self.floor
            return ratio_beside(self._hidden, value, prediction, self.reference, own, floor)
        value, _, prediction = without_fill(value, prediction, prediction)
        ratio = judge(compare(value, prediction), self.own, self.floor).ratio
        return ratio / _growth(prediction, self.reference)

    @cached_property
    def _hidden(self) -> np.ndarray | None:
        """Where the reference's value is masked, if it is scores with a mask."""
        return hidden_by(self.reference) if self.phase == "forward" else None

    def fits_candidate(self, prediction: np.ndarray) -> bool:
        """Whether a prediction is the candidate's value up to rounding."""
        return self.ratio(prediction) <= AGREE

    def fits_reference(self, prediction: np.ndarray) -> bool:
        """Whether a prediction is the reference's value up to rounding."""
        return self.ratio(prediction, self.reference) <= AGREE

    def value(self, role: str) -> np.ndarray | None:
        """The layer's only parameter of a role (``weight``, ``bias``, ``mean``, ``variance``)."""
        found = [p.value for p in self.parameters if p.role == role]
        return found[0] if len(found) == 1 else None

    @property
    def x(self) -> np.ndarray | None:
        """The layer's input, where it is one and floating point."""
        floats = [x for x in self.inputs if x.dtype.kind == "f"]
        return floats[0] if len(self.inputs) == len(floats) == 1 else None

    def blind(self) -> Evidence:
        """The same without the candidate's value: all that a prediction may use."""
        return replace(self, candidate=np.full(self.reference.shape, np.nan))


def _growth(prediction: np.ndarray, reference: np.ndarray) -> float:
    """How many times larger a prediction is than the reference: the floor η is what rounding may do
    to the reference's value, and it does as much more to a larger one. By norm and by median, so
    that a few large elements excuse no others."""
    if prediction.shape != reference.shape or not prediction.size:
        return 1.0
    sizes = [(np.linalg.norm(v), np.median(np.abs(v))) for v in (prediction, reference)]
    times = [float(p / r) if r > 0.0 else 1.0 for p, r in zip(*sizes, strict=True)]
    least = min(times)
    return least if 1.0 < least < np.inf else 1.0


@dataclass(frozen=True)
class Proposal:
    """A mistake that may be the reason, with everything it takes to reproduce its effect.

    Attributes:
        name: of the hypothesis, stable (``"norm_eps"``).
        statement: one clause for the reader (``"eps 1e-06 instead of 1e-05"``).
        predict: evidence (of these or of other inputs) -> the candidate's value, shape of
            ``reference``; or two values, where rounding just before a cast may tip a few elements
            (at most one in twenty) either way. None for a description that reproduces nothing: it
            is never verified.
        constants: how many numbers were solved for from the candidate's value.
        descriptive: says what the value looks like ("scaled by 0.99"), not what was done wrong.
            Comes after mistakes that reproduce it as well, and is no hint where it does not.
    """

    name: str
    statement: str
    predict: Prediction | None
    constants: int = 0
    descriptive: bool = False
