"""Hostile files by the hundred: traces, sketches and reports are read or refused, in little memory.

Well-formed files are changed in their structure: values of the wrong type and size, names twice,
lists within lists, lengths that lie. The seeds are fixed, so a run repeats.
"""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crosscheck
from crosscheck import InvalidArgument, TraceFormatError
from crosscheck.report.load import loads
from crosscheck.sketches.file import INDEX, NUMBERS, load_sketch
from crosscheck.traces.file import TensorFile, write_tensors
from tests.report.samples import forward_divergence
from tests.traces.kit import Net, X

MOST = 4_000_000  # bytes, at any moment; the files have 3 to 20 thousand
FILES = 200  # of each kind


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


HOSTILE: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    7,
    2**31,
    2**40,
    2**63,
    10**300,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "F64",
    "BOOL",
    "activation/x",
    "\0",
    "\ud800",
    "x" * 3000,
    [],
    {},
    [0],
    [-1],
    [2**62, 2**62],
    [1] * 40,
    [0, 2**63],
    {"a": 1},
    nested(60),
    nested(500),
]


def copied(value: Any) -> Any:
    """A copy, of any depth that can be written."""
    return json.loads(json.dumps(value))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inside:
        yield (*path, key)
        if isinstance(item, (dict, list)) and len(path) < 5:
            yield from places(item, (*path, key))


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to three things in it replaced, left out, repeated or exchanged."""
    value = copied(value)
    for _ in range(rng.randint(1, 3)):
        found = list(places(value))
        if not found:
            break
        *path, last = rng.choice(found)
        inside = value
        for key in path:
            inside = inside[key]
        match rng.randint(0, 4):
            case 0 | 1:
                inside[last] = copied(rng.choice(HOSTILE))
            case 2:
                del inside[last]
            case 3 if isinstance(inside, list):
                inside.append(inside[last])
            case _:
                *path, other = rng.choice(found)
                inside[last] = copied(at(value, (*path, other)))
    return value


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        if isinstance(value, (dict, list)):
            value = value[key] if isinstance(value, dict) or key < len(value) else None
    return value


def text_of(value: Any, rng: random.Random) -> bytes:
    """JSON, sometimes damaged as bytes: cut short, a name twice, a byte changed."""
    text = json.dumps(value).encode()
    match rng.randint(0, 7):
        case 0:
            return text[: rng.randint(0, len(text))]
        case 1 if text[1:2] == b'"':
            return text[:-1] + b"," + text[1 : text.index(b":") + 1] + b"1}"
        case 2 if text:
            place = rng.randrange(len(text))
            byte = rng.choice(b'0123456789"[]{},:-eNI\\\xff')
            return text[:place] + bytes([byte]) + text[place + 1 :]
    return text


@contextmanager
def bounded() -> Iterator[None]:
    tracemalloc.start()  # here alone: it makes everything several times slower
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "trace.safetensors"
    crosscheck.record(Net(), X, parameters=True).save(path)
    return path


@pytest.fixture(scope="module")
def sketch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "sketch.safetensors"
    crosscheck.record(Net(), X, sketch=20_000).save(path)
    return path


def parts(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    file = TensorFile(path)
    return {name: np.array(file[name]) for name in file}, dict(file.metadata)


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def packed(header: bytes, rest: bytes, rng: random.Random | None = None) -> bytes:
    """The file, sometimes cut short or with a length that lies."""
    length = len(header)
    if rng is not None and rng.random() < 0.3:
        length = rng.choice([max(length - 1, 0), length + 8, 2**32, 2**63, 0])
    data = struct.pack("<Q", length) + header + rest
    if rng is not None and rng.random() < 0.2:
        return data[: rng.choice([len(data) - 1, 8, len(data) // 2])]
    return data


def read_whole(path: Path) -> None:
    trace = crosscheck.load_trace(path)
    for values in (trace.values, trace.inputs, trace.info.parameter_gradients, trace.info.buffers):
        for key in values:
            values[key].reshape(-1)[:1].sum()
    assert len(repr(trace)) < 20_000 and trace.has_cotangents in (True, False)


def test_headers_of_traces(trace_file: Path, tmp_path: Path) -> None:
    header, rest = split(trace_file)
    path = tmp_path / "f.safetensors"
    found: Counter[str] = Counter()
    for seed in range(FILES):
        rng = random.Random(seed)  # noqa: S311  (a choice, not a secret)
        path.write_bytes(packed(text_of(changed(header, rng), rng), rest, rng))
        found[judged(lambda: read_whole(path))] += 1
    assert found["refused"] > FILES / 2 and found["read"] > 1, found


def test_strings_of_traces(trace_file: Path, tmp_path: Path) -> None:
    """What is JSON inside a string: order, parameters, sources, the entries of records."""
    header, rest = split(trace_file)
    path = tmp_path / "f.safetensors"
    strings = header["__metadata__"]
    names = [key for key, text in strings.items() if text[:1] in "[{"]
    found: Counter[str] = Counter()
    for seed in range(FILES):
        rng = random.Random(seed)  # noqa: S311  (a choice, not a secret)
        name = rng.choice(names)
        text = text_of(changed(json.loads(strings[name]), rng), rng)
        said = strings | {name: text.decode("latin-1")}
        path.write_bytes(packed(json.dumps(header | {"__metadata__": said}).encode(), rest))
        found[judged(lambda: read_whole(path))] += 1
    assert min(found["refused"], found["read"]) > FILES / 10, found


def test_indices_and_numbers_of_sketches(sketch_file: Path, tmp_path: Path) -> None:
    tensors, strings = parts(sketch_file)
    index = json.loads(zlib.decompress(tensors[INDEX].tobytes()))
    path = tmp_path / "f.safetensors"
    found: Counter[str] = Counter()
    for seed in range(FILES):
        rng = random.Random(seed)  # noqa: S311  (a choice, not a secret)
        text = (
            text_of(changed(index, rng), rng) if rng.random() < 0.8 else json.dumps(index).encode()
        )
        numbers = tensors[NUMBERS].copy()
        if rng.random() < 0.3:
            numbers[rng.randrange(numbers.size)] = rng.choice([np.nan, np.inf, -1.0, 3e38, 0.0])
        packed_index = np.frombuffer(zlib.compress(text), np.uint8)
        write_tensors(path, {**tensors, INDEX: packed_index, NUMBERS: numbers}, strings)
        found[judged(lambda: load_sketch(path))] += 1
    assert found["refused"] > FILES / 3 and found["read"] > FILES / 10, found


def test_reports(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    forward_divergence().save_json(path)
    report = json.loads(path.read_text(encoding="utf-8"))
    found: Counter[str] = Counter()
    for seed in range(FILES // 2):
        rng = random.Random(seed)  # noqa: S311  (a choice, not a secret)
        text = text_of(changed(report, rng), rng).decode("latin-1")
        found[judged(lambda text=text: loads(text), InvalidArgument)] += 1
    assert found["refused"] > FILES / 3 and found["read"] > 1, found


def judged(read: Callable[[], Any], error: type[Exception] = TraceFormatError) -> str:
    """Read in bounded memory: what comes of it; any other exception fails the test."""
    with bounded():
        try:
            read()
        except error as refused:
            assert len(str(refused)) < 2000
            return "refused"
    return "read"


@pytest.mark.parametrize("depth", [100, 300, 450, 900, 990, 5000])
def test_nesting_of_any_depth_is_refused(
    trace_file: Path, sketch_file: Path, tmp_path: Path, depth: int
) -> None:
    header, rest = split(trace_file)
    deep = "[" * depth + "]" * depth
    path = tmp_path / "f.safetensors"
    name = next(name for name in header if name.startswith("activation/"))
    for key in ("dtype", "shape", "data_offsets"):
        text = json.dumps(header | {name: header[name] | {key: "DEEP"}}).replace('"DEEP"', deep)
        path.write_bytes(packed(text.encode(), rest))
        assert judged(lambda: read_whole(path)) == "refused"
    strings = header["__metadata__"]
    for key, wrapped in (("order", deep), ("layers", deep), (name, f'{{"axes": {deep}}}')):
        said = header | {"__metadata__": strings | {key: wrapped}}
        path.write_bytes(packed(json.dumps(said).encode(), rest))
        assert judged(lambda: read_whole(path)) == "refused"
    tensors, all_strings = parts(sketch_file)
    index = json.loads(zlib.decompress(tensors[INDEX].tobytes()))
    for key in ("plan", "records", "order", "parameters", "layers"):
        text = json.dumps(index | {key: "DEEP"}).replace('"DEEP"', deep)
        tensors[INDEX] = np.frombuffer(zlib.compress(text.encode()), np.uint8)
        write_tensors(path, tensors, all_strings)
        assert judged(lambda: load_sketch(path)) == "refused"
    with pytest.raises(InvalidArgument):
        loads(f'{{"schema": 1, "verdict": {deep}}}')


def test_parameters_that_are_only_claimed_take_no_memory(trace_file: Path, tmp_path: Path) -> None:
    """A description without a tensor may claim any shape; a check looks at no such number."""
    header, rest = split(trace_file)
    strings = header["__metadata__"]
    claimed = json.loads(strings["parameters"])
    claimed.append(
        {"name": "huge.W", "shape": [2**20, 2**20], "dtype": "float32", "role": "weight"}
    )
    header["__metadata__"] = strings | {"parameters": json.dumps(claimed)}
    path = tmp_path / "f.safetensors"
    path.write_bytes(packed(json.dumps(header).encode(), rest))
    crosscheck.check(trace_file, Net())  # what is imported and compiled is no part of it
    with bounded():
        try:
            report = crosscheck.check(path, Net())
        except crosscheck.CrosscheckError as error:
            assert "huge.W" in str(error)
        else:
            assert report.coverage.unmatched_reference_parameters == ("huge.W",)
