"""Hostile sketch files: `TraceFormatError` and nothing else, in bounded memory."""

from __future__ import annotations

import json
import random
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crosscheck
from crosscheck import TraceFormatError
from crosscheck.sketches.file import INDEX, NUMBERS, load_sketch, sketched
from crosscheck.traces.file import TensorFile, write_tensors
from tests.traces.kit import Net, X

Tensors = dict[str, np.ndarray]
Strings = dict[str, str]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sketch") / "good.safetensors"
    crosscheck.record(Net(), X, parameters=True).save(path, sketch=30_000)
    return path


def parts(path: Path) -> tuple[Tensors, Strings]:
    file = TensorFile(path)
    return {name: np.array(file[name]) for name in file}, dict(file.metadata)


def indexed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Tensors, Strings], None]:
    """A change of the index."""

    def apply(tensors: Tensors, strings: Strings) -> None:
        index = json.loads(zlib.decompress(tensors[INDEX].tobytes()))
        change(index)
        tensors[INDEX] = np.frombuffer(zlib.compress(json.dumps(index).encode()), np.uint8)

    return apply


def tensor(name: str, value: np.ndarray) -> Callable[[Tensors, Strings], None]:
    return lambda tensors, strings: tensors.__setitem__(name, value)


def string(name: str, value: str) -> Callable[[Tensors, Strings], None]:
    return lambda tensors, strings: strings.__setitem__(name, value)


def raw(text: bytes) -> Callable[[Tensors, Strings], None]:
    return tensor(INDEX, np.frombuffer(text, np.uint8))


def not_finite(tensors: Tensors, strings: Strings) -> None:
    tensors[NUMBERS] = np.full_like(tensors[NUMBERS], np.nan)


def shorter(tensors: Tensors, strings: Strings) -> None:
    tensors[NUMBERS] = tensors[NUMBERS][:-1].copy()


def longer(tensors: Tensors, strings: Strings) -> None:
    tensors[NUMBERS] = np.append(tensors[NUMBERS], np.float32(0))


HUGE = 2**62
BAD: dict[str, tuple[Callable[[Tensors, Strings], None], str]] = {
    "a later version": (string("crosscheck.sketch", "2"), "version 2"),
    "a short sha": (string("inputs_sha256", "abc"), "inputs_sha256"),
    "a seed that is no number": (string("seed", "-1"), "seed"),
    "an index of floats": (tensor(INDEX, np.zeros(4, np.float32)), "row of bytes"),
    "an index that is not compressed": (raw(b"{}"), "no compressed JSON"),
    "an index cut short": (raw(zlib.compress(b"{}" * 50)[:-3]), "no compressed JSON"),
    "an index with more behind it": (raw(zlib.compress(b"{}") + b"x"), "no compressed JSON"),
    "an index that is a list": (raw(zlib.compress(b"[]")), "no JSON object"),
    "an empty index": (raw(zlib.compress(b"{}")), "not that of a sketch"),
    "a bomb": (raw(zlib.compress(b" " * 200_000_000)), "too long"),
    "nesting": (raw(zlib.compress(b"[" * 1_000_000)), "no compressed JSON"),
    "numbers that are not finite": (not_finite, "not finite"),
    "numbers cut short": (shorter, "cut short"),
    "numbers left over": (longer, "belong to nothing"),
    "integers for numbers": (tensor(NUMBERS, np.zeros(9, np.int32)), "its numbers"),
    "a stranger": (tensor("activation/a", np.zeros(2, np.float32)), "a tensor"),
    "rows of the universe": (indexed(lambda i: i["plan"].__setitem__(1, HUGE)), "out of range"),
    "rows that are no groups": (indexed(lambda i: i["plan"].__setitem__(1, 18)), "plan"),
    "no rows": (indexed(lambda i: i["plan"].__setitem__(1, 0)), "plan"),
    "a plan of strings": (indexed(lambda i: i.__setitem__("plan", "abcd")), "list is missing"),
    "an unknown kind": (indexed(lambda i: i["records"][0].__setitem__(0, "code")), "kind code"),
    "an unknown dtype": (indexed(lambda i: i["records"][0].__setitem__(3, "O")), "dtype O"),
    "a shape of the universe": (
        indexed(lambda i: i["records"][0].__setitem__(2, [2**40] * 3)),
        "a shape",
    ),
    "a negative shape": (indexed(lambda i: i["records"][0].__setitem__(2, [-1])), "out of range"),
    "forty axes": (indexed(lambda i: i["records"][0].__setitem__(2, [1] * 40)), "a shape"),
    "a record twice": (indexed(lambda i: i["records"].append(i["records"][0])), "twice"),
    "an order with a stranger": (indexed(lambda i: i["order"].append(["input", "z"])), "order"),
    "an order without one": (indexed(lambda i: i["order"].pop()), "order"),
    "an alias of nothing": (
        indexed(lambda i: i.__setitem__("same", [["input", "z", "activation", "nowhere"]])),
        "alias",
    ),
    "outputs that nobody saw": (indexed(lambda i: i.__setitem__("outputs", ["z"])), "outputs"),
    "no outputs": (indexed(lambda i: i.__setitem__("outputs", [])), "outputs"),
    "layers of numbers": (indexed(lambda i: i.__setitem__("layers", {"a": 1})), "layers"),
    "sources that are a list": (indexed(lambda i: i.__setitem__("sources", [])), "sources"),
    "a parameter without a name": (indexed(lambda i: i["parameters"][0].pop("name")), "name"),
    "a parameter of the universe": (
        indexed(lambda i: i["parameters"][0].__setitem__("shape", [HUGE])),
        "out of range",
    ),
    "a parameter that is a string": (indexed(lambda i: i["parameters"].append("w")), "index"),
    "unobservable of one": (indexed(lambda i: i.__setitem__("unobservable", [["a"]])), "index"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(good: Path, tmp_path: Path, name: str) -> None:
    change, message = BAD[name]
    tensors, strings = parts(good)
    change(tensors, strings)
    path = tmp_path / "bad.safetensors"
    write_tensors(path, tensors, strings)
    tracemalloc.start()
    try:
        with pytest.raises(TraceFormatError) as caught:
            crosscheck.check(path, Net())
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()
    assert message in str(caught.value), str(caught.value)
    assert "Fix:" in str(caught.value) and len(str(caught.value)) < 600


def test_flipped_bytes_are_an_error_or_a_sketch(good: Path, tmp_path: Path) -> None:
    whole = good.read_bytes()
    rng = random.Random(0)  # noqa: S311  (a choice, not a secret)
    path = tmp_path / "fuzzed.safetensors"
    errors = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 4])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])])
        try:
            load_sketch(path)
        except TraceFormatError:
            errors += 1
    assert errors > 100


def test_changed_words_of_the_index_are_an_error_or_a_sketch(good: Path, tmp_path: Path) -> None:
    tensors, strings = parts(good)
    text = zlib.decompress(tensors[INDEX].tobytes())
    rng = random.Random(1)  # noqa: S311  (a choice, not a secret)
    path = tmp_path / "fuzzed.safetensors"
    for _ in range(300):
        data = bytearray(text)
        for _ in range(2):
            data[rng.randrange(len(data))] = rng.choice(b'0123456789"[]{},-.eNa')
        tensors[INDEX] = np.frombuffer(zlib.compress(bytes(data)), np.uint8)
        write_tensors(path, tensors, strings)
        try:
            sketch = load_sketch(path)
        except TraceFormatError:
            continue
        try:
            crosscheck.check(sketch, Net())
        except crosscheck.CrosscheckError:
            continue


def test_the_file_is_a_safetensors_file_with_the_strings_of_a_trace(good: Path) -> None:
    from safetensors import safe_open

    with safe_open(good, "np") as file:
        strings = file.metadata()
        names = json.loads(strings["order"])
        assert set(names) == set(file.keys()) == {INDEX, NUMBERS, "model_input/x"}
    assert {json.loads(strings[name])["kind"] for name in names} == {"sketch", "model_input"}
    assert all({"kind", "axes", "dtype"} <= set(json.loads(strings[name])) for name in names)
    assert len(strings["inputs_sha256"]) == 64 and strings["crosscheck.version"]


def test_a_trace_is_no_sketch_and_a_sketch_no_trace(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.safetensors"
    crosscheck.record(Net(), X).save(path)
    assert sketched(path) is None and sketched(Net()) is None
    with pytest.raises(TraceFormatError, match="no sketch"):
        load_sketch(path)
    with pytest.raises(TraceFormatError, match="sketch"):
        crosscheck.load_trace(good)
    with pytest.raises(TraceFormatError, match="sketch"):
        crosscheck.check(Net(), good, X)
