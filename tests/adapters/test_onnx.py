"""ONNX: the forward half of the contract; forcing, parameters and what is said about a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from crosscheck.adapters.onnx.adapter import OnnxAdapter, find  # noqa: E402
from crosscheck.adapters.onnx.options import Options  # noqa: E402
from crosscheck.adapters.torch.adapter import TorchAdapter  # noqa: E402
from crosscheck.errors import InvalidArgument  # noqa: E402
from crosscheck.observers import Forcer, Key, Recorder, chain  # noqa: E402

from .contract import Contract  # noqa: E402
from .kit import Suite, X, equal, record  # noqa: E402
from .onnx_kit import (  # noqa: E402
    OnnxKit,
    Planner,
    example,
    export,
    net,
    proto,
    without_metadata,
)
from .state_contract import StateContract  # noqa: E402
from .torch_kit import Layers  # noqa: E402


class TestContract(Suite):
    """Those of the contract's tests that need no backward pass."""

    kit = OnnxKit()

    test_forward_order_sources_parents = Contract.test_forward_order_sources_parents
    test_force_an_activation = Contract.test_force_an_activation
    test_force_an_input = Contract.test_force_an_input
    test_force_the_model_input = Contract.test_force_the_model_input
    test_load = StateContract.test_load
    test_load_refuses = StateContract.test_load_refuses
    test_observation_is_neutral = StateContract.test_observation_is_neutral
    test_a_passive_run_shows_the_same_and_refuses_to_replace = (
        StateContract.test_a_passive_run_shows_the_same_and_refuses_to_replace
    )

    @pytest.mark.parametrize("passive", [False, True])
    def test_the_model_is_left_as_it_was(self, passive: bool) -> None:
        model, adapter = self.model("mlp")
        before = self.kit.state(model)
        bias = adapter.parameters()[1]
        record(adapter, passive=passive, overrides={bias.name: bias.value + 1})
        assert self.kit.state(model) == before

    def test_errors_of_the_observer_pass(self) -> None:
        def refuse(site: str, kind: str, value: np.ndarray) -> None:
            raise InvalidArgument("enough")

        with pytest.raises(InvalidArgument, match="enough"):
            self.adapter("mlp").run({"x": X}, refuse)


def run(adapter: Any, name: str, *observers: Any, **options: Any) -> tuple[dict[Key, Any], Any]:
    recorder = Recorder()
    info = adapter.run(example(name), chain(recorder, *observers), **options)
    return recorder.values, info


# -- sites -----------------------------------------------------------------------------------------

NETS = ["mlp", "shared", "fan_out", "returning", "two_inputs", "embedding", "norm", "dropout"]


@pytest.mark.parametrize("name", [*NETS, "cnn", "gpt"])
def test_sites_are_those_of_pytorch(name: str) -> None:
    ours, info = run(OnnxAdapter(proto(name)), name)
    theirs, expected = run(TorchAdapter(net(name)), name)
    assert info.outputs == expected.outputs
    assert info.inputs == expected.inputs
    missing = set(theirs) - set(ours)
    # `arange` as the input of a position embedding is a constant in the file.
    assert missing == ({("input", "pos")} if name == "gpt" else set())
    assert [k for k in theirs if k not in missing] == list(ours)
    for key, value in ours.items():
        np.testing.assert_allclose(value, theirs[key], rtol=1e-4, atol=1e-5, err_msg=str(key))
    assert info.layers == expected.layers
    assert info.parents == expected.parents
    assert info.sources == expected.sources


def test_structured_outputs_are_numbered() -> None:
    values, info = run(OnnxAdapter(proto("structured")), "structured")
    assert info.outputs == ("output", "output:1")
    assert np.array_equal(values["activation", "output:1"], values["activation", "fc"])


def test_inputs_by_name_and_by_position() -> None:
    adapter = OnnxAdapter(proto("two_inputs"))
    left, right = X, X[::-1].copy()
    named, info = record(adapter, {"right": right, "left": left}, cotangents=None)
    assert info.inputs == ("input:right", "input:left")
    assert list(named)[:2] == [("activation", "input:right"), ("activation", "input:left")]
    assert info.sources == {"fl": "input:left", "fr": "input:right"}
    placed, info = record(adapter, {"p": left, "q": right}, cotangents=None)
    assert info.sources == {"fl": "input:p", "fr": "input:q"}
    assert np.array_equal(placed["activation", "output"], named["activation", "output"])
    forcer = Forcer({("activation", "input:q"): left})
    forced, _ = record(adapter, {"p": left, "q": right}, forcer, cotangents=None)
    assert np.array_equal(forced["input", "fr"], left)


def test_two_calls_in_a_row() -> None:
    """A file does not say where the second call of a container begins; our own export does."""
    values, _ = run(OnnxAdapter(proto("twice")), "twice")
    expected, info = run(TorchAdapter(net("twice")), "twice")
    assert set(expected) - set(values) == {("activation", "cell#2"), ("input", "cell#2")}
    last = expected["activation", "cell#2"]
    np.testing.assert_allclose(values["activation", "cell"], last, atol=1e-6)
    exported = find(net("twice"), export="onnx")
    values, ours = run(exported, "twice")
    assert list(values) == list(expected)
    assert ours.sources == info.sources


def test_a_file_without_module_paths() -> None:
    adapter = OnnxAdapter(without_metadata(proto("mlp")))
    values, info = run(adapter, "mlp")
    layers = [info.layers[s] for k, s in values if k == "activation"]
    assert layers == ["input", "Gemm", "Gemm", "Relu", "Add", "Gemm", "Model"]
    assert "no module paths" in adapter.notes[0]
    assert set(info.parents.values()) == {"output"}
    for p in adapter.parameters():
        assert (p.home, p.kind) == (p.name.rpartition(".")[0], "dense")
        assert info.layers[p.layer] == "Gemm"
    relu = next(s for s, layer in info.layers.items() if layer == "Relu")
    forced = np.full_like(values["activation", relu], 0.25)
    changed, _ = run(adapter, "mlp", Forcer({("activation", relu): forced}))
    assert len(set(values) - equal(values, changed)) == 5  # Add and Gemm, their inputs, the output


# -- forcing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "shared", "fan_out", "returning", "two_inputs"])
def test_forcing_any_one_value_does_what_it_does_in_pytorch(name: str) -> None:
    ours, theirs = OnnxAdapter(proto(name)), TorchAdapter(net(name))
    free, _ = run(ours, name)
    rng = np.random.default_rng(1)
    for key, value in free.items():
        forcer = Planner({key: rng.normal(size=value.shape).astype(np.float32)})
        a, _ = run(ours, name, forcer)
        b, _ = run(theirs, name, forcer)
        assert list(a) == list(b)
        for other in a:
            np.testing.assert_allclose(a[other], b[other], atol=1e-5, err_msg=f"{key} {other}")
        same = {k for k in free if np.array_equal(free[k], a[k])}
        assert same == {k for k in free if np.allclose(free[k], b[k], atol=1e-5)}


@pytest.mark.parametrize("optimization", ["none", "all"])
def test_forcing_everything(optimization: str) -> None:
    free, _ = run(TorchAdapter(net("gpt")), "gpt")
    adapter = OnnxAdapter(proto("gpt"), Options(optimization=optimization))
    known = set(run(adapter, "gpt")[0])
    planner = Planner({key: value for key, value in free.items() if key in known})
    values, _ = run(adapter, "gpt", planner)
    for key, value in values.items():
        np.testing.assert_allclose(value, free[key], atol=2e-6, err_msg=str(key))


def test_a_plan_saves_the_second_run() -> None:
    adapter = OnnxAdapter(proto("mlp"))
    key: Key = ("activation", "block.act")
    forced = {key: np.full((6, 5), 0.25, np.float32)}
    planner = Planner(forced)
    adapter.run(example("mlp"), planner)
    assert planner.seen == len(run(adapter, "mlp")[0])
    planned, _ = record(adapter, observer=Planner(forced), cotangents=None)
    asked, _ = record(adapter, observer=Forcer(forced), cotangents=None)
    assert equal(planned, asked) == set(planned)


def test_replacements_that_depend_on_the_value() -> None:
    def negate(site: str, kind: str, value: np.ndarray) -> np.ndarray | None:
        return -value if kind == "activation" and site in ("fc1", "block", "block.inner") else None

    ours, _ = run(OnnxAdapter(proto("mlp")), "mlp", negate)
    theirs, _ = run(TorchAdapter(net("mlp")), "mlp", negate)
    for key, value in ours.items():
        np.testing.assert_allclose(value, theirs[key], atol=1e-5)


def test_replacements_must_fit_and_keep_to_the_plan() -> None:
    adapter = OnnxAdapter(proto("mlp"))
    for kind in (Forcer, Planner):
        forcer = kind({("activation", "fc1"): np.zeros(1, np.float32)})
        with pytest.raises(AssertionError, match=r"activation of fc1: shape \(1,\), not \(6, 5\)"):
            adapter.run(example("mlp"), forcer)
    planner = Planner({})
    planner._values = {("activation", "fc1"): np.zeros((6, 5), np.float32)}
    planner.planned = lambda site, kind: None  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="had not planned to"):
        adapter.run(example("mlp"), planner)


# -- parameters, options ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "embedding", "norm", "cnn", "gpt"])
def test_parameters_are_those_of_pytorch(name: str) -> None:
    ours = {p.layer + ":" + p.role: p for p in OnnxAdapter(proto(name)).parameters()}
    theirs = {p.layer + ":" + p.role: p for p in TorchAdapter(net(name)).parameters()}
    assert set(ours) == set(theirs)
    for key, p in ours.items():
        same = theirs[key]
        assert (p.kind, p.axes, p.buffer) == (same.kind, same.axes, same.buffer), key
        assert np.array_equal(p.value, same.value)
        assert not p.trainable


def test_weights_beyond_the_size_of_a_protobuf() -> None:
    small, _ = run(OnnxAdapter(proto("cnn")), "cnn")
    options = Options(session_options=onnxruntime.SessionOptions())  # cannot be lent weights
    adapter = OnnxAdapter(proto("cnn"), options, limit=0)
    large, _ = run(adapter, "cnn")
    assert equal(small, large) == set(small)
    (kept,) = adapter._sessions._kept.values()
    assert kept.folder is not None
    folder = Path(kept.folder.name)
    assert (folder / "weights").stat().st_size > 0
    adapter.load({p.name: p.value + 1 for p in adapter.parameters()})
    del kept
    assert not folder.exists()


def test_weights_in_another_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save_model(
        proto("cnn"), str(path), save_as_external_data=True, location="net.data", size_threshold=0
    )
    values, _ = run(find(path), "cnn")
    assert equal(values, run(find(str(path)), "cnn")[0]) == set(values)
    assert equal(values, run(OnnxAdapter(proto("cnn")), "cnn")[0]) == set(values)


def test_what_watching_changes_is_said() -> None:
    plain = OnnxAdapter(proto("gpt"), Options(optimization="none"))
    values, _ = run(plain, "gpt", passive=True)
    assert plain.notes == ()
    fused = OnnxAdapter(proto("gpt"), Options(optimization="all"))
    watched, info = run(fused, "gpt", passive=True)
    bare, _ = OnnxKit().bare(proto("gpt"), example("gpt"), [])
    assert watched["activation", "output"].tobytes() == bare[0].tobytes()
    np.testing.assert_allclose(bare[0], values["activation", "output"], atol=1e-5)
    if bare[0].tobytes() != values["activation", "output"].tobytes():
        assert "fuses less" in fused.notes[0]


def test_batchnorm_folded_and_switched_is_said() -> None:
    model = Layers(
        lambda m, x: m.bn(m.conv(x)),
        conv=torch.nn.Conv1d(4, 3, 1),
        bn=torch.nn.BatchNorm1d(3),
    ).train()
    file = export(model, {"x": np.ones((2, 4, 5), np.float32)}, optimize=True)
    notes = OnnxAdapter(file).notes
    assert not any("lost their parameters' names" in note for note in notes)
    assert any("BatchNorm `bn`: folded" in note for note in notes)
    assert any("BatchNorm `bn`: exported from a model in train mode" in note for note in notes)


def test_names_that_the_exporter_lost_are_said() -> None:
    file = export(net("gpt"), example("gpt"), optimize=True)
    (note,) = OnnxAdapter(file).notes
    assert "lost their parameters' names when the exporter optimised" in note
    values, _ = run(OnnxAdapter(file), "gpt", passive=True)
    expected, _ = run(TorchAdapter(net("gpt")), "gpt")
    for key in values:
        np.testing.assert_allclose(values[key], expected[key], atol=1e-5, err_msg=str(key))


def test_an_exported_module() -> None:
    model = net("gpt")
    modes = [m.training for m in model.modules()]
    before, generator = model.state_dict(), torch.get_rng_state()
    adapter = find(model, export="onnx", optimization="none")
    assert adapter is not None
    assert [p.name for p in adapter.parameters()] == [
        p.name for p in TorchAdapter(model).parameters()
    ]
    values, _ = run(adapter, "gpt")
    bias = next(p for p in adapter.parameters() if p.name == "tok.weight")
    zeros = np.zeros_like(bias.value)
    emptied, _ = run(adapter, "gpt", overrides={"tok.weight": zeros})
    assert not emptied["activation", "tok"].any()
    assert not emptied["activation", "output"].any()  # the output layer shares it
    again, _ = run(adapter, "gpt")
    assert equal(values, again) == set(values)
    kept = np.array(bias.value)
    adapter.load({"tok.weight": zeros})
    loaded, _ = run(adapter, "gpt")
    adapter.load({"tok.weight": kept})
    assert equal(loaded, emptied) == set(loaded)
    assert equal(run(adapter, "gpt")[0], values) == set(values)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
