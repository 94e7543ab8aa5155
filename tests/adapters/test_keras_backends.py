"""Keras on its other backends. The backend is fixed for a process, so each has one of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BACKENDS = ("torch", "jax")


def run(backend: str, *options: str) -> str:
    """Run the tests of one backend; give their summary."""
    for module in ("keras", backend):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, str(HERE / f"test_keras_{backend}.py"), *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)},
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_check(backend: str) -> None:
    assert "1 passed" in run(backend, "-k", "test_checks_of_a_port")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_contract(backend: str) -> None:
    summary = run(backend)
    assert "passed" in summary and "skipped" not in summary
