"""Large values of every framework stay on the device: the same report, and nothing copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import crosscheck  # noqa: E402
from crosscheck import Report  # noqa: E402
from crosscheck.kernels import on_device  # noqa: E402
from crosscheck.kernels.on_device import LEAST, DeviceArray, lent  # noqa: E402

pytestmark = pytest.mark.gpu

ROWS = LEAST // 96 + 1
SPEC = f"float32[{ROWS},96]"


class Net(nn.Module):
    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.act = nn.Linear(96, 192), nn.GELU(approximate=approximate)
        self.down = nn.Linear(192, 96)

    def forward(self, x: Any) -> Any:
        return self.down(self.act(self.up(x)))


def jax_net(approximate: bool = False) -> Any:
    jax = pytest.importorskip("jax")
    if not any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this JAX sees no GPU")

    def net(params: Any, x: Any) -> Any:
        h = crosscheck.tap("up", x @ params["up"]["weight"] + params["up"]["bias"])
        h = crosscheck.tap("act", jax.nn.gelu(h, approximate=approximate))
        return h @ params["down"]["weight"] + params["down"]["bias"]

    shapes = {"up": (96, 192), "down": (192, 96)}
    params = {
        name: {"weight": jax.numpy.ones(shape), "bias": jax.numpy.zeros(shape[1])}
        for name, shape in shapes.items()
    }
    return crosscheck.adapt(net, params=params)


def onnx_net(approximate: bool = False) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider (onnxruntime-gpu has)")
    return crosscheck.adapt(Net("tanh" if approximate else "none"), export="onnx")


def torch_net(approximate: bool = False) -> Any:
    return Net("tanh" if approximate else "none")


def check(candidate: Any, effort: str = "quick") -> Report:
    return crosscheck.check(Net(), candidate, SPEC, effort=effort, device="cuda", blind_spots=False)


MAKE = [torch_net, jax_net, onnx_net]


@pytest.mark.parametrize("make", MAKE)
def test_an_agreeing_check_copies_nothing(make: Any, copied: list[tuple[int, ...]]) -> None:
    report = check(make())
    assert report.verdict == "agree", str(report)
    assert DeviceArray.made and on_device.why_on_host() is None
    # A function of JAX has no inputs of layers: to align it, a few of PyTorch's are looked at.
    assert len(copied) <= (5 if make is jax_net else 0), copied


@pytest.mark.parametrize("make", MAKE)
def test_the_report_is_that_of_the_host(make: Any, stays_nowhere: Callable[[], None]) -> None:
    there = [check(make(), "thorough"), check(make(True))]
    stays_nowhere()
    here = [check(make(), "thorough"), check(make(True))]
    for got, want in zip(there, here, strict=True):
        assert got.verdict == want.verdict
        for name in ("phase", "candidate"):
            ours, theirs = (getattr(r.first_divergence, name, None) for r in (got, want))
            assert ours == theirs
        seen = [[(s.phase, s.kind, s.reference, s.verdict) for s in r.sites] for r in (got, want)]
        assert seen[0] == seen[1]
        errors = [[s.metrics.rel_l2 for s in r.sites if s.metrics] for r in (got, want)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-6, nan_ok=True)
    assert there[1].first_divergence is not None


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_arrays_of_jax_are_read_where_they_lie(dtype: str, copied: list[tuple[int, ...]]) -> None:
    jax = pytest.importorskip("jax")
    if not any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this JAX sees no GPU")
    from crosscheck.adapters.jax.state import computing
    from crosscheck.adapters.jax.values import placed, shown

    with computing(float64=dtype == "float64", device="cuda"):
        array = jax.numpy.arange(LEAST).astype(dtype) / 7
        value = shown(array)
        assert isinstance(value, DeviceArray) and value.lasting and not copied
        back = placed(value.transpose())
        assert back.devices() == array.devices() and back.dtype == array.dtype
        del value
        assert jax.numpy.array_equal(back, array)
        assert np.array_equal(np.asarray(shown(array)), np.asarray(array))


def test_memory_that_is_lent_is_read_before_it_can_be_used_again() -> None:
    """Each array is dropped, and its memory written to, right after a copy was asked for."""
    jax = pytest.importorskip("jax")
    if not any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this JAX sees no GPU")
    from crosscheck.adapters.jax.state import computing

    kept = []
    with computing(float64=False, device="cuda"):
        for number in range(20):
            array = jax.numpy.full(1 << 24, float(number))
            value = lent(array, array.size, lasting=True)
            assert value is not None
            kept.append(value.copy())
            del array, value
    for number, copy in enumerate(kept):
        assert bool((copy.tensor == float(number)).all()), number


def test_large_arrays_of_cupy(copied: list[tuple[int, ...]]) -> None:
    cupy = pytest.importorskip("cupy")
    from crosscheck.adapters.numpy.arrays import like, shown

    array = cupy.arange(2 * LEAST, dtype=cupy.float32).reshape(2, -1)
    value = shown(array)
    assert isinstance(value, DeviceArray)
    kept = value.copy()
    array *= 2.0  # in place, on CuPy's stream
    back = like(kept, array)
    assert isinstance(back, cupy.ndarray) and bool((back * 2.0 == array).all()) and not copied
    backwards = shown(array[::-1])
    assert isinstance(backwards, np.ndarray)
    assert np.array_equal(backwards, cupy.asnumpy(array)[::-1])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
def test_values_on_another_device_than_the_current_one() -> None:
    from crosscheck.kernels.triton_pair import pair_sums

    a = torch.ones(LEAST, device="cuda:1")
    assert torch.cuda.current_device() == 0
    assert pair_sums(a, 2 * a).diff2 == LEAST


class Twice(nn.Module):
    """A layer that is computed once more in the backward pass, with a tap inside."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(96, 96)

    def forward(self, x: Any) -> Any:
        def inner(h: Any) -> Any:
            return torch.tanh(crosscheck.tap("scores", self.up(h)))

        return checkpoint(inner, x, use_reentrant=False)


def test_taps_inside_checkpoints_are_found_in_the_backward_pass() -> None:
    torch.manual_seed(0)
    reference, candidate = (nn.Sequential(Twice(), nn.Linear(96, 8)) for _ in range(2))
    report = crosscheck.check(reference, candidate, "float32[9,96]", device="cuda")
    assert report.verdict == "agree", str(report)


def test_many_elements() -> None:
    """Places beyond 2^31, and as many rows as that takes."""
    free, _ = torch.cuda.mem_get_info()
    n = (1 << 31) + 5
    if free < 5 * n:
        pytest.skip("needs 11 GB of the device's memory")
    from crosscheck.kernels.triton_pair import pair_sums

    a = torch.zeros(n, dtype=torch.float16, device="cuda")
    b = torch.zeros(n, dtype=torch.float16, device="cuda")
    b[n - 2] = 3.0
    found = pair_sums(a, b)
    assert (found.diff2, found.argmax, found.count) == (9.0, n - 2, n)
