"""`check`: what it is asked, and the checks that it makes of it (`crosscheck.single`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from crosscheck.adapters import adapt
from crosscheck.adapters.base import Adapter
from crosscheck.collecting import seldom
from crosscheck.errors import InvalidArgument, TraceFormatError
from crosscheck.judging.noise import Tolerance
from crosscheck.memory import limited
from crosscheck.probes.stage import Probes, check_all
from crosscheck.request import Request
from crosscheck.results import Report
from crosscheck.sketches.compare import check_sketch, compare_sketches
from crosscheck.sketches.file import sketched
from crosscheck.weights import WeightMap

__all__ = ["check"]


def check(
    reference: Any,
    candidate: Any,
    inputs: Any = None,
    *,
    candidate_inputs: Mapping[str, Any]
    | Callable[[dict[str, np.ndarray]], Any]
    | str
    | None = None,
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
    probes: str | Sequence[str] | Mapping[str, Any] | None = None,
    seeds: int = 1,
    randomise: bool = False,
    blind_spots: bool = True,
    effort: str = "thorough",
    max_memory: int | str | None = None,
    part: tuple[int, int] | None = None,
    name: str = "",
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Does ``candidate`` compute the same function as ``reference``, and if not, from where?

    Args:
        reference: a model, an Adapter, a recorded trace or the path of one (see
            `crosscheck.adapt`). A recorded reference still forces the candidate; a sketch, or the
            path of one, forces nothing (`crosscheck.sketches`).
        candidate: the same; a sketch only where the reference is one, too. A recorded candidate
            can only be compared as it ran (`crosscheck.traces.offline`).
        inputs: {name: array or spec}, or one array or spec; see `crosscheck.inputs.parse_spec`.
            A function seed -> inputs makes other ones for ``seeds``. May be left out where a trace
            holds them; seed and mode are then the trace's, too.
        candidate_inputs: ``"channels_last"`` or ``"channels_first"``: the reference's, turned;
            {name: layout} for some of them; {name: array}, or a function from the reference's
            inputs to the candidate's. Default: the same, turned where the candidate declares a
            shape (a Keras `Input`, an ONNX graph) that they fit in one other layout only.
        weights: ``"copy"``: transfer the reference's parameters, then verify. ``"keep"``: they are
            equal already; verify where matched. Or a `WeightMap` for what is not found by itself.
            A recorded reference without parameters has none to copy: the candidate keeps its own,
            and so does an ONNX file that holds the reference's weights without their names.
        gradients: compare cotangents and parameter gradients as well.
        loss: whose gradient the backward pass begins with, instead of seeded cotangents, and which
            is compared itself: a text such as ``"cross_entropy(label_smoothing=0.1)"``, a dict of
            those by output, or `crosscheck.losses.Own`. docs/training.md lists them.
        targets: of the loss: an array, a spec, a dict of those, or a function of the seed; in the
            layout of the reference's outputs.
        optimizer: makes a step with the reference's gradients on both sides, and what it makes of
            the parameters is compared: ``"adamw(lr=1e-3, weight_decay=0.01)"``, an optimizer of
            either framework (or a function that makes it), an object with ``step(params, grads)``,
            or one for each side, ``(reference, candidate)``. docs/training.md has the details.
        steps: so many, each from the reference's weights; the later ones compare forward and
            backward as well.
        train: run in train mode (batch statistics) and compare buffers afterwards.
        sites: {reference site: candidate site}: overrides alignment.
        skip: sites of either side to leave out; listed in the report.
        device: ``"cpu"`` or ``"cuda"``, both sides.
        seed: of the inputs drawn from specs and of the cotangents.
        tolerance: an explicit `Tolerance` instead of the measured rounding floor.
        explain: name causes, confirmed by reproducing them (`crosscheck.explain`).
        zoom: look for the first operation that departs inside a layer that diverges (PyTorch).
        probes: further inputs to check on: ``"all"``, names (``small``, ``large``, ``padded``,
            ``odd``, ``repeated``, ``constant``, ``zeros``) or {name: inputs, None for a built-in}.
        seeds: check with so many seeds, from ``seed`` on.
        randomise: check with every parameter moved (norms' statistics, zero biases, ...); both
            sides get theirs back, the candidate what a copy would have left in it.
        blind_spots: where all agrees, say what could not have differed (`crosscheck.probes.blind`).
        effort: ``"quick"`` makes one free run of each side and judges by a-priori floors; whatever
            that does not clear is checked thoroughly. docs/effort.md says what it can miss.
        max_memory: bytes, or ``"2GiB"``: what the runs of the check may hold in memory; the rest
            lies in a scratch file in TMPDIR. docs/memory.md says what is counted.
        part: ``(2, 4)``: compare only the second quarter of the run, for other processes to compare
            the rest; `crosscheck.judging.parts.joined` puts the reports together. docs/scaling.md.
        name: of the check, for the report.
        progress: called with a line before each stage.

    Both models are left as they were found, except for the parameters copied into the candidate.

    Raises:
        InvalidArgument: an argument cannot be used as given.
        CannotCompare: both sides work, but cannot be put side by side.
        DeviceUnavailable: a side cannot run on ``device``.
        MissingFramework: what a side needs is not installed.
        SideFailed: a side raised; the original exception is chained.
    """
    request = Request(
        candidate_inputs=candidate_inputs,
        weights=weights,
        gradients=gradients,
        loss=loss,
        targets=targets,
        optimizer=optimizer,
        steps=steps,
        train=train,
        sites=sites or {},
        skip=tuple(skip) if not isinstance(skip, str) else skip,
        device=device,
        seed=seed,
        tolerance=tolerance,
        explain=explain,
        zoom=zoom,
        effort=effort,
        max_memory=max_memory,
        part=part,
        name=name,
        say=progress or (lambda line: None),
    )
    further = Probes.of(probes, seeds=seeds, randomise=randomise, blind_spots=blind_spots)
    with limited(max_memory), seldom():
        return _checked(reference, candidate, inputs, request, further)


def _checked(
    reference: Any, candidate: Any, inputs: Any, request: Request, further: Probes
) -> Report:
    """By what the two sides are: models, recorded runs or sketches."""
    sketch, other = sketched(reference), sketched(candidate)
    if sketch is not None:
        if further.several or further.randomise:
            raise InvalidArgument(
                "probes=, seeds= and randomise=: a sketch is of one run; leave them out"
            )
        if other is not None:
            return compare_sketches(sketch, other, request)
        return check_sketch(sketch, _adapted(candidate, "candidate"), inputs, request)
    if other is not None:
        raise TraceFormatError(
            "the candidate is a sketch, which holds no values of its run.\n"
            "  Fix: give it as the reference, and the model or trace as the candidate"
        )
    sides = _adapted(reference, "reference"), _adapted(candidate, "candidate")
    return check_all(sides, inputs, request, further)


def _adapted(model: Any, side: str) -> Adapter:
    try:
        return adapt(model)
    except InvalidArgument as error:
        raise InvalidArgument(f"the {side}: {error}") from error.__cause__
