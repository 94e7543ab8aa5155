"""`check`: what it is asked, and the checks that it makes of it (`crosscheck.single`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from crosscheck.adapters import adapt
from crosscheck.adapters.base import Adapter
from crosscheck.errors import InvalidArgument
from crosscheck.noise import Tolerance
from crosscheck.request import Request
from crosscheck.results import Report
from crosscheck.single import check_once
from crosscheck.weights import WeightMap

__all__ = ["check"]


def check(
    reference: Any,
    candidate: Any,
    inputs: Any = None,
    *,
    candidate_inputs: Mapping[str, Any] | Callable[[dict[str, np.ndarray]], Any] | None = None,
    weights: str | WeightMap = "copy",
    gradients: bool = True,
    loss: Any = None,
    targets: Any = None,
    optimizer: Any = None,
    steps: int = 1,
    train: bool = False,
    sites: Mapping[str, str] | None = None,
    skip: Sequence[str] = (),
    device: str = "cpu",
    seed: int = 0,
    tolerance: Tolerance | None = None,
    explain: bool = True,
    zoom: bool = False,
    name: str = "",
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Does ``candidate`` compute the same function as ``reference``, and if not, from where?

    Args:
        reference, candidate: a model, an Adapter, a recorded trace or the path of one (see
            `crosscheck.adapt`). A recorded reference still forces the candidate; a recorded
            candidate can only be compared as it ran (`crosscheck.traces.offline`).
        inputs: {name: array or spec}, or one array or spec; see `crosscheck.inputs.parse_spec`.
            May be left out where a trace holds them; seed and mode are then the trace's, too.
        candidate_inputs: {name: array}, or a function from the reference's inputs to the
            candidate's; default: the same.
        weights: ``"copy"``: transfer the reference's parameters, then verify. ``"keep"``: they are
            equal already; verify where matched. Or a `WeightMap` for what is not found by itself.
            A recorded reference without parameters has none to copy: the candidate keeps its own.
        gradients: compare cotangents and parameter gradients as well.
        train: run in train mode (batch statistics) and compare buffers afterwards.
        sites: {reference site: candidate site}: overrides alignment.
        skip: sites of either side to leave out; listed in the report.
        device: ``"cpu"`` or ``"cuda"``, both sides.
        seed: of the inputs drawn from specs and of the cotangents.
        tolerance: an explicit `Tolerance` instead of the measured rounding floor.
        explain: name causes, confirmed by reproducing them (`crosscheck.explain`).
        zoom: look for the first operation that departs inside a layer that diverges (PyTorch).
        name: of the check, for the report.
        progress: called with a line before each stage.

    Both models are left as they were found, except for the parameters copied into the candidate.

    Raises:
        InvalidArgument, CannotCompare, DeviceUnavailable, MissingFramework, SideFailed.
    """
    _refuse_unsupported(loss, targets, optimizer, steps)
    request = Request(
        candidate_inputs=candidate_inputs,
        weights=weights,
        gradients=gradients,
        train=train,
        sites=sites or {},
        skip=tuple(skip) if not isinstance(skip, str) else skip,
        device=device,
        seed=seed,
        tolerance=tolerance,
        explain=explain,
        zoom=zoom,
        name=name,
        say=progress or (lambda line: None),
    )
    sides = _adapted(reference, "reference"), _adapted(candidate, "candidate")
    return check_once(sides, inputs, request)


def _refuse_unsupported(loss: Any, targets: Any, optimizer: Any, steps: int) -> None:
    for name, value, default in (
        ("loss", loss, None),
        ("targets", targets, None),
        ("optimizer", optimizer, None),
        ("steps", steps, 1),
    ):
        if value is not default and (default is None or value != default):
            raise InvalidArgument(
                f"{name}={value!r}: the training step is not part of this version. Leave it out: "
                "forward, cotangents and parameter gradients are compared under seeded cotangents"
            )


def _adapted(model: Any, side: str) -> Adapter:
    try:
        return adapt(model)
    except InvalidArgument as error:
        raise InvalidArgument(f"the {side}: {error}") from error.__cause__
