"""Stage 4, run, where the reference is a sketch: the candidate runs on its inputs, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosscheck.adapters.base import Adapter
from crosscheck.adapters.trace import TraceAdapter
from crosscheck.aligning.layout import fitting
from crosscheck.aligning.pairing import pair_outputs
from crosscheck.arrays import is_float
from crosscheck.cotangents import require_outputs
from crosscheck.errors import CannotCompare, InvalidArgument
from crosscheck.inputs import cotangent, make_inputs
from crosscheck.run import Runner
from crosscheck.sketches.judge import read
from crosscheck.sketches.make import Sketch
from crosscheck.trace import RunInfo, Trace
from crosscheck.traces.feed import inputs_sha256
from crosscheck.traces.record import run_freely
from crosscheck.traces.recorded import RecordedTrace

__all__ = ["candidate_run", "inputs_of"]


def inputs_of(sketch: Sketch, given: Any, *, seed: int) -> dict[str, np.ndarray]:
    """What the sketched run was fed: given now, or kept in the sketch.

    Raises:
        InvalidArgument: neither.
        CannotCompare: given, and not what the sketched run was fed.
    """
    seed = seed if sketch.seed is None else sketch.seed
    if given is None:
        if sketch.inputs:
            return dict(sketch.inputs)
        raise InvalidArgument(
            f"the sketch `{sketch.origin}` is too small to hold its inputs: give inputs (--input), "
            "the arrays or specs that it was recorded with"
        )
    fed = make_inputs(given, seed=seed)
    if inputs_sha256(fed) != sketch.inputs_sha256:
        raise CannotCompare(
            "the inputs given are not those of the sketch (their SHA-256 differs).\n"
            "  Fix: give the arrays or specs that it was recorded with, under the same names"
        )
    return fed


def candidate_run(
    sketch: Sketch,
    adapter: Adapter,
    inputs: Callable[[], dict[str, np.ndarray]],
    *,
    gradients: bool,
    sites: Mapping[str, str],
    skip: Sequence[str],
    progress: Callable[[str], None],
) -> RecordedTrace:
    """The candidate's free run, forward and backward; a recorded one as it is.

    Args:
        inputs: makes the candidate's inputs; not called for a recorded one.

    Raises:
        SideFailed: the candidate raised.
    """
    if isinstance(adapter, TraceAdapter):
        return adapter.trace
    seed = sketch.seed or 0
    backward = gradients and adapter.capabilities.cotangents
    sent = _Cotangents(sketch, sites, skip) if backward else None
    runner = Runner("candidate", adapter, inputs(), sent, sketch.train, seed)
    progress(f"candidate ({adapter.framework}): forward{' and backward' if backward else ''}")
    free = run_freely(runner)
    parameters = tuple(adapter.parameters())
    return RecordedTrace(
        values=free.values,
        info=free.info,
        framework=free.framework,
        inputs=runner.inputs,
        inputs_sha256=sketch.inputs_sha256,
        parameters=parameters,
        held=frozenset(p.name for p in parameters),
        seed=seed,
        train=sketch.train,
        version=adapter.version,
        device=adapter.device,
    )


@dataclass
class _Cotangents:
    """What the sketched run sent into its outputs, drawn again, in the candidate's layouts."""

    sketch: Sketch
    sites: Mapping[str, str]
    skip: Sequence[str]

    def __call__(self, outputs: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        require_outputs(outputs, "candidate")
        found = {}
        for ours, theirs in self._pairs(outputs):
            record = self.sketch.record(("activation", ours))
            value = outputs[theirs]
            options = fitting(record.shape, value.shape)
            if not is_float(value) or not options or "float" not in record.dtype:
                continue
            layout = min(
                options,
                key=lambda one: read(one.to_reference(value), record, self.sketch.plan).l2,
            )
            like = np.broadcast_to(np.float32(0), record.shape)
            drawn = cotangent(ours, like, seed=self.sketch.seed or 0)
            found[theirs] = layout.to_candidate(drawn)
        return found

    def _pairs(self, outputs: dict[str, np.ndarray]) -> list[tuple[str, str]]:
        ours, theirs = self.sketch.info.outputs, tuple(outputs)
        sides = [Trace({}, RunInfo((), names, {}, {}, {}), "") for names in (ours, theirs)]
        pairs = pair_outputs(*sides, explicit=self.sites, skip=self.skip)
        named = [(r, c) for r, c in self.sites.items() if r in ours and c in outputs]
        return [*pairs, *named]
