"""ONNX: how much work a run and a check are: sessions, runs, bytes that are copied."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
ml_dtypes = pytest.importorskip("ml_dtypes")

import crosscheck  # noqa: E402
from crosscheck.adapters.onnx import sessions as onnx_sessions  # noqa: E402
from crosscheck.adapters.onnx import weights as onnx_weights  # noqa: E402
from crosscheck.adapters.onnx.adapter import OnnxAdapter, find  # noqa: E402
from crosscheck.adapters.onnx.options import Options  # noqa: E402
from crosscheck.adapters.onnx.weights import Weights, embedded  # noqa: E402
from crosscheck.errors import InvalidArgument  # noqa: E402
from crosscheck.observers import Comparer, Forcer, Key, Recorder, chain  # noqa: E402

WIDTH, DEPTH = 64, 3
X = np.random.default_rng(0).normal(size=(5, WIDTH)).astype(np.float32)


def net(dtype: Any = np.float32) -> Any:
    """x -> [MatMul -> Add -> Tanh] x 3; every weight matrix has 16 kB in float32."""
    random = np.random.default_rng(1)
    nodes, tensors, value = [], [], "x"
    for i in range(DEPTH):
        weight = random.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)
        tensors.append(onnx.numpy_helper.from_array(weight.astype(dtype), f"fc{i}.weight"))
        bias = random.normal(size=WIDTH).astype(np.float32)
        tensors.append(onnx.numpy_helper.from_array(bias, f"fc{i}.bias"))
        matrix = f"fc{i}.weight"
        if dtype is not np.float32:
            nodes.append(onnx.helper.make_node("Cast", [matrix], [f"w{i}"], to=1))
            matrix = f"w{i}"
        nodes.append(onnx.helper.make_node("MatMul", [value, matrix], [f"m{i}"], f"matmul{i}"))
        nodes.append(onnx.helper.make_node("Add", [f"m{i}", f"fc{i}.bias"], [f"a{i}"], f"add{i}"))
        nodes.append(onnx.helper.make_node("Tanh", [f"a{i}"], [f"t{i}"], f"tanh{i}"))
        value = f"t{i}"
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "net", [info("x", 1, X.shape)], [info(value, 1, X.shape)], tensors
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, ir_version=9, opset_imports=opsets)


class Work:
    """What ONNX Runtime was asked to do."""

    def __init__(self) -> None:
        self.messages: list[int] = []  # bytes of the model, for each session
        self.values: list[int] = []  # how many values were fetched, for each run


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    seen = Work()

    class Counted(ort.InferenceSession):  # type: ignore[misc]
        def __init__(self, source: Any, *args: Any, **options: Any) -> None:
            seen.messages.append(len(source))
            super().__init__(source, *args, **options)

        def run(self, names: Any, *args: Any, **options: Any) -> Any:
            seen.values.append(len(names))
            return super().run(names, *args, **options)

    monkeypatch.setattr(ort, "InferenceSession", Counted)
    yield seen


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(net(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def run(adapter: Any, *observers: Any, **options: Any) -> dict[Key, np.ndarray]:
    recorder = Recorder(borrows=adapter.capabilities.lends)
    adapter.run({"x": X}, chain(recorder, *observers), **options)
    return dict(recorder.values)


# -- sessions and runs -----------------------------------------------------------------------------


@pytest.mark.parametrize(("effort", "sessions"), [("quick", 3), ("thorough", 4)])
def test_a_check_of_two_files(path: Path, work: Work, effort: str, sessions: int) -> None:
    """The reference as it is written; the candidate unwatched, watched and (thorough) forced."""
    sides = (crosscheck.adapt(path, optimization=level) for level in ("none", "all"))
    report = crosscheck.check(*sides, X, effort=effort, blind_spots=False)
    assert report.verdict == "agree", str(report)
    assert len(work.messages) == len(work.values) == sessions
    assert max(work.messages) < 4096  # no weights


def test_blind_spots_compute_only_what_an_alteration_reaches(path: Path, work: Work) -> None:
    sides = (crosscheck.adapt(path, optimization=level) for level in ("none", "all"))
    report = crosscheck.check(*sides, X)
    assert report.verdict == "agree", str(report)
    assert report.coverage.blind_spots == ()
    free, altered = max(work.values), work.values[4:-1]  # the last looks for unread inputs
    assert altered
    assert sum(altered) <= 2 * free


@pytest.mark.parametrize(("read", "whole_runs"), [("early", 0), ("late", 1), ("never", 1)])
def test_whether_an_input_is_read_is_seen_early(read: str, whole_runs: int, work: Work) -> None:
    model = net()
    given = onnx.helper.make_tensor_value_info("other", 1, X.shape)
    model.graph.input.append(given)
    if read != "never":
        node = model.graph.node[0 if read == "early" else -1]
        node.input[0:1] = ["sum"]
        first = "x" if read == "early" else model.graph.node[-2].output[0]
        added = onnx.helper.make_node("Add", [first, "other"], ["sum"], "with_other")
        model.graph.node.insert(0 if read == "early" else len(model.graph.node) - 1, added)
    sides = (crosscheck.adapt(model, optimization=level) for level in ("none", "all"))
    report = crosscheck.check(*sides, {"x": X, "other": X[::-1].copy()})
    assert report.verdict == "agree", str(report)
    spots = report.coverage.blind_spots
    assert [spot for spot in spots if "input:" in spot] == (
        ["`input:other`: was altered, and nothing compared moved"] if read == "never" else []
    )
    free, last = max(work.values), work.values[-2:]
    assert sum(count == free for count in last) == whole_runs
    assert min(last) <= 4


def test_only_onnx_is_loaded(path: Path) -> None:
    code = (
        "import sys, crosscheck\n"
        f"sides = (crosscheck.adapt({str(path)!r}, optimization=o) for o in ('none', 'all'))\n"
        "print(crosscheck.check(*sides, {'x': 'float32[5,64]'}).verdict, *sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    verdict, *loaded = done.stdout.split()
    assert verdict == "agree"
    others = {"torch", "tensorflow", "keras", "jax", "cupy", "numba", "scipy", "rich", "jinja2"}
    assert not others & set(loaded)


def test_sessions_of_large_models_are_not_kept(
    path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter: Any = find(path)
    first = run(adapter, passive=True)
    assert len(work.messages) == 2
    assert [*adapter._sessions._kept] == ["showing"]
    monkeypatch.setattr(onnx_sessions, "HELD", 0)
    adapter = find(path)
    again = run(adapter, passive=True)
    assert len(work.messages) == 4  # that which told the types of the values was run
    assert not adapter._sessions._kept
    assert all(np.array_equal(first[key], again[key]) for key in first)


def test_a_model_run_as_it_is_written_is_run_once(path: Path, work: Work) -> None:
    adapter: Any = find(path, optimization="none")
    values = run(adapter, passive=True)
    assert len(work.values) == 1
    assert not any("fuses less" in note for note in adapter.notes)
    assert values["activation", "output"].tobytes() == _alone(path, "ORT_DISABLE_ALL").tobytes()


def test_half_precision_is_watched_either_way(work: Work) -> None:
    """Between kernels that it has no half precision for, ONNX Runtime leaves out the casts."""
    model = net()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(
                onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name
            )
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    adapter = OnnxAdapter(model, Options(optimization="none"))
    adapter.run({"x": X.astype(np.float16)}, Recorder(), passive=True)
    assert len(work.values) == 2


def _alone(path: Path, level: str) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    return ort.InferenceSession(str(path), options).run(["t2"], {"x": X})[0]


# -- what overrides reach --------------------------------------------------------------------------


def test_only_changes() -> None:
    adapter = OnnxAdapter(net())
    free = run(adapter, passive=True)
    other = {"fc1.weight": np.ones((WIDTH, WIDTH), np.float32), "fc2.bias": np.ones(WIDTH)}
    forced = Forcer({("activation", "t1"): free["activation", "t1"]})
    whole = run(adapter, forced, overrides=other)
    seen = Comparer(lambda key, value: value, set(free), changes_only=True)
    adapter.run({"x": X}, chain(seen, forced), overrides=other)
    moved = {key for key in free if not np.array_equal(free[key], whole[key])}
    assert seen.results.keys() == moved
    assert ("activation", "m0") not in moved
    for key, value in seen.results.items():
        np.testing.assert_allclose(value, whole[key], atol=1e-6)  # type: ignore[call-overload]
    # An observer that looks at everything is shown everything.
    assert run(adapter, seen, forced, overrides=other).keys() == free.keys()


@pytest.mark.parametrize("wanted", ["m0", "a1", "t2", "output"])
def test_only_what_a_value_takes(wanted: str, work: Work) -> None:
    """Everything forced and every weight replaced, or only what one value hangs on: the same."""
    adapter = OnnxAdapter(net())
    free = run(adapter, passive=True)
    forced = {
        key: value + 1 for key, value in free.items() if key[1][0] in "at" or "input" in key[1]
    }
    other = {p.name: p.value * 2 for p in adapter.parameters()}
    key: Key = ("activation", wanted)
    whole = run(adapter, Forcer(forced), overrides=other)[key]
    sites, names = adapter.taken_by({key}, forced.keys())
    assert len(sites) <= 2
    assert len(names) <= 1
    seen = Comparer(lambda key, value: np.array(value), {key}, alone=True)
    few = Forcer({key: forced[key] for key in sites})
    adapter.run({"x": X}, chain(seen, few), overrides={name: other[name] for name in names})
    np.testing.assert_allclose(seen.results[key], whole, rtol=1e-6)  # type: ignore[call-overload]
    assert work.values[-1] == 1 or wanted == "output"  # which is what is forced in front of it


# -- weights ---------------------------------------------------------------------------------------


def test_two_models_of_one_file_share_its_weights(path: Path) -> None:
    one, other = find(path), find(path)
    assert one is not None and other is not None
    first, second = ({p.name: p.value for p in side.parameters()} for side in (one, other))
    assert first["fc0.weight"] is second["fc0.weight"]
    before = first["fc0.weight"].copy()
    other.load({"fc0.weight": before + 1})
    now = {p.name: p.value for p in one.parameters()}
    assert np.array_equal(now["fc0.weight"], before)
    assert not np.array_equal(run(one)["activation", "output"], run(other)["activation", "output"])
    onnx.save(net(np.float64), path)  # another file of that name
    assert next(iter(find(path).parameters())).value.dtype == np.float64  # type: ignore[union-attr]


def test_what_is_loaded_and_held_already_changes_nothing(path: Path, work: Work) -> None:
    adapter: Any = find(path)
    run(adapter)
    adapter.load({p.name: p.value.copy() for p in adapter.parameters()})
    run(adapter)
    assert len(work.messages) == 1
    adapter.load({"fc1.bias": np.zeros(WIDTH, np.float32)})
    run(adapter)
    assert len(work.messages) == 2


def test_weights_that_nothing_reads() -> None:
    model = net()
    del model.graph.node[0]
    model.graph.node[0].input[0] = "x"  # the first MatMul is gone
    assert run(OnnxAdapter(model))["activation", "output"].shape == X.shape


def test_a_proto_is_written_to() -> None:
    model = net()
    adapter = OnnxAdapter(model)
    adapter.load({"fc0.weight": np.full((WIDTH, WIDTH), 2, np.float32)})
    assert (onnx.numpy_helper.to_array(model.graph.initializer[0]) == 2).all()
    assert (adapter.initializer("fc0.weight") == 2).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.int64])
def test_every_type_is_lent(dtype: Any, tmp_path: Path, work: Work) -> None:
    model = net(dtype)
    onnx.save(model, tmp_path / "net.onnx")
    adapter: Any = find(tmp_path / "net.onnx", optimization="none")
    assert adapter._weights.lent.keys() == {f"fc{i}.weight" for i in range(DEPTH)}
    expected = ort.InferenceSession(model.SerializeToString()).run(["t2"], {"x": X})[0]
    np.testing.assert_allclose(run(adapter)["activation", "output"], expected, atol=1e-6)
    assert work.messages[-1] < 4096


def test_a_file_is_read_as_onnx_reads_it(tmp_path: Path) -> None:
    model = net()
    raw = model.graph.initializer[0]
    values = onnx.numpy_helper.to_array(raw).ravel().tolist()
    in_floats = onnx.helper.make_tensor("fc0.weight", 1, raw.dims, values)  # not in bytes
    model.graph.initializer[0].CopyFrom(in_floats)
    packed = onnx.TensorProto(name="nibbles", data_type=onnx.TensorProto.INT4, dims=[4096])
    packed.raw_data = bytes(range(256)) * 8
    model.graph.initializer.append(packed)
    onnx.save(model, tmp_path / "net.onnx")
    onnx.save(
        model, tmp_path / "two.onnx", save_as_external_data=True, location="w", size_threshold=4096
    )
    for name in ("net.onnx", "two.onnx"):
        found, expected = Weights.read(tmp_path / name), onnx.load(tmp_path / name)
        assert found.lent.keys() == {f"fc{i}.weight" for i in range(DEPTH)}
        assert list(found.proto.graph.node) == list(expected.graph.node)
        for ours, theirs in zip(
            embedded(found).graph.initializer, expected.graph.initializer, strict=True
        ):
            assert (ours.name, ours.data_type) == (theirs.name, theirs.data_type)
            a, b = (onnx.numpy_helper.to_array(t) for t in (ours, theirs))
            assert a.tobytes() == b.tobytes()


def test_a_file_that_is_cut_short(path: Path) -> None:
    whole = path.read_bytes()
    for size in (len(whole) - 40, len(whole) // 2, 50):
        path.write_bytes(whole[:size])
        with pytest.raises(InvalidArgument, match="not a readable ONNX file"):
            find(path)


def test_values_do_not_hold_each_others_memory(path: Path) -> None:
    """Without an arena each is its own piece; the caller's options may have one."""
    assert not Options().make().enable_cpu_mem_arena
    options = ort.SessionOptions()
    adapter: Any = find(path, session_options=options)
    values = run(adapter)
    assert options.enable_cpu_mem_arena
    assert all(values["activation", f"t{i}"].flags.owndata for i in range(DEPTH))


def test_values_are_not_copied(path: Path) -> None:
    """What leaves one node is what goes into the next: one array, shown twice."""
    adapter: Any = find(path)
    assert adapter.capabilities.lends
    values = run(adapter)
    assert values["input", "m1"] is values["activation", "t0"]
    assert onnx_weights.same_bits(values["activation", "input:x"], X)
