"""The benchmark of the Triton kernel is written for a GPU; here it runs in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_compare_device.py"


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(
        command, env=os.environ | more, capture_output=True, text=True, timeout=300
    )


def test_every_case_is_measured_and_missed_bars_are_told() -> None:
    tiny = ["--device", "cpu", "--elements", "0.004", "--repeats", "1", "--calls", "1"]
    done = run(*tiny, TRITON_INTERPRET="1")
    assert done.returncode == 1, done.stderr  # an interpreter reaches no bandwidth
    for case in ("float32, NHWC against NCHW", "bfloat16 against float32", "torch.allclose"):
        assert case in done.stdout
    assert "MISSED: float32, contiguous: 0% of the read bandwidth, not 55%" in done.stdout


def test_without_a_device_or_the_interpreter_it_says_so() -> None:
    done = run(CUDA_VISIBLE_DEVICES="-1")
    assert (done.returncode, "no CUDA device" in done.stderr) == (2, True)
    done = run("--device", "cpu", TRITON_INTERPRET="0")
    assert (done.returncode, "TRITON_INTERPRET=1" in done.stderr) == (2, True)
