"""Files that lie: each is refused with `TraceFormatError`, or read without harm."""

from __future__ import annotations

import json
import resource
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crosscheck
from crosscheck import TraceFormatError
from crosscheck.traces.file import TensorFile, write_tensors
from tests.traces.kit import Net, X

SHA = "0" * 64


def pack(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: Any = (2,), dtype: Any = "F32", offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def file(order: Any = ("a",), metadata: Any = None, data: bytes = b"\0" * 8, **tensors: Any) -> Any:
    strings = {"order": json.dumps(list(order)), "inputs_sha256": SHA, **(metadata or {})}
    return pack({"__metadata__": strings, **(tensors or {"a": tensor()})}, data)


def entry(value: Any) -> Any:
    return file(metadata={"a": json.dumps(value)})


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cut short"),
    "seven bytes": (b"\0" * 7, "cut short"),
    "a huge header": (pack({}, length=2**63), "cut short"),
    "a header of half the memory": (pack({}, length=2**35), "cut short"),
    "a header that ends early": (pack({"a": tensor()}, length=3), "JSON"),
    "text": (b"import os; os.abort() # and more", "cut short"),
    "a pickle": (b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix", "cut short"),
    "not JSON": (pack(b"{'a': 1}"), "JSON"),
    "not UTF-8": (pack(b'{"\xff": 1}'), "JSON"),
    "not an object": (pack([1, 2]), "object"),
    "nested beyond reason": (pack(b"[" * 200_000), "JSON"),
    "a number beyond reason": (pack(b'{"a":' + b"9" * 10_000 + b"}"), "JSON"),
    "half a surrogate": (pack(b'{"\\ud800": {}}'), "names"),
    "twice the same name": (
        pack(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":1}', b"\0" * 8),
        "`a` appears twice",
    ),
    "metadata that is a list": (pack({"__metadata__": [1]}), "object of strings"),
    "metadata that is a number": (pack({"__metadata__": {"order": 1}}), "object of strings"),
    "a tensor without a shape": (pack({"a": {"dtype": "F32"}}), "`a` is incomplete"),
    "a tensor that is a string": (pack({"a": "b"}), "`a` is incomplete"),
    "an unknown dtype": (file(a=tensor(dtype="F128")), "dtype F128"),
    "a dtype that is a list": (file(a=tensor(dtype=["F32"])), "dtype"),
    "a negative length": (file(a=tensor(shape=[-2])), "whole"),
    "a length that is no number": (file(a=tensor(shape=["2"])), "whole"),
    "a length that is true": (file(a=tensor(shape=[True, 2])), "whole"),
    "three offsets": (file(a=tensor(offsets=[0, 4, 8])), "whole"),
    "offsets backwards": (file(a=tensor(offsets=[8, 0])), "takes 8 bytes"),
    "offsets beyond the end": (file(a=tensor(shape=[4], offsets=[0, 16])), "takes 16 bytes"),
    "a shape of the universe": (file(a=tensor(shape=[2**62, 2**62])), "takes"),
    "an empty one of it": (
        file(a=tensor(shape=[0, 2**62, 2**62], offsets=[0, 0]), data=b""),
        "shape",
    ),
    "forty axes": (file(a=tensor(shape=[1] * 39 + [2])), "40 axes"),
    "overlapping": (file(a=tensor(), b=tensor(), order="ab"), "overlaps"),
    "a gap": (file(a=tensor(offsets=(4, 12)), data=b"\0" * 12), "gap"),
    "bytes that nobody owns": (file(data=b"\0" * 99), "belong to none"),
    "no order": (pack({"a": tensor()}, b"\0" * 8), "no `order`"),
    "order that is no JSON": (file(metadata={"order": "a, b"}), "`order` of its metadata"),
    "order that is an object": (file(metadata={"order": "{}"}), "list of names"),
    "order of numbers": (file(order=[1]), "list of names"),
    "order with a stranger": (file(order=["a", "b"]), "`b` but there is no such tensor"),
    "order with one twice": (file(order=["a", "a"]), "`a` twice"),
    "order without one": (file(order=[]), "leaves out `a`"),
    "two names for one value": (
        file(
            **{"a": tensor(), "activation/a": tensor(offsets=(8, 16))},
            order=["a", "activation/a"],
            data=b"\0" * 16,
        ),
        "both the activation of `a`",
    ),
    "no sha": (pack({"__metadata__": {"order": '["a"]'}, "a": tensor()}, b"\0" * 8), "inputs_sha"),
    "a short sha": (file(metadata={"inputs_sha256": "abc"}), "64 hexadecimal digits"),
    "a seed that is no number": (file(metadata={"seed": "-1"}), "`seed`"),
    "a later format": (file(metadata={"crosscheck.format": "2"}), "format 2"),
    "outputs that nobody saw": (file(metadata={"outputs": '["b"]'}), "`outputs`"),
    "layers that are a list": (file(metadata={"layers": '["b"]'}), "`layers`"),
    "sources of numbers": (file(metadata={"sources": '{"a": 1}'}), "`sources`"),
    "unobservable of one": (file(metadata={"unobservable": '[["a"]]'}), "`unobservable`"),
    "parameters that are strings": (file(metadata={"parameters": '["w"]'}), "`parameters`"),
    "a parameter of no shape": (file(metadata={"parameters": '[{"name": "w"}]'}), "`w`"),
    "a parameter of the universe": (
        file(metadata={"parameters": json.dumps([{"name": "w", "shape": [2**62] * 3}])}),
        "`w`",
    ),
    "an entry that is no object": (entry([1]), "entry of `a`"),
    "an unknown kind": (entry({"kind": "code"}), "of kind code"),
    "axes that do not fit": (entry({"axes": ["h", "w"]}), "axes of `a`"),
    "another dtype": (entry({"dtype": "int32"}), "stored as float32"),
    "a dtype that is code": (entry({"dtype": "__import__('os')"}), "dtype"),
    "a rounding that is NaN": (entry({"rounding": [float("nan"), 1.0]}), "rounding"),
    "a rounding of one": (entry({"rounding": [1.0]}), "rounding"),
    "a negative rounding": (entry({"rounding": [-1, 1]}), "rounding"),
    "a cotangent of another shape": (
        file(
            **{"a": tensor(), "cotangent/a": tensor(shape=[1], offsets=(8, 12))},
            order=["a", "cotangent/a"],
            data=bytes(12),
        ),
        "shape",
    ),
    "a cotangent of integers": (
        file(
            **{"a": tensor(), "cotangent/a": tensor(dtype="I32", offsets=(8, 16))},
            order=["a", "cotangent/a"],
            data=bytes(16),
        ),
        "gradients as floats",
    ),
    "no activation": (
        file(**{"parameter/a": tensor()}, order=["parameter/a"]),
        "holds no activation",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_lies_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    data, phrase = BAD[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(TraceFormatError) as caught:
        crosscheck.load_trace(path)
    text = str(caught.value)
    assert phrase in text and "bad.safetensors" in text and "\n  Fix: " in text
    assert len(text) < 1500 and text.isprintable() | ("\n" in text)


@pytest.mark.parametrize("name", ["nothing.safetensors", ".", "a\0b"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TraceFormatError, match="Fix: give the path"):
        crosscheck.load_trace(f"{tmp_path}/{name}")


def test_the_least_file_is_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "least.safetensors"
    path.write_bytes(
        file(order=["a", "out"], a=tensor(), out=tensor(offsets=(8, 16)), data=bytes(16))
    )
    trace = crosscheck.load_trace(path)
    assert list(trace.activations()) == ["a", "out"]
    assert trace.info.outputs == ("out",) and trace.info.inputs == ()
    assert crosscheck.check(trace, path).verdict == "agree"


def test_a_value_stored_wider_is_read_in_its_own_dtype(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(entry({"dtype": "bfloat16"}))
    assert crosscheck.load_trace(path).values["activation", "a"].dtype.name == "bfloat16"


def test_bytes_that_are_no_bool_are_read_as_true(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(file(a=tensor(shape=[8], dtype="BOOL"), data=bytes(range(8))))
    value = crosscheck.load_trace(path).values["activation", "a"]
    assert value.tobytes() == b"\0" + b"\1" * 7


def mutants(valid: bytes, count: int) -> Any:
    """Seeded damage: bytes flipped, cut, doubled, digits replaced; mostly in the header."""
    rng = np.random.default_rng(0)
    (header,) = struct.unpack("<Q", valid[:8])
    for _ in range(count):
        data = bytearray(valid)
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(0, 8 + header if rng.random() < 0.9 else len(data)))
            place = min(place, len(data) - 1)
            match int(rng.integers(0, 6)):
                case 0:
                    data[place] = int(rng.integers(0, 256))
                case 1:
                    del data[place:]
                case 2:
                    del data[place : place + int(rng.integers(1, 9))]
                case 3:
                    data[place:place] = data[place : place + int(rng.integers(1, 30))]
                case 4:
                    data[place : place + 1] = bytes(rng.choice(list(b'0123456789[]{}",:-'), 2))
                case 5:
                    data[0] = int(rng.integers(0, 256))
            if not data:
                break
        yield bytes(data)


def test_damaged_files_raise_one_error_and_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    crosscheck.record(Net(), X, parameters=True).save(path)
    valid = path.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for data in mutants(valid, 600):
        path.write_bytes(data)
        try:
            trace = crosscheck.load_trace(path)
            for key in trace.values:
                trace.values[key].sum()
        except TraceFormatError:
            refused += 1
    assert 300 < refused < 600
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def rewritten(path: Path, rng: np.random.Generator) -> None:
    """A well-formed trace that is not what it says: records gone, swapped, reshaped, renamed."""
    file = TensorFile(path)
    tensors, strings = {n: np.array(v) for n, v in file.items()}, dict(file.metadata)
    names = [n for n in json.loads(strings["order"]) if n in tensors]
    for _ in range(int(rng.integers(1, 4))):
        one, other = (str(n) for n in rng.choice(names, 2, replace=False))
        match int(rng.integers(0, 7)):
            case 0:
                names.remove(one)
                del tensors[one]
            case 1:
                tensors[one], tensors[other] = tensors[other], tensors[one]
            case 2:
                tensors[one] = tensors[one].reshape(-1)[: int(rng.integers(0, 5))]
            case 3:
                tensors[one] = tensors[one].astype(rng.choice(["i4", "f8", "f2", "?"]))
                strings.pop(one, None)
            case 4:
                rng.shuffle(names)
            case 5:
                keys = ("layers", "sources", "parents", "parameters", "inputs", "outputs")
                strings.pop(str(rng.choice(keys)), None)
            case 6:
                key = str(rng.choice(["sources", "parents"]))
                strings[key] = json.dumps({"act1": "act2", "act2": "act1", "second": "second"})
    order = json.dumps(names)
    write_tensors(path, tensors, {**strings, "order": order})


def test_what_loads_is_compared_or_refused_in_one_message(tmp_path: Path) -> None:
    """Whatever a well-formed file claims, a check ends in a report or in one of our errors."""
    path = tmp_path / "t.safetensors"
    good = crosscheck.record(Net(), X, parameters=True)
    rng = np.random.default_rng(1)
    verdicts: Counter[str] = Counter()
    for number in range(150):
        good.save(path)
        rewritten(path, rng)
        try:
            sides = (good, path) if number % 2 else (path, Net(seed=0))
            verdicts[crosscheck.check(*sides).verdict] += 1
        except crosscheck.CrosscheckError:
            verdicts["refused"] += 1
    assert min(verdicts[v] for v in ("agree", "diverge", "refused")) > 5, verdicts
