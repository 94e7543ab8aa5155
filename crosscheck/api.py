"""`check`: the stages in order.

adapt -> transfer -> feed -> run -> align -> compare -> judge -> locate -> explain -> report
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from crosscheck.adapters import adapt
from crosscheck.adapters.base import Adapter
from crosscheck.adapters.trace import TraceAdapter
from crosscheck.align import Aligner
from crosscheck.cotangents import CandidateCotangents, require_finite, require_outputs
from crosscheck.devices import as_they_ran, place
from crosscheck.errors import (
    InvalidArgument,
    SideFailed,
)
from crosscheck.explain.stage import explained
from crosscheck.inputs import make_inputs
from crosscheck.locate import Locator
from crosscheck.noise import Tolerance
from crosscheck.observers import Recorder
from crosscheck.pipeline import (
    Evidence,
    align,
    calls_of,
    compared_so_far,
    judge_all,
    oracle,
    transfer,
    verify_weights,
    with_vjps,
)
from crosscheck.reductions import Reductions
from crosscheck.results import PHASES, Coverage, Report, Side, SiteResult, worst
from crosscheck.run import Runner
from crosscheck.severed import Severed
from crosscheck.trace import Trace
from crosscheck.traces.stages import (
    compare_recorded,
    cotangents_of,
    fed,
    free_run,
    judge_of,
    known_weights,
    unrecorded,
    weights_of,
)
from crosscheck.trial import by_running
from crosscheck.weights import Match, WeightMap
from crosscheck.zoom import zoom as look_closer

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
    _check_arguments(weights, seed, sites, skip, tolerance)
    _check_flags(gradients=gradients, train=train, explain=explain, zoom=zoom)
    say = progress or (lambda line: None)
    sides = _adapted(reference, "reference"), _adapted(candidate, "candidate")
    place(sides, device)
    ours, seed, train = fed(sides, inputs, seed=seed, train=train)
    if isinstance(sides[1], TraceAdapter):
        return compare_recorded(
            sides,
            ours,
            candidate_inputs=candidate_inputs,
            zoom=zoom,
            weights=weights,
            gradients=gradients,
            train=train,
            sites=sites,
            skip=skip,
            seed=seed,
            tolerance=tolerance,
            name=name,
            progress=progress,
        )
    theirs = _candidate_inputs(candidate_inputs, ours, seed)
    backward = gradients and all(side.capabilities.cotangents for side in sides)

    say(f"reference ({sides[0].framework}): forward{' and backward' if backward else ''}")
    cotangents = cotangents_of(sides[0], seed, skip) if backward else None
    first = Runner("reference", sides[0], ours, cotangents, train, seed)
    free_reference = free_run(first)
    require_outputs(free_reference.outputs(), "reference")
    free_reference = with_vjps(first, free_reference)
    free_oracle = oracle(first)

    say("weights: " + ("verify" if weights == "keep" else "match, copy, verify"))
    second = Runner("candidate", sides[1], theirs, None, train, seed)
    weights, weight_notes = weights_of(sides[0], weights)
    trial = by_running(second, free_reference, sites or {}, skip)
    match = transfer(*sides, weights, trial, (free_reference.info.layers, calls_of(second)))
    weight_results = verify_weights(known_weights(match, sides[0]), sides[1])

    say(f"candidate ({sides[1].framework}): free run")
    if cotangents is not None:
        second.cotangents = CandidateCotangents(free_reference, cotangents.given, sites or {}, skip)
    free_candidate = _free_run(second, free_reference, free_oracle, match, sides[0])
    require_outputs(free_candidate.outputs(), "candidate")
    require_finite(free_reference, free_candidate)

    say("align, and force the candidate onto the reference's values")
    aligner = Aligner(
        free_reference, free_candidate, explicit=sites or {}, anchors=match.anchors(), skip=skip
    )
    alignment, forced = align(aligner, free_reference, free_candidate, second)

    say(f"compare and judge {len(alignment.pairs)} sites against the float64 oracle")
    evidence = Evidence(
        first,
        second,
        alignment,
        free_reference,
        free_candidate,
        forced,
        match,
        tolerance,
        seed,
        make_judge=judge_of(sides[0]),
    )
    judged = judge_all(evidence, free_oracle, backward=backward)

    severed = Severed(free_reference, forced, judged.results)
    results = sorted([*weight_results, *severed.kept], key=lambda r: PHASES.index(r.phase))
    divergences = Locator(alignment, free_reference, forced).locate(results)
    if explain:
        divergences = explained(divergences, results, evidence, judged.judge)
    unseen = _seen_only_free(results, divergences) if tolerance is None else []
    closer = look_closer(evidence, divergences, results) if zoom else []
    missing = [*judged.not_compared, *severed.not_compared, *_backward_missing(sides, gradients)]
    missing += unrecorded(alignment, free_reference) if backward else []
    return Report(
        verdict=worst([*(r.verdict for r in results), *(["suspect"] if unseen else [])]),  # type: ignore[list-item]
        seed=seed,
        reference=_side(sides[0]),
        candidate=_side(sides[1]),
        environment=_environment(sides, tolerance),
        coverage=Coverage(
            aligned=len(alignment.pairs),
            unmatched_reference=alignment.unmatched_reference,
            unmatched_candidate=alignment.unmatched_candidate,
            skipped=tuple(skip),
            parameters_matched=len(match.pairs),
            unmatched_reference_parameters=tuple(p.name for p in match.unmatched_reference),
            unmatched_candidate_parameters=tuple(p.name for p in match.unmatched_candidate),
            not_compared=tuple(missing),
        ),
        divergences=divergences,
        sites=tuple(results),
        notes=(*unseen, *closer, *weight_notes, *_adapter_notes(sides)),
        name=name,
    )


# -- arguments -------------------------------------------------------------------------------------


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


def _check_flags(**flags: Any) -> None:
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_)):
            raise InvalidArgument(f"{name}={value!r}: must be True or False")


def _check_arguments(weights: Any, seed: Any, sites: Any, skip: Any, tolerance: Any) -> None:
    if not isinstance(weights, Mapping) and weights not in ("copy", "keep"):
        raise InvalidArgument(
            f'weights={weights!r}: must be "copy", "keep" or a map '
            "{candidate parameter: reference parameter}"
        )
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InvalidArgument(f"seed={seed!r}: must be an integer ≥ 0")
    if sites is not None and not isinstance(sites, Mapping):
        raise InvalidArgument(f"sites={sites!r}: must be {{reference site: candidate site}}")
    if isinstance(skip, str):
        raise InvalidArgument(f"skip={skip!r}: must be a list of sites; write skip=[{skip!r}]")
    if tolerance is not None and not isinstance(tolerance, Tolerance):
        raise InvalidArgument(
            f"tolerance={tolerance!r}: must be crosscheck.Tolerance(rtol=..., atol=...)"
        )


def _candidate_inputs(given: Any, ours: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    if given is None:
        return ours
    if callable(given):
        made = given({name: array.copy() for name, array in ours.items()})
        if not isinstance(made, Mapping) and len(ours) == 1:
            made = {next(iter(ours)): made}
        given = made
    try:
        return make_inputs(given, seed=seed)
    except InvalidArgument as error:
        raise InvalidArgument(f"candidate_inputs: {error}") from error.__cause__


# -- between the stages ----------------------------------------------------------------------------


def _free_run(
    candidate: Runner, reference: Trace, free_oracle: Trace | None, match: Match, side: Adapter
) -> Trace:
    recorder = Recorder()
    try:
        return candidate.record(recorder=recorder, passive=True)
    except SideFailed as failure:
        judge = judge_of(side)(
            reference=reference,
            oracle=free_oracle,
            free_oracle=None,
            free_candidate=reference,
            reductions=Reductions(side.parameters(), reference, frozenset()),
        )
        so_far = compared_so_far(reference, recorder, match.anchors(), judge)
        raise failure.with_comparisons(so_far) from failure.__cause__


def _seen_only_free(results: Sequence[SiteResult], divergences: Sequence[Any]) -> list[str]:
    """An output that departs in the free run though nothing was introduced anywhere: say so."""
    if any(d.phase in ("weights", "forward") for d in divergences):
        return []
    last = [r for r in results if r.phase == "forward" and r.free_ratio is not None]
    far = [r for r in last[-1:] if r.free_ratio is not None and r.free_ratio > 32.0]
    return [
        f"`{r.candidate}` departs in the free run ({r.free_ratio:.3g} x its floor) though no "
        "stretch between aligned sites does: look for state that one call leaves for another"
        for r in far
    ]


def _backward_missing(sides: tuple[Adapter, Adapter], gradients: bool) -> list[str]:
    if not gradients:
        return ["backward: gradients=False"]
    return [
        f"backward: the {side} ({adapter.framework}) has no backward pass"
        for side, adapter in zip(("reference", "candidate"), sides, strict=True)
        if not adapter.capabilities.cotangents
    ]


def _adapter_notes(sides: tuple[Adapter, Adapter]) -> list[str]:
    """What an adapter has to say about its model (how an ONNX file was exported, ...)."""
    return [
        f"{side} ({adapter.framework}): {note}"
        for side, adapter in zip(("reference", "candidate"), sides, strict=True)
        for note in adapter.notes
    ]


def _side(adapter: Adapter) -> Side:
    return Side(adapter.framework, adapter.version, adapter.device)


def _environment(sides: tuple[Adapter, Adapter], tolerance: Tolerance | None) -> dict[str, Any]:
    from crosscheck import __version__

    return {
        "crosscheck": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": np.__version__,
        **{side.framework: side.version for side in sides},
        "float32_matmul": "full precision on both sides",
        "bit_generator": "Philox-4x64-10",
        **as_they_ran(sides),
        **({} if tolerance is None else {"tolerance": str(tolerance)}),
    }
