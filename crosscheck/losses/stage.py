"""The loss in a check: what goes into the backward pass, and how the two sides' losses compare.

The loss of a candidate is judged on the *reference's* outputs, outside its model: its value (phase
``loss``) and its gradient with respect to every output (phase ``backward``, blamed on ``loss``).
Behind it both models receive the reference's gradients, so that a mistake in the loss is seen there
and nowhere else.

**The truth.** The value of a named loss is the one of its definition in float64: that does not
depend on which framework happens to be the reference, nor on whether its loss runs in float64
(CTC rarely does). A reference whose own implementation is not that (labels that do not sum to one,
in TensorFlow) is right all the same, as it is in every other stage; then, and for a loss of the
caller's own, of which there is no definition, the truth is what the reference makes of the same
outputs in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crosscheck.adapters.base import Adapter
from crosscheck.adapters.trace import TraceAdapter
from crosscheck.aligning.alignment import Alignment
from crosscheck.aligning.layout import Layout
from crosscheck.compare import compare
from crosscheck.cotangents import ReferenceCotangents, require_outputs
from crosscheck.errors import CannotCompare, InvalidArgument, SideFailed
from crosscheck.losses.evaluate import LossValue, evaluate
from crosscheck.losses.sides import SideLoss, wide
from crosscheck.losses.spec import Loss, parse
from crosscheck.losses.targets import (
    Outputs,
    Resolved,
    Targets,
    for_candidate,
    make_targets,
    own_for_candidate,
    resolve,
)

__all__ = ["LossCotangents", "LossStage", "loss_stage"]

FRAMEWORK_AXES = {"torch": 1}  # of the classes, where shapes leave it open; else the last
DEPARTS = 1e-4
"""Relative distance of a reference from the definition that rounding in float32 seldom explains."""
FAR = 0.03
"""The same, where there is no float64 to ask."""
NOTHING = 1e-8


@dataclass
class LossStage:
    """The losses of both sides of one check.

    Attributes:
        loss, targets: as given; targets as arrays in the reference's layout.
        first: the reference's, ``second``: the candidate's.
        notes: what the reader of the report has to know.
        by_definition: whether the truth is the definition (see the module); settled by `begin`.
        places: reference output -> the candidate's and the layout between them; ``order``: its
            keys as the candidate returns them; ``dtypes``: of the candidate's. Known from `align`.
    """

    loss: Loss
    targets: Targets
    first: SideLoss
    second: SideLoss
    notes: list[str] = field(default_factory=list)
    by_definition: bool | None = None
    places: Mapping[str, tuple[str, Layout]] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    dtypes: Mapping[str, np.dtype] = field(default_factory=dict)

    # -- the two sides on the reference's outputs --------------------------------------------------

    def terms(self, outputs: Outputs, side: str = "reference") -> tuple[Resolved, ...]:
        """The named terms of a side, in the reference's names; none for a function."""
        loss = self.loss
        if loss.own is not None:
            named = getattr(loss.own, side)
            if not isinstance(named, str):
                return ()
            loss = parse(named)
        axis = FRAMEWORK_AXES.get(self.first.adapter.framework, -1)
        return resolve(loss, outputs, self.targets, classes_at=axis)

    def reference(self, outputs: Outputs, *, float64: bool = False) -> LossValue:
        """The reference's own loss."""
        given = wide(outputs) if float64 else outputs
        return self.first.value(self.terms(outputs), given, self.targets, float64=float64)

    def candidate(self, outputs: Outputs, *, float64: bool = False) -> LossValue:
        """The candidate's loss on the reference's outputs; its gradients in the reference's layout.

        Call `align` before.
        """
        given = {}
        for site in self.order:
            theirs, layout = self.places[site]
            value = layout.to_candidate(outputs[site])
            given[theirs] = np.ascontiguousarray(value).astype(self.dtypes[theirs])
        given = wide(given) if float64 else given
        terms = for_candidate(self.terms(outputs, "candidate"), self.places)
        targets = self.targets
        if self.second.own is not None:
            targets = own_for_candidate(targets, outputs, self.places)
        found = self.second.value(terms, given, targets, float64=float64)
        return self._in_reference(found)

    def free_candidate(self, outputs: Outputs, of_reference: Outputs) -> LossValue:
        """The candidate's loss on its own outputs."""
        back = {site: layout.to_reference(outputs[c]) for site, (c, layout) in self.places.items()}
        return self.candidate({**of_reference, **back})

    def _in_reference(self, found: LossValue) -> LossValue:
        made = {
            site: layout.to_reference(found.gradients[theirs])
            for site, (theirs, layout) in self.places.items()
            if theirs in found.gradients
        }
        return LossValue(found.value, made)

    def truth(self, outputs: Outputs) -> LossValue:
        """The loss in float64 (see the module)."""
        if self.by_definition:
            return evaluate(self.terms(outputs), wide(outputs))
        return self.reference(outputs, float64=True)

    # -- what the check tells ----------------------------------------------------------------------

    def begin(self, outputs: Outputs) -> LossValue:
        """The reference's loss on its outputs; settles what the truth is.

        Raises:
            CannotCompare: it is not finite.
        """
        found = self.reference(outputs)
        if not np.isfinite(found.value.astype(np.float64)):
            sizes = ", ".join(
                f"`{s}` from {v.min():.3g} to {v.max():.3g}" for s, v in outputs.items() if v.size
            )
            raise CannotCompare(
                f"the reference's loss `{self.loss.name}` is {float(found.value)} on its own "
                f"outputs ({sizes}): there is nothing to compare.\n"
                "  Fix: inputs, targets or weights in the loss's range; probabilities for logits, "
                "or the other way round, are the usual reason"
            )
        terms = self.terms(outputs)
        self.by_definition = bool(terms) and not self._departs(found, terms, outputs)
        if terms and not self.by_definition:
            self.notes.append(
                f"the reference's own `{self.loss.name}` is not the definition "
                f"({self.first.adapter.framework} computes it otherwise); it is right all the same"
            )
        return found

    def _departs(self, found: LossValue, terms: tuple[Resolved, ...], outputs: Outputs) -> bool:
        """Whether the reference's own implementation is another function than the definition.

        In float32 a value that cancels (two distributions that are nearly equal) may look like it:
        then float64 decides, where there is one.
        """
        truth = evaluate(terms, wide(outputs))
        if _distance(found, truth) <= DEPARTS:
            return False
        try:
            precise = self.reference(outputs, float64=True)
        except (SideFailed, InvalidArgument):
            return _distance(found, truth) > FAR
        return _distance(precise, truth) > DEPARTS

    def align(self, alignment: Alignment, reference: Outputs, candidate: Outputs) -> list[str]:
        """Learn which outputs belong together; gives lines on what cannot be compared."""
        outputs = [p for p in alignment.pairs if p.reference in reference]
        self.places = {
            p.reference: (p.candidate, p.layout)
            for p in outputs
            if p.layout is not None and p.candidate in candidate
        }
        by_candidate = {c: r for r, (c, _) in self.places.items()}
        self.order = tuple(by_candidate[c] for c in candidate if c in by_candidate)
        self.dtypes = {site: value.dtype for site, value in candidate.items()}
        terms = self.terms(reference) + self.terms(reference, "candidate")
        needed = dict.fromkeys(site for term in terms for site in term.outputs)
        if self.first.own is not None or self.second.own is not None:
            needed |= dict.fromkeys(reference)
        lost = [site for site in needed if site not in self.places]
        return [f"loss: output `{site}` has no counterpart of its shape" for site in lost]


def _distance(found: LossValue, truth: LossValue) -> float:
    """The largest relative distance, of the value and of the gradients; what is nearly zero (a
    saturated softmax's gradient) counts as `NOTHING`."""
    pairs = [(found.value, truth.value)]
    pairs += [(found.gradients[s], g) for s, g in truth.gradients.items()]
    differences = [compare(np.asarray(got), np.asarray(want)) for got, want in pairs]
    return max(d.l2 / max(d.truth_l2, NOTHING) for d in differences)


def loss_stage(
    loss: Any, targets: Any, sides: tuple[Adapter, Adapter], *, seed: int
) -> LossStage | None:
    """The loss of a check; None without one.

    Raises:
        InvalidArgument: targets without a loss, a recorded side, an unknown loss.
    """
    if loss is None:
        if targets is not None:
            raise InvalidArgument(
                'targets= is given without loss=: say which, such as loss="cross_entropy"'
            )
        return None
    parsed = parse(loss)
    for side, adapter in zip(("reference", "candidate"), sides, strict=True):
        if isinstance(adapter, TraceAdapter):
            raise InvalidArgument(
                f"loss={parsed.name!r}: the {side} is a recorded run, whose backward pass began "
                "with the cotangents that it was recorded with.\n  Fix: leave loss= out"
            )
    own: dict[str, Any] = {"reference": None, "candidate": None}
    if parsed.own is not None:
        own = {s: f for s in own if not isinstance(f := getattr(parsed.own, s), str)}
    return LossStage(
        parsed,
        make_targets(targets, seed=seed),
        SideLoss("reference", sides[0], own.get("reference")),
        SideLoss("candidate", sides[1], own.get("candidate")),
    )


@dataclass
class LossCotangents(ReferenceCotangents):
    """The gradient of the reference's loss, for every float output that the loss reads."""

    stage: LossStage | None = None
    native: Mapping[str, np.dtype] = field(default_factory=dict)

    def __call__(self, outputs: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        assert self.stage is not None
        require_outputs(outputs, "reference")
        dtypes = {site: value.dtype for site, value in outputs.items()}
        if not self.native:
            self.native = dtypes
            found = self.stage.begin(outputs)
        elif dtypes == self.native:
            found = self.stage.reference(outputs)
        else:  # the run in float64
            return self.stage.truth(outputs).gradients
        self.given = dict(found.gradients)
        return self.given
