"""A hand-written CUDA kernel as a layer, in Numba's CUDA simulator."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import numpy as np, torch, crosscheck
from models.kernels import numba_gelu

class Reference(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.linspace(-1, 1, 6))
    def forward(self, x):
        return torch.nn.functional.gelu(x + self.bias)

def check(wrong):
    layer = numba_gelu.BiasGelu(6)
    if wrong:
        backward = layer.backward
        layer.backward = lambda dy: backward(dy) * np.float32(1.001)
    report = crosscheck.check(Reference(), layer, "float32[5,6]")
    first = report.first_divergence
    print(report.verdict, first.phase if first else "-", len(report.sites))

check(False)
check(True)
"""


@pytest.mark.skipif(find_spec("numba") is None, reason="Numba is not installed")
@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
def test_a_kernel_in_the_simulator() -> None:
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    right, wrong = result.stdout.splitlines()[-2:]
    assert right.startswith("agree - ") and int(right.split()[-1]) >= 5, right
    assert wrong.startswith("diverge backward"), wrong
