"""`record`: run one model once, and keep all that a later comparison can use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from crosscheck.adapters import adapt
from crosscheck.adapters.base import Adapter, Parameter
from crosscheck.arrays import holds_not_finite
from crosscheck.cotangents import ReferenceCotangents, require_outputs
from crosscheck.devices import DEVICES
from crosscheck.errors import InvalidArgument
from crosscheck.inputs import make_inputs
from crosscheck.pipeline import with_vjps
from crosscheck.run import Runner, SideName
from crosscheck.trace import Trace
from crosscheck.traces.feed import inputs_sha256
from crosscheck.traces.recorded import RecordedTrace, RecordKey, Rounding
from crosscheck.traces.rounding import accumulated, local

if TYPE_CHECKING:
    from crosscheck.sketches.make import Sketch

__all__ = ["record", "run_freely"]

Roundings = dict[RecordKey, Rounding]
"""How far rounding took every value."""


@overload
def record(  # type: ignore[overload-overlap]
    model: Any, inputs: Any, *, sketch: Literal[False] = False, **options: Any
) -> RecordedTrace: ...


@overload
def record(model: Any, inputs: Any, *, sketch: int, **options: Any) -> Sketch: ...


def record(  # type: ignore[misc]  # the overloads spell out what decides the result
    model: Any,
    inputs: Any,
    *,
    gradients: bool = True,
    train: bool = False,
    parameters: bool = False,
    sketch: int = False,
    local_rounding: bool = True,
    seed: int = 0,
    device: str | None = None,
    side: SideName = "reference",
    progress: Callable[[str], None] | None = None,
) -> RecordedTrace | Sketch:
    """Run ``model`` once, forward and backward, and return everything that was seen.

    The run is bit for bit the bare model's. A second one adds each layer's own VJP. A few more, in
    float64 where the model can, measure how far rounding takes every value, so that a later
    comparison has a noise floor to judge by (`crosscheck.traces.rounding`).

    Args:
        model: a model or an Adapter, as for `crosscheck.check`.
        inputs: the same; specs are drawn from the seed.
        gradients: run the backward pass, with seeded cotangents on every float output.
        train: run in train mode and keep the buffers it leaves behind.
        parameters: keep the parameters' values, so that a candidate can be given them.
        sketch: give a sketch instead, of at most so many bytes on disk (True: 300,000): a few
            numbers of each value, parameters included (`crosscheck.sketches`).
        local_rounding: measure what each layer adds by itself, too (five more runs): the floor of
            a candidate that will be forced onto the trace.
        seed: of inputs, cotangents, and the framework's generators.
        device: ``"cpu"`` or ``"cuda"``; None: where the adapter runs already.
        side: what to call the model in errors.
        progress: called with a line before each run.

    Raises:
        InvalidArgument: not a model, or not inputs.
        DeviceUnavailable: the model cannot run there; says why.
        CannotCompare: the model returned no array, or none to send a cotangent into.
        SideFailed: the model raised.
    """
    say = progress or (lambda line: None)
    adapter = _live(model, device)
    fed = make_inputs(inputs, seed=seed)
    backward = gradients and adapter.capabilities.cotangents
    cotangents = ReferenceCotangents(seed) if backward else None
    runner = Runner(side, adapter, fed, cotangents, train, seed)
    say(f"{adapter.framework}: forward{' and backward' if backward else ''}")
    free = run_freely(runner)
    rounding, own = _rounding(runner, free, say, of_layers=local_rounding and not sketch)
    held = parameters or bool(sketch)
    own_parameters = adapter.parameters()
    specs = tuple(_apart(p, keep=held) for p in own_parameters)
    trace = RecordedTrace(
        values=free.values,
        info=free.info,
        framework=free.framework,
        inputs=fed,
        inputs_sha256=inputs_sha256(fed),
        parameters=specs,
        held=frozenset(p.name for p in specs) if held else frozenset(),
        not_finite=tuple(p.name for p in own_parameters if holds_not_finite(p.value)),
        rounding=rounding,
        local=own,
        seed=seed,
        train=train,
        version=adapter.version,
        device=adapter.device,
    )
    return _sketched(trace, sketch) if sketch else trace


def run_freely(runner: Runner) -> Trace:
    """The run as the model makes it by itself, with each layer's own VJP beside it."""
    free = runner.record(passive=True)
    require_outputs(free.outputs(), runner.side)
    return with_vjps(runner, free)


def _live(model: Any, device: str | None) -> Adapter:
    """The adapter of a model that can be run, on the device that was asked for."""
    adapter = adapt(model)
    if not adapter.capabilities.forcing:
        raise InvalidArgument("record: this is a recorded run already; give the model itself")
    if device is not None:
        if device not in DEVICES:
            raise InvalidArgument(f'device={device!r}: must be "cpu" or "cuda"')
        adapter.use(device)
    return adapter


def _rounding(
    runner: Runner, free: Trace, say: Callable[[str], None], *, of_layers: bool
) -> tuple[Roundings, Roundings]:
    """How far rounding takes every value of the run; and, where asked for, what each layer adds."""
    framework = runner.adapter.framework
    say(f"{framework}: the same in float64, for the rounding of every value")
    whole = accumulated(runner, free)
    if not whole or not of_layers:
        return whole, {}
    say(f"{framework}: and forced, for the rounding of every layer")
    return whole, local(runner, free, seed=runner.seed)


def _sketched(trace: RecordedTrace, most: int) -> Sketch:
    from crosscheck.sketches.make import DEFAULT_BYTES

    return trace.sketch(DEFAULT_BYTES if most is True else most)


def _apart(parameter: Parameter, *, keep: bool) -> Parameter:
    """A parameter that no longer shares memory with the model: a copy, or a placeholder."""
    value = parameter.value
    placeholder = np.broadcast_to(np.zeros((), value.dtype), value.shape)
    return replace(parameter, value=np.array(value) if keep else placeholder)
