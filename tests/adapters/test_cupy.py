"""CuPy: the contract, run over a fake of it on the host (the real one: tests/gpu)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest

import crosscheck
from crosscheck import DeviceUnavailable, InvalidArgument
from crosscheck.adapters.numpy import arrays
from crosscheck.adapters.numpy.adapter import NumpyAdapter
from crosscheck.kernels import on_device
from crosscheck.kernels.on_device import DeviceArray
from crosscheck.observers import Forcer

from . import fake_cupy
from .contract import Contract, X, record
from .fake_cupy import FakeArray
from .numpy_kit import Dense, Dropout, Net, NumpyKit, chain


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The fake as ``cupy``, and the adapter imported with it."""
    fake = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    sys.modules.pop("crosscheck.adapters.cupy.adapter", None)
    monkeypatch.delenv("CUPY_TF32", raising=False)
    yield fake
    sys.modules.pop("crosscheck.adapters.cupy.adapter", None)


def find(model: Any, **options: Any) -> Any:
    return importlib.import_module("crosscheck.adapters.cupy.adapter").find(model, **options)


def moved(value: Any) -> Any:
    """The same objects with their arrays on the device."""
    for name, item in vars(value).items():
        if isinstance(item, np.ndarray):
            setattr(value, name, FakeArray(item))
        elif hasattr(item, "forward"):
            moved(item)
    return value


class DeviceDropout(Dropout):
    def forward(self, x: Any) -> Any:
        fake = sys.modules["cupy"]
        keep = fake.random.random(x.shape) > 0.5 if self.training else fake.ones(x.shape)  # type: ignore[attr-defined]
        self.mask = (keep * (2 if self.training else 1)).astype(x.dtype)
        return x * self.mask


class CupyKit(NumpyKit):
    """The hand-written models, on the fake device."""

    arrays: ClassVar[type] = FakeArray

    def build(self, name: str) -> Any:
        model = super().build(name)
        if name == "dropout":
            model.drop = DeviceDropout()
        return moved(model)

    def adapt(self, model: Any) -> Any:
        adapter = find(model)
        assert adapter is not None and adapter.framework == "cupy"
        return adapter

    def bare(
        self, model: Any, inputs: Mapping[str, np.ndarray], dys: list[np.ndarray]
    ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        result = model.forward(*(FakeArray(a.copy()) for a in inputs.values()))
        outputs = [result] if isinstance(result, FakeArray) else list(result)
        outputs = [o["hidden"] if isinstance(o, dict) else o for o in outputs]
        model.backward(*(FakeArray(d.copy()) for d in dys))
        gradients = {}
        for path, layer in self.adapt(model)._layers.items():
            for name in ("W", "b"):
                if isinstance(getattr(layer, name, None), FakeArray):
                    gradients[f"{path}.{name}"] = getattr(layer, "d" + name)._held
        return [o._held for o in outputs], gradients

    def state(self, model: Any) -> dict[str, Any]:
        layers = self.adapt(model)._layers
        arrays = {
            f"{path}.{name}": value
            for path, layer in layers.items()
            for name, value in vars(layer).items()
            if isinstance(value, FakeArray)
        }
        return {
            **super().state(model),
            "values": {name: value._held.copy() for name, value in arrays.items()},
            "places": {name: id(value) for name, value in arrays.items()},
            "cupy": id(sys.modules["cupy"].random.get_random_state()),  # type: ignore[attr-defined]
        }


class TestCupy(Contract):
    kit = CupyKit()


def dense(seed: int = 0) -> Any:
    return moved(Dense(4, 3, np.random.default_rng(seed)))


def test_two_nets_on_the_device() -> None:
    reference, candidate = (Net(*chain("fc"), fc=dense(seed)) for seed in (0, 1))
    report = crosscheck.check(reference, candidate, {"x": X}, device="cuda")
    assert report.verdict == "agree", str(report)
    assert (report.reference.framework, report.reference.device) == ("cupy", "cuda")
    assert report.environment["candidate"] == {"device": "Fake GPU", "CUPY_TF32": "off"}
    forward = candidate.fc.forward
    candidate.fc.forward = lambda x: forward(x) * np.float32(1.01)
    report = crosscheck.check(reference, candidate, {"x": X}, device="cuda")
    assert report.first_divergence.candidate == "fc"


def test_large_values_stay_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    net = Net(*chain("fc"), fc=dense())
    here, _ = record(find(net))
    monkeypatch.setattr(DeviceArray, "made", False)
    monkeypatch.setattr(on_device, "sees_devices", lambda: True)
    monkeypatch.setattr(on_device, "LEAST", 1)
    monkeypatch.setattr(on_device, "stays", lambda tensor, room: True)
    there, _ = record(find(net))
    assert list(there) == list(here)
    assert isinstance(there["activation", "fc"], DeviceArray)
    for key, value in here.items():
        assert np.array_equal(there[key], value), key
    twice = {("activation", "fc"): there["activation", "fc"].copy()}
    twice["activation", "fc"].tensor.mul_(2.0)
    forced, _ = record(find(net), observer=Forcer(twice))
    assert np.array_equal(forced["activation", "output"], 2.0 * here["activation", "fc"])


def test_what_pytorch_cannot_read_in_its_place_goes_through_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(on_device, "sees_devices", lambda: True)
    monkeypatch.setattr(on_device, "LEAST", 1)
    monkeypatch.setattr(on_device, "stays", lambda tensor, room: True)
    numbers = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert isinstance(arrays.shown(FakeArray(numbers.T)), DeviceArray)
    backwards = arrays.shown(FakeArray(numbers[::-1]))  # PyTorch has no negative strides
    assert isinstance(backwards, np.ndarray) and np.array_equal(backwards, numbers[::-1])


def test_what_leaves_the_device_is_an_error() -> None:
    def forward(m: Any, x: Any) -> Any:
        return m.fc.forward(x)._held * 2  # computed on the host from here on

    net = Net(forward, lambda m, d: d, fc=dense())
    with pytest.raises(DeviceUnavailable, match=r"`output` is a NumPy array on the host"):
        record(find(net))


def test_recognition(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(Dense(4, 3, np.random.default_rng(0))) is None  # NumPy arrays
    assert find(lambda x: x) is None and find(object()) is None
    params = {"W": FakeArray(np.ones((4, 3), np.float32))}
    adapter = find(lambda x: x @ params["W"], params=params)
    values, _ = record(adapter, cotangents=None)
    np.testing.assert_allclose(values["activation", "output"], X @ np.ones((4, 3)), rtol=1e-6)
    assert crosscheck.adapt(lambda x: x * 2, arrays="cupy").framework == "cupy"
    with pytest.raises(InvalidArgument, match="arrays='torch'"):
        find(lambda x: x, arrays="torch")
    assert crosscheck.adapt(dense()).framework == "cupy"
    monkeypatch.delitem(sys.modules, "cupy")
    assert type(crosscheck.adapt(Dense(4, 3, np.random.default_rng(0)))) is NumpyAdapter


def test_both_sides_or_neither() -> None:
    host = Dense(4, 3, np.random.default_rng(0))
    with pytest.raises(DeviceUnavailable, match=r"candidate \(cupy\).*GPU only") as error:
        crosscheck.check(host, dense(), {"x": X})
    assert 'device="cuda"' in str(error.value)
    with pytest.raises(DeviceUnavailable, match=r"reference \(numpy\).*on the host"):
        crosscheck.check(host, dense(), {"x": X}, device="cuda")


def test_tf32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPY_TF32", "1")
    with pytest.raises(DeviceUnavailable, match="unset CUPY_TF32"):
        crosscheck.check(dense(), dense(), {"x": X}, device="cuda")
