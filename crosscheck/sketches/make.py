"""A full trace -> a `Sketch` that fits into a given number of bytes."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.arrays import is_float, is_inexact
from crosscheck.compare import compare
from crosscheck.comparisons import Item
from crosscheck.errors import InvalidArgument
from crosscheck.judging.noise import Floor, floors, unit_roundoff
from crosscheck.judging.reductions import Reductions
from crosscheck.sketches.project import FACTS, Numbers, Plan, length_of, measure
from crosscheck.trace import RunInfo
from crosscheck.traces.judging import TraceJudge
from crosscheck.traces.recorded import RecordedTrace, RecordKey, parameter_entry

__all__ = ["DEFAULT_BYTES", "Record", "Sketch", "make_sketch", "packed_index", "parse_bytes"]

DEFAULT_BYTES = 300_000
MOST_ROWS, FEWEST_ROWS = 256, 16
LARGEST_INDEX = 4_000_000  # of JSON; parsed, it takes some thirty times that
_HEADER = 2_000  # the file's own header and strings, beside those of the inputs


@dataclass(frozen=True)
class Record:
    """One value of the run.

    Attributes:
        shape, dtype: of the value.
        numbers: what is kept of it.
        floor: the noise floor of the run in the 2-norm and in the maximum norm, absolute.
    """

    shape: tuple[int, ...]
    dtype: str
    numbers: Numbers
    floor: tuple[float, float]

    @property
    def size(self) -> int:
        """How many numbers the value holds."""
        return length_of(self.shape, self.dtype)


@dataclass(frozen=True, repr=False)
class Sketch:
    """A run, in so few numbers that it can be kept in a repository.

    Attributes:
        plan: how each value was sketched.
        records: (kind, name) -> what is kept, in execution order; ``gradient``, ``buffer`` and
            ``parameter`` are behind the values of the run.
        same: (kind, name) of an input -> the activation that is the very same object.
        info: the structure of the run; it holds no arrays.
        parameters: of the model, with placeholders for values.
        inputs: what was fed, where it is small; else empty, and `inputs_sha256` names it.
    """

    plan: Plan
    records: Mapping[RecordKey, Record]
    same: Mapping[RecordKey, RecordKey]
    info: RunInfo
    parameters: tuple[Parameter, ...]
    inputs: Mapping[str, np.ndarray]
    inputs_sha256: str
    framework: str
    version: str = ""
    device: str = "cpu"
    train: bool = False
    seed: int | None = None
    origin: str = ""
    order: tuple[RecordKey, ...] = field(default=())

    def __repr__(self) -> str:
        return (
            f"Sketch({self.framework}, {len(self.records)} values, {self.plan.rows} projections, "
            f"inputs_sha256={self.inputs_sha256[:12]}...)"
        )

    def record(self, key: RecordKey) -> Record:
        """What is kept of a value, or of the one that it is the same object as."""
        return self.records[self.same.get(key, key)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sketch to a file; equal sketches give equal bytes.

        Raises:
            InvalidArgument: no place for a file.
        """
        from crosscheck.sketches.file import write_sketch

        write_sketch(self, path)


def parse_bytes(text: str) -> int:
    """``300kB``, ``1.5MB`` or a plain number -> bytes.

    Raises:
        InvalidArgument: something else.
    """
    lower = text.strip().lower().removesuffix("b")
    units = {"k": 1_000, "m": 1_000_000}
    unit = units.get(lower[-1:], 1)
    try:
        number = float(lower[:-1] if unit > 1 else lower) * unit
        if not 1 <= number <= 1e9:
            raise ValueError
    except ValueError:
        raise InvalidArgument(
            f"--sketch {text!r}: write a size from 1 B to 1 GB, such as 300kB or 1MB"
        ) from None
    return int(number)


def make_sketch(trace: RecordedTrace, most: int = DEFAULT_BYTES) -> Sketch:
    """Sketch a recorded run into at most ``most`` bytes on disk.

    Every value has its share: with more room, each is projected onto more rows. Inputs are kept
    if they take no more than a quarter.

    Raises:
        InvalidArgument: too few bytes for sixteen projections of each value; says how many are
            needed.
    """
    if isinstance(most, bool) or not isinstance(most, (int, np.integer)) or most < 1:
        raise InvalidArgument(f"sketch={most!r}: give the largest size of the file in bytes")
    values = dict(_values(trace))
    same = _repeated(trace)
    for key in same:
        values.pop(key)
    inputs = dict(trace.inputs)
    if sum(v.nbytes for v in inputs.values()) > most // 4:
        inputs = {}
    wide = any(v.dtype.name == "float64" for v in values.values())
    plan = _plan(trace, values, same, inputs, most, wide)
    return Sketch(
        plan=plan,
        records=_records(trace, values, plan),
        same=same,
        info=_structure(trace.info),
        parameters=trace.parameters,
        inputs={name: np.array(value) for name, value in inputs.items()},
        inputs_sha256=trace.inputs_sha256,
        framework=trace.framework,
        version=trace.version,
        device=trace.device,
        train=trace.train,
        seed=trace.seed,
        order=tuple(_keys(trace)),
    )


def _keys(trace: RecordedTrace) -> list[RecordKey]:
    return [(str(kind), site) for kind, site in trace.values]


def _values(trace: RecordedTrace) -> Iterator[tuple[RecordKey, np.ndarray]]:
    for (kind, site), value in trace.values.items():
        yield (kind, site), value
    for name, value in trace.info.parameter_gradients.items():
        yield ("gradient", name), value
    for name, value in trace.info.buffers.items():
        yield ("buffer", name), value
    for p in trace.parameters:
        if p.name in trace.held:
            yield ("parameter", p.name), p.value


def _records(
    trace: RecordedTrace, values: Mapping[RecordKey, np.ndarray], plan: Plan
) -> dict[RecordKey, Record]:
    floors_of = _floors(trace)
    return {
        key: Record(
            tuple(value.shape),
            value.dtype.name,
            measure(value, plan),
            floors_of.get(key) or _cast_floor(value),
        )
        for key, value in values.items()
    }


def _structure(info: RunInfo) -> RunInfo:
    """What a run tells of the model, without the arrays."""
    return RunInfo(
        inputs=info.inputs,
        outputs=info.outputs,
        layers=dict(info.layers),
        sources=dict(info.sources),
        parents=dict(info.parents),
        unobservable=info.unobservable,
    )


def _repeated(trace: RecordedTrace) -> dict[RecordKey, RecordKey]:
    """Inputs that are the very object which a site produced, and hold its numbers still."""
    found: dict[RecordKey, RecordKey] = {}
    for slot, site in trace.info.sources.items():
        given = trace.values.get(("input", slot))
        made = trace.values.get(("activation", site))
        if given is None or made is None or given.dtype != made.dtype:
            continue
        if given.shape == made.shape and np.array_equal(given, made, equal_nan=is_float(made)):
            found["input", slot] = ("activation", site)
    return found


def _plan(
    trace: RecordedTrace,
    values: Mapping[RecordKey, np.ndarray],
    same: Mapping[RecordKey, RecordKey],
    inputs: Mapping[str, np.ndarray],
    most: int,
    wide: bool,
) -> Plan:
    """As many rows as fit."""
    described = [(*key, value.shape, value.dtype.name) for key, value in values.items()]
    text = packed_index(trace, Plan(0, 0, 0), described, same, _keys(trace))
    fixed = len(text) + 64 + _HEADER + sum(v.nbytes + 200 for v in inputs.values())
    sizes = [length_of(value.shape, value.dtype.name) for value in values.values()]
    seed = trace.seed or 0
    for rows in range(MOST_ROWS, FEWEST_ROWS - 1, -4):
        plan = Plan(seed, rows, rows // 4, wide)
        numbers = sum(plan.length(size) + len(FACTS) + 2 for size in sizes)
        needed = fixed + numbers * plan.dtype.itemsize
        if needed <= most:
            return plan
    raise InvalidArgument(
        f"sketch={most}: {len(sizes)} values in {most:,} bytes leave too little for each.\n"
        f"  Fix: give at least {needed:,} bytes"
    )


def packed_index(
    run: RecordedTrace | Sketch,
    plan: Plan,
    described: Iterable[tuple[str, str, tuple[int, ...], str]],
    same: Mapping[RecordKey, RecordKey],
    order: Iterable[RecordKey],
) -> bytes:
    """The names, shapes and structure of a run: JSON, compressed."""
    info = run.info
    found: dict[str, Any] = {
        "plan": [plan.seed, plan.rows, plan.sample, plan.wide],
        "records": [[kind, name, list(shape), dtype] for kind, name, shape, dtype in described],
        "same": [[*key, *source] for key, source in same.items()],
        "order": [list(key) for key in order],
        "inputs": list(info.inputs),
        "outputs": list(info.outputs),
        "layers": dict(info.layers),
        "sources": dict(info.sources),
        "parents": dict(info.parents),
        "unobservable": sorted(map(list, info.unobservable)),
        "parameters": [parameter_entry(p) for p in run.parameters],
    }
    text = json.dumps(found, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    if len(text) > LARGEST_INDEX:
        raise InvalidArgument(f"sketch: the names of {len(found['records'])} values are too long")
    return zlib.compress(text, 9)


def _floors(trace: RecordedTrace) -> dict[RecordKey, tuple[float, float]]:
    """(kind, name) -> the floor of each float value, as two recordings are judged by."""
    from crosscheck.traces.rounding import item_key, items_of

    judge = TraceJudge(
        reference=trace,
        oracle=None,
        free_oracle=None,
        free_candidate=trace,
        reductions=Reductions(trace.parameters, trace, frozenset(trace.activations())),
    )
    found = {}
    for item in items_of(trace):
        value = _of(item, trace)
        if is_inexact(value):
            found[item_key(item)] = floors(compare(value, value), judge.floor(item, value))
    return found


def _of(item: Item, trace: RecordedTrace) -> np.ndarray:
    if item.phase == "parameter_gradient":
        return trace.info.parameter_gradients[item.reference]
    if item.phase == "buffer":
        return trace.info.buffers[item.reference]
    return trace.values[item.reference_key]


def _cast_floor(value: np.ndarray) -> tuple[float, float]:
    """What a cast may change in a parameter; nothing may change an integer."""
    if not is_inexact(value):
        return 0.0, 0.0
    return floors(compare(value, value), Floor(unit=unit_roundoff(value.dtype)))
