"""Which cotangent each output of either side receives (part of stage 3, feed)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from crosscheck.aligning.layout import Layout, fitting, relative_error
from crosscheck.aligning.pairing import pair_outputs
from crosscheck.arrays import is_float
from crosscheck.errors import CannotCompare, capped
from crosscheck.inputs import cotangent
from crosscheck.trace import RunInfo, Trace

__all__ = ["CandidateCotangents", "ReferenceCotangents", "require_finite", "require_outputs"]

ENOUGH = 4096
"""Elements of an output that are looked at before all of them."""


def require_outputs(outputs: Mapping[str, np.ndarray], side: str) -> None:
    """Raise `CannotCompare` where a model gave nothing to compare."""
    if not outputs:
        raise CannotCompare(
            f"the {side} returned no array: there is no output to compare.\n"
            "  Does its forward end in `return`, and in arrays or tensors?"
        )
    if not any(value.size for value in outputs.values()):
        shapes = capped(f"{site}: {list(value.shape)}" for site, value in outputs.items())
        raise CannotCompare(
            f"every output of the {side} is empty ({shapes}): there is nothing to compare.\n"
            "  Fix: a batch of at least one"
        )


@dataclass
class ReferenceCotangents:
    """Seeded normals for every float output of the reference that is not skipped."""

    seed: int
    skip: Sequence[str] = ()
    given: dict[str, np.ndarray] = field(default_factory=dict)
    _drawn: dict[str, np.ndarray] = field(default_factory=dict, init=False)

    def __call__(self, outputs: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.given = {
            site: self._drawn_for(site, value.shape)
            for site, value in outputs.items()
            if is_float(value) and value.size and site not in self.skip
        }
        require_outputs(outputs, "reference")
        if not self.given:
            kept = " that is not skipped" if set(self.skip) & set(outputs) else ""
            kinds = capped(f"{s}: {v.dtype.name}{list(v.shape)}" for s, v in outputs.items())
            raise CannotCompare(
                f"the reference has no floating-point output{kept} to send a cotangent into; its "
                f"outputs are {kinds}.\n  Fix: return the logits as well, or gradients=False to "
                "compare the forward pass alone"
            )
        return self.given

    def _drawn_for(self, site: str, shape: tuple[int, ...]) -> np.ndarray:
        """The same for every run of a check: drawing them takes as long as a layer."""
        known = self._drawn.get(site)
        if known is None or known.shape != shape:
            zeros = np.broadcast_to(np.float32(0.0), shape)
            known = self._drawn[site] = cotangent(site, zeros, seed=self.seed)
        return known


@dataclass
class CandidateCotangents:
    """The same cotangents, in the candidate's output names and layouts.

    Attributes:
        decided: (reference output, candidate output) -> layout, once alignment has decided it: a
            forced run shows other values, but the same outputs. Before that the layout under which
            the outputs are closest.
    """

    reference: Trace
    given: Mapping[str, np.ndarray]
    explicit: Mapping[str, str]
    skip: Sequence[str] = ()
    decided: Mapping[tuple[str, str], Layout | None] = field(default_factory=dict)

    def __call__(self, outputs: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        require_outputs(outputs, "candidate")
        found = {}
        for ours, theirs in self.decided or self._pairs(outputs):
            if ours in self.given and theirs in outputs and is_float(outputs[theirs]):
                layout = self._layout(ours, theirs, outputs[theirs])
                if layout is not None:
                    found[theirs] = layout.to_candidate(self.given[ours])
        return found

    def _pairs(self, outputs: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
        info = RunInfo((), tuple(outputs), {}, {}, {})
        candidate = Trace({("activation", s): v for s, v in outputs.items()}, info, "")
        named = [(r, c) for r, c in self.explicit.items() if c in outputs]
        pairs = pair_outputs(self.reference, candidate, explicit=self.explicit, skip=self.skip)
        return [*pairs, *named]

    def _layout(self, ours: str, theirs: str, value: np.ndarray) -> Layout | None:
        if (ours, theirs) in self.decided:
            return self.decided[ours, theirs]
        truth = self.reference.values["activation", ours]
        options = fitting(truth.shape, value.shape)
        if len(options) == 1:
            return options[0]
        return min(
            options,
            key=lambda layout: relative_error(layout.to_reference(value), truth),
            default=None,
        )


def _any_finite(value: np.ndarray) -> bool:
    some = value.flat[:ENOUGH].astype(float)
    return bool(np.isfinite(some).any() or np.isfinite(value.astype(float)).any())


def require_finite(reference: Trace, candidate: Trace) -> None:
    """Raise `CannotCompare` where both sides hold an output without a finite number."""

    def dead(trace: Trace) -> list[str]:
        values = [(s, trace.values["activation", s]) for s in trace.info.outputs]
        return [s for s, v in values if is_float(v) and v.size and not _any_finite(v)]

    def first(trace: Trace) -> str:
        for site, value in trace.activations().items():
            if is_float(value) and not np.isfinite(value.astype(float)).all():
                return site
        return "?"

    if dead(reference) and dead(candidate):
        raise CannotCompare(
            f"output `{dead(reference)[0]}` holds no finite number on either side, so there is "
            "nothing to compare.\n"
            f"  The first NaN or Inf is at `{first(reference)}` (reference) and "
            f"`{first(candidate)}` (candidate).\n  Fix: inputs or weights in the model's range"
        )
