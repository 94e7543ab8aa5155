"""The Triton kernel on a device."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import crosscheck  # noqa: E402
from crosscheck.compare import compare, describe  # noqa: E402
from crosscheck.kernels.on_device import LEAST, DeviceArray  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_tensors_are_compared_where_they_lie(dtype: str) -> None:
    pytest.importorskip("triton")
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (8, 96, 65, 67)
    a, b = (
        torch.randn(shape, generator=generator, device="cuda").to(getattr(torch, dtype))
        for _ in range(2)
    )
    a[3, 5, 7, 9] = float("nan")
    b = b.to(memory_format=torch.channels_last)
    before = torch.cuda.max_memory_allocated()
    metrics = describe(a, b)
    assert torch.cuda.max_memory_allocated() - before < 1 << 20
    assert describe(a, b) == metrics
    host = describe(a.double().cpu().numpy(), b.double().cpu().numpy())
    for name, value in vars(host).items():
        assert getattr(metrics, name) == pytest.approx(value, rel=1e-12, nan_ok=True), name
    assert compare(a, a).l2 == 0.0 and np.isfinite(compare(a, b).l2)


def test_a_check_compares_large_values_where_they_lie(copied: list[tuple[int, ...]]) -> None:
    pytest.importorskip("triton")
    nn = torch.nn
    nets = [nn.Sequential(nn.Linear(96, 1024), nn.GELU(), nn.Linear(1024, 96)) for _ in range(3)]
    nets[2][1] = nn.GELU(approximate="tanh")
    rows = LEAST // 96 + 1
    options = {"device": "cuda", "blind_spots": False}
    spec = f"float32[{rows},96]"
    report = crosscheck.check(nets[0], nets[1], spec, effort="quick", **options)
    assert report.verdict == "agree" and DeviceArray.made and not copied
    report = crosscheck.check(nets[0], nets[2], spec, **options)
    assert report.first_divergence is not None and report.first_divergence.candidate == "1"
