"""Both sides on a CUDA device: PyTorch, CuPy, JAX, TensorFlow, ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import crosscheck  # noqa: E402
from crosscheck import DeviceUnavailable, Report  # noqa: E402

pytestmark = pytest.mark.gpu

SPEC = "float32[7,64]"


class Mlp(nn.Module):
    def __init__(self, approximate: str = "none", seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.up, self.act = nn.Linear(64, 256), nn.GELU(approximate=approximate)
        self.norm, self.down = nn.LayerNorm(256), nn.Linear(256, 10)

    def forward(self, x: Any) -> Any:
        return self.down(self.norm(self.act(self.up(x))))


def check(reference: Any, candidate: Any, spec: Any = SPEC, **options: Any) -> Report:
    report = crosscheck.check(reference, candidate, spec, device="cuda", **options)
    assert (report.reference.device, report.candidate.device) == ("cuda", "cuda")
    return report


def agrees(report: Report) -> None:
    assert report.verdict == "agree", str(report)
    assert report.coverage.aligned > 2


def test_torch_and_torch() -> None:
    reference, candidate = Mlp(), Mlp(seed=1)
    report = check(reference, candidate)
    agrees(report)
    flags = report.environment["reference"]
    assert flags["deterministic_algorithms"] is True
    assert set(flags["fp32_precision"].values()) <= {"none", "ieee", None}
    # The models stay where they were, and so do the switches.
    assert {p.device.type for p in [*reference.parameters(), *candidate.parameters()]} == {"cpu"}
    assert not torch.are_deterministic_algorithms_enabled()


def test_tf32_is_off_during_a_check_and_back_afterwards() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        agrees(check(Mlp(), Mlp(seed=1)))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_model_that_is_on_the_device_already() -> None:
    agrees(check(Mlp().cuda(), Mlp(seed=1)))
    on_host = crosscheck.check(Mlp().cuda(), Mlp(seed=1), SPEC, device="cpu")
    agrees(on_host)


def test_a_defect_on_the_device() -> None:
    first = check(Mlp(), Mlp("tanh")).first_divergence
    assert first is not None
    assert (first.phase, first.candidate) == ("forward", "act")


class LeavesTheDevice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x: Any) -> Any:
        return self.inner(x.cpu() * 2)


def test_a_site_on_the_host_is_an_error() -> None:
    with pytest.raises(DeviceUnavailable, match="was computed on cpu, not on cuda"):
        check(nn.Sequential(LeavesTheDevice()), nn.Sequential(LeavesTheDevice()))


def test_convolutions_and_train_mode() -> None:
    def cnn(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)
        )

    agrees(check(cnn(0), cnn(1), "float32[2,3,32,48]", train=True))


class Dense:
    """A CuPy layer by hand."""

    axes = {"W": ("in", "out"), "b": ("out",)}  # noqa: RUF012

    def __init__(self, cupy: Any, inputs: int, outputs: int) -> None:
        self.W = cupy.zeros((inputs, outputs), cupy.float32)
        self.b = cupy.zeros(outputs, cupy.float32)
        self.dW, self.db = cupy.zeros_like(self.W), cupy.zeros_like(self.b)

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.W + self.b

    def backward(self, dy: Any) -> Any:
        self.dW += self.x.T @ dy
        self.db += dy.sum(0)
        return dy @ self.W.T


def test_torch_and_cupy() -> None:
    cupy = pytest.importorskip("cupy")
    agrees(check(nn.Sequential(nn.Linear(64, 10)), [Dense(cupy, 64, 10)]))


class BiasGelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(-1, 1, 64))

    def forward(self, x: Any) -> Any:
        return nn.functional.gelu(x + self.bias)


def test_a_raw_kernel() -> None:
    pytest.importorskip("cupy")
    from models.kernels.cupy_gelu import BiasGelu as Kernel

    report = check(BiasGelu(), Kernel(64))
    assert report.verdict == "agree", str(report)
    wrong = Kernel(64)
    forward = wrong.forward
    wrong.forward = lambda x: forward(x) * np.float32(1.001)  # type: ignore[method-assign]
    assert check(BiasGelu(), wrong).verdict == "diverge"


def test_torch_and_jax() -> None:
    jax = pytest.importorskip("jax")
    if not any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this JAX sees no GPU")
    params = {"weight": jax.numpy.zeros((64, 10)), "bias": jax.numpy.zeros(10)}
    candidate = crosscheck.adapt(lambda p, x: x @ p["weight"] + p["bias"], params=params)
    report = check(nn.Linear(64, 10), candidate)
    assert report.verdict == "agree", str(report)


def test_torch_and_keras() -> None:
    keras = pytest.importorskip("keras")
    tensorflow = pytest.importorskip("tensorflow")
    if not tensorflow.config.list_physical_devices("GPU"):
        pytest.skip("this TensorFlow sees no GPU")
    candidate = keras.Sequential([keras.layers.Input((64,)), keras.layers.Dense(10)])
    agrees(check(nn.Sequential(nn.Linear(64, 10)), candidate))


def test_torch_and_onnx_runtime() -> None:
    runtime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider (onnxruntime-gpu has)")
    agrees(check(Mlp(), crosscheck.adapt(Mlp(seed=1), export="onnx")))
