"""``device=``: both sides or neither, proof of where values were computed, flags recorded.

The logic, on a machine without a GPU; the GPU itself is in tests/gpu.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import crosscheck  # noqa: E402
from crosscheck import DeviceUnavailable, InvalidArgument  # noqa: E402
from crosscheck.adapters.base import Adapter  # noqa: E402
from crosscheck.adapters.torch.adapter import TorchAdapter  # noqa: E402
from crosscheck.adapters.torch.taps import TorchSession  # noqa: E402
from crosscheck.devices import as_they_ran, place  # noqa: E402
from crosscheck.kernels import on_device  # noqa: E402

needs_none = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


@needs_none
def test_no_device_says_what_is_missing_and_on_which_side() -> None:
    with pytest.raises(DeviceUnavailable) as error:
        crosscheck.check(net(), net(), "float32[2,4]", device="cuda")
    text = str(error.value)
    assert text.startswith('device="cuda": the reference (torch) cannot run there: PyTorch')
    assert "Fix: " in text
    if torch.version.cuda is None:
        assert "built without CUDA" in text


def test_a_hidden_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(DeviceUnavailable, match=r"CUDA_VISIBLE_DEVICES='-1'.*") as error:
        TorchAdapter(net()).use("cuda")
    assert "crosscheck doctor" in str(error.value)


@pytest.mark.parametrize("device", ["gpu", "cuda:1", None, ""])
def test_no_such_device(device: Any) -> None:
    with pytest.raises(InvalidArgument, match="must be"):
        crosscheck.check(net(), net(), "float32[2,4]", device=device)


def test_both_sides_or_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    ours = TorchAdapter(net())
    theirs = crosscheck.adapt(lambda x: x)
    with pytest.raises(DeviceUnavailable, match=r"the candidate \(numpy\) cannot run there"):
        place((ours, theirs), "cuda")
    assert (ours.device, theirs.device) == ("cpu", "cpu")
    place((ours, TorchAdapter(net())), "cuda")
    assert ours.device == "cuda"
    place((ours, theirs), "cpu")
    assert ours.device == "cpu"


def test_an_adapter_that_knows_no_device_runs_on_the_cpu() -> None:
    class Other(Adapter):
        framework = "other"

        def parameters(self) -> Any:
            return ()

        def load(self, values: Any) -> None:
            return None

        def run(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

    Other().use("cpu")
    with pytest.raises(DeviceUnavailable, match="other adapter of this version runs on the cpu"):
        Other().use("cuda")


def other_framework(name: str) -> tuple[Any, str]:
    """(a model, how the error begins)."""
    if name == "jax":
        jax = pytest.importorskip("jax")
        if any(device.platform == "gpu" for device in jax.devices()):
            pytest.skip("this JAX sees a GPU")
        params = {"w": jax.numpy.ones(4)}
        return crosscheck.adapt(lambda p, x: x * p["w"], params=params), "JAX"
    keras = pytest.importorskip("keras")
    if pytest.importorskip("tensorflow").config.list_physical_devices("GPU"):
        pytest.skip("this TensorFlow sees a GPU")
    return keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)]), "TensorFlow"


@pytest.mark.parametrize("name", ["jax", "keras"])
def test_other_frameworks_say_what_is_missing(name: str) -> None:
    model, begins = other_framework(name)
    with pytest.raises(
        DeviceUnavailable, match=rf"the reference \({name}\).*: {begins} .* sees no"
    ):
        crosscheck.check(model, model, "float32[2,4]", device="cuda")
    adapter = crosscheck.adapt(model)
    assert (adapter.device, adapter.capabilities.cuda) == ("cpu", True)


def test_an_output_that_lies_elsewhere_is_an_error() -> None:
    pytest.importorskip("tensorflow")
    pytest.importorskip("keras")
    from crosscheck.adapters.tensorflow.device import require_device

    class Somewhere:
        device = "/job:localhost/replica:0/task:0/device:CPU:0"

    require_device([("output", Somewhere())], "cpu")
    with pytest.raises(DeviceUnavailable, match="`output` was computed on .*CPU:0, not on GPU:0"):
        require_device([("output", Somewhere())], "cuda")


def tapped(device: str | None, value: torch.Tensor) -> torch.Tensor:
    session = TorchSession(lambda *seen: None, separator=".", root="output", device=device)
    return session.tap_value("fc", "activation", value)


def test_a_host_tensor_at_a_site_is_an_error() -> None:
    value = torch.ones(2, 3)
    with pytest.raises(DeviceUnavailable, match="`fc` was computed on cpu, not on cuda"):
        tapped("cuda", value)
    assert tapped("cpu", value) is value
    assert tapped(None, value) is value
    number = torch.tensor(2.0)  # which PyTorch hands to any kernel by itself
    assert tapped("cuda", number) is number


def test_flags_are_recorded_while_the_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the host, with the one call that would touch the GPU taken out."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    before = torch.are_deterministic_algorithms_enabled()
    adapter = TorchAdapter(net())
    adapter.use("cuda")
    assert as_they_ran((adapter, adapter)) == {}
    with contextlib.ExitStack() as stack:
        adapter._prepare(stack, train=False, seed=0, float64=False)
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() is before
    (flags, again) = as_they_ran((adapter, adapter)).values()
    assert flags == again
    assert flags["device"] == "Some GPU" and flags["deterministic_algorithms"] is True
    assert set(flags["fp32_precision"].values()) <= {"none", "ieee", None}
    assert "large values" not in flags
    monkeypatch.setattr(on_device, "_UNABLE", {})
    assert not on_device._able.__wrapped__(torch.device("cpu"))  # outside of the interpreter
    (flags, _) = as_they_ran((adapter, adapter)).values()
    assert flags["large values"].startswith("compared on the host: no Triton kernel runs on cpu: ")


def test_the_report_of_a_cpu_check_says_cpu() -> None:
    report = crosscheck.check(net(), net(), "float32[2,4]", device="cpu")
    assert (report.reference.device, report.candidate.device) == ("cpu", "cpu")
    assert np.isfinite([s.ratio for s in report.sites]).all()
