"""Programs that run in Triton's interpreter, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import crosscheck

__all__ = ["interpreted", "report_the_same"]


def interpreted(program: str, argument: str) -> Any:
    """What a program prints last, as JSON."""
    root = str(Path(crosscheck.__file__).parent.parent)
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", program, argument],
        env=os.environ | {"PYTHONPATH": paths, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def report_the_same(here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Of each check by name: what its report says, with the numbers up to rounding."""
    for name, want in here.items():
        got = there[name]
        for exact in ("verdict", "first", "causes", "sites"):
            assert got[exact] == want[exact], (name, exact)
        for close in ("ratios", "errors"):
            assert got[close] == pytest.approx(want[close], rel=1e-6, nan_ok=True), (name, close)
