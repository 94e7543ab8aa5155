"""What is installed here, what it can do, and what is missing: `crosscheck doctor`.

Every framework is asked in a process of its own with a time limit, so that an installation that
raises, hangs or crashes is a line of the answer and not the end of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crosscheck.adapters.base import Capabilities
from crosscheck.errors import EXTRAS

__all__ = ["ADAPTERS", "Framework", "answer", "examine", "to_json"]

# What must be importable for an adapter to work, and its extra's other parts.
MODULES = {
    "torch": ("torch",),
    "keras": ("tensorflow", "keras"),
    "onnx": ("onnx", "onnxruntime"),
    "jax": ("jax", "jaxlib"),
    "cupy": ("cupy",),
}
# What an adapter can do for an ordinary model of its kind (tests compare it with the adapters).
ADAPTERS = {
    "numpy": Capabilities(),
    "torch": Capabilities(cuda=True),
    "keras": Capabilities(cuda=True),
    "tensorflow": Capabilities(cuda=True),
    "onnx": Capabilities(cotangents=False, train=False, cuda=True),
    "jax": Capabilities(cuda=True),
    "cupy": Capabilities(cuda=True),
}
_CHEAPER = {"transparent", "lends", "leaves_out"}  # how a run is made cheap, nothing to a user
_MARK = "@crosscheck-doctor "
_CHILD = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from crosscheck.doctor import answer; answer(sys.argv[2])"
)


@dataclass(frozen=True)
class Framework:
    """What was found out about one framework.

    Attributes:
        status: ``"ok"``, ``"missing"`` (not installed), ``"broken"`` (its import raised),
            ``"crashed"`` (its import killed the process) or ``"hung"`` (no answer in time).
        problem: one line: what is wrong and what to do; empty for ``"ok"``.
        versions, precision: name -> value.
        devices: the accelerators it sees.
    """

    name: str
    status: str
    problem: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    precision: dict[str, Any] = field(default_factory=dict)


def examine(names: Sequence[str] = tuple(MODULES), *, limit: float = 120.0) -> dict[str, Any]:
    """Look at this machine.

    Args:
        names: the frameworks to ask.
        limit: seconds that one framework may take to import and answer.

    Returns:
        ``{"machine": {...}, "driver": {...}, "frameworks": [Framework, ...]}``
    """
    with ThreadPoolExecutor(max_workers=max(1, min(len(names), os.cpu_count() or 1))) as pool:
        found = list(pool.map(lambda name: _ask(name, limit), names))
    return {"machine": _machine(), "driver": _driver(), "frameworks": found}


def answer(name: str) -> None:
    """In the child process: import the framework and print what it says of itself."""
    try:
        said = importlib.import_module(f"crosscheck.adapters.{name}.probe").probe()
    except Exception as error:  # a broken installation raises anything
        said = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    print(_MARK + json.dumps(said, default=str), flush=True)


def _ask(name: str, limit: float) -> Framework:
    missing = [module for module in MODULES[name] if not _is_installed(module)]
    extra = EXTRAS[name]
    install = f"pip install 'crosscheck[{extra}]'"
    if missing:
        return Framework(name, "missing", f"{' and '.join(missing)} not installed: {install}")
    command = [sys.executable, "-c", _CHILD, json.dumps(_search_path()), name]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        problem = f"its import gave no answer within {limit:g} s; reinstall: {install}"
        return Framework(name, "hung", problem)
    lines = [line for line in child.stdout.splitlines() if line.startswith(_MARK)]
    if not lines:
        problem = f"its import ended the process ({_ending(child)}); reinstall: {install}"
        return Framework(name, "crashed", problem)
    said = json.loads(lines[-1].removeprefix(_MARK))
    if "error" in said:
        return Framework(name, "broken", f"its import raised {said['error']}; reinstall: {install}")
    return Framework(
        name,
        "ok",
        versions=said["versions"],
        devices=tuple(said["devices"]),
        precision=said["precision"],
    )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # loaded by hand, without a spec
        return True


def _search_path() -> list[str]:
    """Where this process finds modules, so that the child finds the same ones."""
    return [os.path.abspath(entry) for entry in sys.path]


def _ending(child: subprocess.CompletedProcess[str]) -> str:
    if child.returncode < 0:
        try:
            return signal.Signals(-child.returncode).name
        except ValueError:
            return f"signal {-child.returncode}"
    last = child.stderr.strip().splitlines()[-1:]
    return f"exit status {child.returncode}{': ' + last[0] if last else ''}"


def _machine() -> dict[str, Any]:
    from crosscheck import __version__

    return {
        "crosscheck": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": np.__version__,
        "cpus": os.cpu_count(),
    }


def _driver() -> dict[str, Any]:
    """The NVIDIA driver, as the kernel tells it; whether a framework can use it is another thing"""
    version = Path("/proc/driver/nvidia/version")
    try:
        first = version.read_text().splitlines()[0]
    except (OSError, IndexError):
        first = "no NVIDIA driver is loaded"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {
        "nvidia": first.removeprefix("NVRM version: "),
        "CUDA_VISIBLE_DEVICES": "not set" if hidden is None else hidden,
    }


def to_json(found: dict[str, Any]) -> str:
    """The same as JSON (``schema`` 1), with the table of capabilities."""
    return json.dumps(
        {
            "schema": 1,
            "machine": found["machine"],
            "driver": found["driver"],
            "frameworks": {f.name: asdict(f) for f in found["frameworks"]},
            "adapters": {name: capabilities_of(c) for name, c in ADAPTERS.items()},
        },
        indent=2,
        default=str,
    )


def capabilities_of(capabilities: Capabilities) -> dict[str, bool]:
    """Every adapter runs forward; the rest is declared."""
    declared = {k: v for k, v in asdict(capabilities).items() if k not in _CHEAPER}
    return {"forward": True, "force": declared.pop("forcing"), **declared}
