"""A sketch as a safetensors file; reading one executes nothing and takes bounded memory.

Two tensors, both of kind ``sketch``: ``sketch/index`` (bytes: the run's names, shapes and
structure, JSON compressed by zlib) and ``sketch/numbers`` (all numbers, one value behind the
other), and ``model_input/NAME`` where the inputs are small.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.observers import Key
from crosscheck.sketches.make import (
    LARGEST_INDEX,
    MOST_ROWS,
    Record,
    Sketch,
    packed_index,
)
from crosscheck.sketches.project import FACTS, GROUPS, Numbers, Plan, length_of
from crosscheck.trace import RunInfo
from crosscheck.traces.file import DTYPES, MOST_AXES, TensorFile, named_dtype, shown, write_tensors
from crosscheck.traces.recorded import RecordKey
from crosscheck.traces.records import (
    KINDS,
    OBSERVED,
    SKETCH_MARK,
    metadata_of,
    record_name,
    split_name,
)

__all__ = ["KIND", "load_sketch", "read_sketch", "sketched", "write_sketch"]

KIND = "sketch"
INDEX, NUMBERS = "sketch/index", "sketch/numbers"
VERSION = "1"
_DTYPE_NAMES = {dtype.name for dtype in DTYPES.values()}
_FIX = "make it again with `crosscheck record --sketch`"


# -- writing ---------------------------------------------------------------------------------------


def write_sketch(sketch: Sketch, path: str | os.PathLike[str]) -> None:
    """Write a sketch, whole or not at all.

    Raises:
        InvalidArgument: no place for a file.
    """
    described = [(*key, r.shape, r.dtype) for key, r in sketch.records.items()]
    index = packed_index(sketch, sketch.plan, described, sketch.same, sketch.order)
    rows = [np.zeros(0)]
    for record in sketch.records.values():
        n = record.numbers
        rows += [n.facts, np.asarray(record.floor), n.projected, n.sampled]
    most = float(np.finfo(sketch.plan.dtype).max)
    numbers = np.clip(np.concatenate(rows), -most, most).astype(sketch.plan.dtype)
    tensors = {INDEX: np.frombuffer(index, np.uint8), NUMBERS: numbers}
    tensors |= {record_name("model_input", name): v for name, v in sketch.inputs.items()}
    extra = {
        SKETCH_MARK: VERSION,
        "framework": sketch.framework,
        "framework_version": sketch.version,
        "device": sketch.device,
        "mode": "train" if sketch.train else "eval",
    }
    if sketch.seed is not None:
        extra["seed"] = str(sketch.seed)
    details = {INDEX: {"kind": KIND}, NUMBERS: {"kind": KIND}}
    strings = metadata_of(tensors, inputs_sha256=sketch.inputs_sha256, extra=extra, details=details)
    write_tensors(path, tensors, strings)


# -- reading ---------------------------------------------------------------------------------------


def sketched(model: Any) -> Sketch | None:
    """The sketch that a side of a check is, or that its path names; None for anything else.

    Raises:
        TraceFormatError: a path of a trace file that cannot be read.
    """
    if isinstance(model, Sketch):
        return model
    if not isinstance(model, (str, os.PathLike)):
        return None
    if not os.fspath(model).lower().endswith(".safetensors"):
        return None
    file = TensorFile(model)
    return read_sketch(file) if SKETCH_MARK in file.metadata else None


def load_sketch(path: str | os.PathLike[str]) -> Sketch:
    """Read a sketch.

    Raises:
        TraceFormatError: not a sketch; says what is wrong with it.
    """
    return read_sketch(TensorFile(path))


def read_sketch(file: TensorFile) -> Sketch:
    """The sketch in an open file.

    Raises:
        TraceFormatError: it holds none, or contradicts itself.
    """
    version = file.metadata.get(SKETCH_MARK)
    if version != VERSION:
        said = "no sketch" if version is None else f"a sketch of version {shown(version)}"
        raise file.wrong(f"{said}; this version reads {VERSION}", _FIX)
    index = _index(file)
    try:
        return _sketch(file, index)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
        raise file.wrong(f"its index is not that of a sketch: {shown(error)}", _FIX) from None


def _index(file: TensorFile) -> dict[str, Any]:
    if INDEX not in file or NUMBERS not in file:
        raise file.wrong(f"it holds no `{INDEX}` or no `{NUMBERS}`", _FIX)
    if file.dtype(INDEX) != np.uint8 or len(file.shape(INDEX)) != 1:
        raise file.wrong(f"`{INDEX}` is not a row of bytes", _FIX)
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(file[INDEX].tobytes(), LARGEST_INDEX)
        if not reader.eof or reader.unused_data:
            raise ValueError("too long, or cut short")
        found = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise file.wrong(f"`{INDEX}` is no compressed JSON: {shown(error)}", _FIX) from None
    if not isinstance(found, dict):
        raise file.wrong(f"`{INDEX}` is no JSON object", _FIX)
    return found


def _sketch(file: TensorFile, index: dict[str, Any]) -> Sketch:
    plan = _plan(index["plan"])
    records = _records(file, index["records"], plan)
    same = {_key(row[:2]): _key(row[2:]) for row in _list(index["same"])}
    for key, source in same.items():
        _require(key not in records and source in records, f"an alias of {shown(str(source))}")
    order = tuple(_key(row) for row in _list(index["order"]))
    seen = {key for key in records if key[0] in OBSERVED} | set(same)
    _require(len(set(order)) == len(order) and set(order) == seen, "its order is not complete")
    sites = {name for kind, name in order if kind == "activation"}
    _require(bool(sites), "it has no activation")
    inputs = {}
    for tensor in file:
        kind, name = split_name(tensor)
        if tensor not in (INDEX, NUMBERS):
            _require(kind == "model_input", f"a tensor `{shown(tensor)}`")
            inputs[name] = np.array(file[tensor])
    strings = file.metadata
    sha, seed = strings.get("inputs_sha256", ""), strings.get("seed", "")
    _require(re.fullmatch(r"[0-9a-f]{64}", sha) is not None, "its inputs_sha256")
    _require(re.fullmatch(r"[0-9]{0,30}", seed) is not None, "its seed")
    return Sketch(
        plan=plan,
        records=records,
        same=same,
        info=_info(index, sites),
        parameters=tuple(_parameter(spec) for spec in _list(index["parameters"])),
        inputs=inputs,
        inputs_sha256=sha,
        framework=strings.get("framework", "trace"),
        version=strings.get("framework_version", ""),
        device=strings.get("device", "cpu"),
        train=strings.get("mode", "eval") == "train",
        seed=int(seed) if seed else None,
        origin=file.path,
        order=order,
    )


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _list(value: Any) -> list[Any]:
    _require(isinstance(value, list), "a list is missing")
    return cast("list[Any]", value)


def _text(value: Any) -> str:
    _require(isinstance(value, str), "a name is no string")
    return cast(str, value)


def _count(value: Any, most: int) -> int:
    _require(type(value) is int and 0 <= value <= most, "a number is out of range")
    return cast(int, value)


def _key(row: Any) -> RecordKey:
    kind, name = _list(row)
    _require(_text(kind) in KINDS, f"the kind {shown(kind)}")
    return kind, _text(name)


def _plan(row: Any) -> Plan:
    seed, rows, sample, wide = _list(row)
    _require(type(wide) is bool, "its plan")
    plan = Plan(_count(seed, 10**30), _count(rows, MOST_ROWS), _count(sample, MOST_ROWS), wide)
    _require(rows >= GROUPS and rows % GROUPS == 0, "its plan")
    return plan


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(_count(n, 2**40) for n in _list(value))
    _require(len(shape) <= MOST_AXES and math.prod(shape) < 2**48, "a shape")
    return shape


def _records(file: TensorFile, rows: Any, plan: Plan) -> dict[RecordKey, Record]:
    _require(file.dtype(NUMBERS) == plan.dtype and len(file.shape(NUMBERS)) == 1, "its numbers")
    numbers = np.asarray(file[NUMBERS]).astype(np.float64)
    _require(bool(np.isfinite(numbers).all()), "its numbers are not finite")
    found: dict[RecordKey, Record] = {}
    begin, facts = 0, len(FACTS)
    for kind, name, dims, dtype in map(_list, _list(rows)):
        key, shape = _key([kind, name]), _shape(dims)
        _require(_text(dtype) in _DTYPE_NAMES, f"the dtype {shown(dtype)}")
        size = length_of(shape, dtype)
        row = numbers[begin : begin + facts + 2 + plan.length(size)]
        begin += facts + 2 + plan.length(size)
        _require(begin <= numbers.size and key not in found, f"`{shown(name)}` twice or cut short")
        _require(bool((np.delete(row[: facts + 2], 2) >= 0).all()), "a negative norm")
        values = row[facts + 2 :]
        cut = min(size, plan.rows)
        floor = float(row[facts]), float(row[facts + 1])
        found[key] = Record(shape, dtype, Numbers(row[:facts], values[:cut], values[cut:]), floor)
    _require(begin == numbers.size, "numbers that belong to nothing")
    return found


def _info(index: Mapping[str, Any], sites: set[str]) -> RunInfo:
    inputs, outputs = (tuple(map(_text, _list(index[key]))) for key in ("inputs", "outputs"))
    _require(set(inputs) | set(outputs) <= sites and bool(outputs), "inputs or outputs")
    layers, sources, parents = (_table(index, key) for key in ("layers", "sources", "parents"))
    hidden = frozenset(cast(Key, _key(row)) for row in _list(index["unobservable"]))
    return RunInfo(inputs, outputs, layers, sources, parents, unobservable=hidden)


def _table(index: Mapping[str, Any], key: str) -> dict[str, str]:
    table = index[key]
    _require(isinstance(table, dict) and all(map(_is_text, table.values())), key)
    return cast("dict[str, str]", table)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _parameter(spec: Any) -> Parameter:
    shape, dtype = _shape(spec["shape"]), _text(spec["dtype"])
    _require(dtype in _DTYPE_NAMES, f"the dtype {shown(dtype)}")
    axes = None if spec["axes"] is None else tuple(map(_text, _list(spec["axes"])))
    _require(axes is None or len(axes) == len(shape), "the axes of a parameter")
    return Parameter(
        name=_text(spec["name"]),
        value=np.broadcast_to(np.zeros((), named_dtype(dtype)), shape),
        layer=_text(spec["layer"]),
        role=_text(spec["role"]),
        kind=_text(spec["layer_kind"]),
        axes=axes,
        trainable=spec["trainable"] is True,
        buffer=spec["buffer"] is True,
        named=_text(spec.get("named", "")),
    )
