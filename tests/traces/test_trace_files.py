"""The file: what is written is read back, by us and by the safetensors library."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as library
from safetensors import safe_open

import crosscheck
from crosscheck import InvalidArgument, RecordedTrace
from crosscheck.traces.feed import inputs_sha256
from crosscheck.traces.file import DTYPES, TensorFile, write_tensors
from tests.traces.kit import Net, X

ROOT = Path(crosscheck.__file__).parent.parent


@pytest.mark.parametrize("tag", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (2, 3, 5)], ids=str)
def test_every_dtype_and_shape_comes_back(tmp_path: Path, tag: str, shape: tuple[int, ...]) -> None:
    bits = np.random.default_rng(0).integers(0, 256, (*shape, DTYPES[tag].itemsize), np.uint8)
    value = bits.view(DTYPES[tag]).reshape(shape) if bits.size else np.zeros(shape, DTYPES[tag])
    if tag == "BOOL":
        value = (bits > 127).reshape(shape)
    write_tensors(tmp_path / "t", {"odd": np.ones(3, np.int8), "value": value}, {"key": "é"})
    file = TensorFile(tmp_path / "t")
    assert file.metadata == {"key": "é"}
    again = file["value"]
    assert (again.dtype, again.shape) == (value.dtype, value.shape)
    assert again.tobytes() == value.tobytes()  # NaNs included


def test_views_that_are_not_contiguous_keep_their_elements(tmp_path: Path) -> None:
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    views = {"t": base.transpose(2, 0, 1), "s": base[:, ::2, ::-1], "f": np.asfortranarray(base[0])}
    write_tensors(tmp_path / "t", views, {})
    for name, value in views.items():
        np.testing.assert_array_equal(TensorFile(tmp_path / "t")[name], value)
        np.testing.assert_array_equal(library.load_file(tmp_path / "t")[name], value)


def test_the_library_reads_ours_and_we_read_the_librarys(tmp_path: Path) -> None:
    tensors = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True, False]), "c": np.int8(3)}
    tensors = {name: np.asarray(value) for name, value in tensors.items()}
    write_tensors(tmp_path / "ours", tensors, {"k": "v"})
    with safe_open(tmp_path / "ours", "np") as file:
        assert file.metadata() == {"k": "v"}
        for name, value in tensors.items():
            np.testing.assert_array_equal(file.get_tensor(name), value)
    library.save_file(tensors, tmp_path / "theirs", {"k": "v"})
    theirs = TensorFile(tmp_path / "theirs")
    assert theirs.metadata == {"k": "v"} and set(theirs) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(theirs[name], value)


@pytest.mark.parametrize("dtype", [np.complex128, ml_dtypes.int4, object, "U3", "datetime64[s]"])
def test_a_dtype_that_no_file_can_hold_is_refused_by_name(tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(InvalidArgument, match="`x`.*cannot hold"):
        write_tensors(tmp_path / "t", {"x": np.zeros(2, dtype)}, {})
    assert os.listdir(tmp_path) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"x": np.zeros(2)}, {})
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InvalidArgument, match="No space left"):
        write_tensors(path, {"x": np.ones(2)}, {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("place", ["", ".", "no\0name"])
def test_what_is_no_file_name_is_refused(place: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot write"):
        write_tensors(place, {}, {})


@pytest.fixture
def trace() -> RecordedTrace:
    return crosscheck.record(Net(), X, parameters=True, seed=3)


def same(a: RecordedTrace, b: RecordedTrace) -> None:
    assert list(a.values) == list(b.values)
    groups = [(a.values, b.values), (a.inputs, b.inputs), (a.info.buffers, b.info.buffers)]
    groups.append((a.info.parameter_gradients, b.info.parameter_gradients))
    for ours, theirs in groups:
        assert set(ours) == set(theirs)
        for key in ours:
            assert ours[key].dtype == theirs[key].dtype
            np.testing.assert_array_equal(ours[key], theirs[key])
    for name in ("inputs", "outputs", "layers", "sources", "parents", "unobservable"):
        assert getattr(a.info, name) == getattr(b.info, name), name
    for name in ("framework", "inputs_sha256", "held", "seed", "train", "version", "device"):
        assert getattr(a, name) == getattr(b, name), name
    assert a.rounding == b.rounding and a.local == b.local
    assert [(p.name, p.layer, p.role, p.kind, p.axes) for p in a.parameters] == [
        (p.name, p.layer, p.role, p.kind, p.axes) for p in b.parameters
    ]
    for p, q in zip(a.parameters, b.parameters, strict=True):
        np.testing.assert_array_equal(p.value, q.value)


def test_a_trace_comes_back_as_it_was(trace: RecordedTrace, tmp_path: Path) -> None:
    trace.save(tmp_path / "t.safetensors")
    again = crosscheck.load_trace(tmp_path / "t.safetensors")
    same(trace, again)
    assert len(trace.rounding) == len(trace.local) > 20 and trace.seed == 3 and len(trace.held) == 6
    again.save(tmp_path / "u.safetensors")
    assert (tmp_path / "t.safetensors").read_bytes() == (tmp_path / "u.safetensors").read_bytes()


def test_a_trace_can_be_written_over_the_file_it_is_read_from(
    trace: RecordedTrace, tmp_path: Path
) -> None:
    trace.save(tmp_path / "t")
    again = crosscheck.load_trace(tmp_path / "t")
    dataclasses.replace(again, seed=9).save(tmp_path / "t")
    same(trace, again)
    assert crosscheck.load_trace(tmp_path / "t").seed == 9
    assert len(repr(again)) < 200 and "7 sites" in repr(again)


@pytest.mark.parametrize("name", ["record", "load_trace", "save_inputs", "RecordedTrace", "check"])
def test_each_name_can_be_imported_first(name: str) -> None:
    code = f"import crosscheck; crosscheck.{name}; import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


def test_equal_runs_give_equal_bytes(trace: RecordedTrace, tmp_path: Path) -> None:
    trace.save(tmp_path / "a")
    crosscheck.record(Net(), X, parameters=True, seed=3).save(tmp_path / "b")
    crosscheck.record(Net(), X, parameters=True, seed=4).save(tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_the_contract_of_the_metadata(trace: RecordedTrace, tmp_path: Path) -> None:
    trace.save(tmp_path / "t")
    with safe_open(tmp_path / "t", "np") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert metadata["crosscheck.version"] == crosscheck.__version__
    assert metadata["inputs_sha256"] == inputs_sha256(trace.inputs)
    order = json.loads(metadata["order"])
    assert set(order) == names and len(order) == len(names)
    for name in names:
        entry = json.loads(metadata[name])
        assert entry["kind"] == name.partition("/")[0]
        assert {"axes", "dtype"} <= set(entry)
    assert json.loads(metadata["gradient/first.W"])["axes"] == ["in", "out"]
    assert {"activation/first", "input/first", "cotangent/first", "input_cotangent/first"} <= names
    assert {"model_input/x", "gradient/first.W", "parameter/first.W"} <= names


def test_a_trace_does_not_share_memory_with_the_model() -> None:
    net = Net()
    trace = crosscheck.record(net, X, parameters=True)
    net.first.W[:] = 7
    weight = next(p.value for p in trace.parameters if p.name == "first.W")
    assert not (weight == 7).any()


def test_reading_loads_no_tensor_before_it_is_asked_for(tmp_path: Path) -> None:
    values = {f"activation/{i}": np.full(2**20, i, np.float32) for i in range(8)}  # 4 MiB each
    strings = {"order": json.dumps(list(values)), "inputs_sha256": "0" * 64}
    write_tensors(tmp_path / "t", values, strings)
    tracemalloc.start()
    trace = crosscheck.load_trace(tmp_path / "t")
    assert trace.values["activation", "3"][5] == 3
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert not trace.values["activation", "3"].flags.writeable


def test_save_inputs_is_what_a_check_draws(tmp_path: Path) -> None:
    net, path = Net(), tmp_path / "in.safetensors"
    sha = crosscheck.save_inputs(
        path, {"x": X}, seed=5, cotangents={"output": "float32[5,3]"}, parameters=net
    )
    trace = crosscheck.record(net, X, seed=5)
    assert sha == trace.inputs_sha256 == TensorFile(path).metadata["inputs_sha256"]
    file = TensorFile(path)
    np.testing.assert_array_equal(file["model_input/x"], trace.inputs["x"])
    np.testing.assert_array_equal(file["cotangent/output"], trace.values["cotangent", "output"])
    np.testing.assert_array_equal(file["parameter/second.b"], net.second.b)


def test_the_sha256_is_what_the_documentation_says() -> None:
    import hashlib

    inputs = {"b": np.array([[1, 2]], "<i4"), "a": np.asarray(np.float32(0.5))}
    text = b"a\0F32\0\0" + b"\0\0\0\x3f" + b"b\0I32\0" + b"1,2\0" + b"\1\0\0\0\2\0\0\0"
    assert inputs_sha256(inputs) == hashlib.sha256(text).hexdigest()
    assert inputs_sha256({"b": np.asfortranarray(inputs["b"]), "a": inputs["a"]}) == inputs_sha256(
        inputs
    )
    assert inputs_sha256({"a": inputs["b"], "b": inputs["a"]}) != inputs_sha256(inputs)


@pytest.mark.parametrize("wanted", ["int64[2] 0..3", "float32[2] 0..1", "bool[2]"])
def test_a_cotangent_is_a_float_without_a_range(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(InvalidArgument, match="cotangent of `output`"):
        crosscheck.save_inputs(tmp_path / "i", X, cotangents={"output": wanted})
