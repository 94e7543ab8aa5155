"""The Triton kernel, in Triton's interpreter, which wants a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import crosscheck
from crosscheck.compare import compare
from crosscheck.errors import DeviceUnavailable

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None or find_spec("torch") is None,
    reason="Triton or PyTorch is not installed",
)

INTERPRETED = """
import math
import numpy as np
import pytest
import torch
from crosscheck.compare import compare, describe
from crosscheck.errors import InvalidArgument
from crosscheck.kernels.blocked import pair_sums as plain
from crosscheck.kernels.triton_pair import pair_sums

torch.manual_seed(0)
a, b = torch.randn(3, 70, 45, 5), torch.randn(3, 70, 45, 5).round()
a[0, 0, 0, :3] = torch.tensor([math.inf, math.nan, -math.inf])
b[0, 0, 0, :3] = torch.tensor([math.inf, math.nan, math.inf])
a[2, 60, 40, 4] = math.nan
last = b.to(memory_format=torch.channels_last)
huge = torch.full((3,), 1e200, dtype=torch.float64)
for x, y in [
    (a, b),
    (a, last),
    (last, a.double()),
    (a.bfloat16(), b.half()),
    (a[:, 1::2, 3:], b[:, ::2, :-3]),
    (a[:1].expand(3, 70, 45, 5), last),
    (torch.tensor(2.5), torch.tensor(2.0)),
    (a[:0], b[:0]),
    (huge, -huge),
    (torch.zeros(9), torch.zeros(9)),
    (torch.randn(70_001), torch.randn(2, 70_001).T[:, 0]),
]:
    got, want = pair_sums(x, y, 1.0), plain(x.double().numpy(), y.double().numpy(), 1.0)
    for name, value in vars(want).items():
        other = getattr(got, name)
        if name in ("diff2", "a2", "b2", "ab"):
            assert other == pytest.approx(value, rel=1e-12, abs=1e-9), (name, x.shape)
        else:
            assert other == value, (name, x.shape, other, value)
assert repr(pair_sums(a, last)) == repr(pair_sums(a, last))

metrics = describe(a, last)
assert metrics.worst_index == (0, 0, 0, 2) and metrics.worst_reference == math.inf
assert (metrics.nonfinite, metrics.nonfinite_mismatch) == (4, 2)
assert metrics.rel_l2 == pytest.approx(describe(a.numpy(), last.numpy()).rel_l2, rel=1e-12)
assert compare(a, b).size == a.numel()
with pytest.raises(ValueError, match="shapes differ"):
    pair_sums(a, b[0])
with pytest.raises(InvalidArgument, match="a tensor of torch.int64: only float16"):
    pair_sums(torch.arange(3), torch.arange(3))
"""

COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from crosscheck.kernels.triton_pair import SMALLER, WARPS, _rows

for count, first, second, axes, scale in [
    ("i32", "*fp32", "*bf16", 2, 1.0),
    ("i64", "*fp64", "*fp16", 5, SMALLER),
]:
    kinds = [first, second, "*i64", "*i64", "*i64", "*fp64", "*fp64", count]
    source = ASTSource(
        fn=_rows,
        signature=dict(zip(_rows.arg_names, [*kinds, *["constexpr"] * 5])),
        constexprs={(8 + i,): value for i, value in enumerate((axes, scale, 1024, 32, 13))},
    )
    made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": WARPS})
    assert "cubin" in made.asm
"""


def run(code: str, **environment: str) -> None:
    root = str(Path(crosscheck.__file__).parent.parent)
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@needs_triton
def test_the_kernel_is_what_numpy_does() -> None:
    run(INTERPRETED, TRITON_INTERPRET="1")


@needs_triton
def test_the_kernel_compiles_for_a_gpu_that_is_not_here() -> None:
    run(COMPILED, TRITON_INTERPRET="0")


def test_without_triton_the_message_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tensor:
        """Anything that is not an array of the host."""

    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "crosscheck.kernels.triton_pair", raising=False)
    with pytest.raises(DeviceUnavailable, match="Tensor against ndarray: .* Fix: pip install trit"):
        compare(Tensor(), np.ones(3))
