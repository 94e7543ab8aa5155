"""Tiny pairs in NumPy, well-behaved and not, and ways to call the suite on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import crosscheck
from crosscheck.suite.engine import Watcher
from crosscheck.suite.jobs import Outcome, Task

ROOT = Path(crosscheck.__file__).parent.parent

PAIR = """
import os, signal, sys, time
import numpy as np
import crosscheck


class Net:
    def __init__(self, factor=1.0):
        self.W = np.linspace(-1, 1, 18).reshape(6, 3).astype("float32")
        self.b = np.ones(3, "float32")
        self.factor = np.float32(factor)

    def forward(self, x):
        return (x @ self.W + self.b) * self.factor


def right():
    return Net()


def wrong():
    return Net(1.01)

{code}

pair = crosscheck.Pair(
    reference=right, candidate={candidates}, inputs={{"x": "float32[5,6]"}}, gradients=False
)
"""

MODEL = "class Bad(Net):\n    def forward(self, x):\n        "
"""A candidate ``Bad`` whose forward pass is what follows."""

LOGGED = """
class Logged(Net):
    def __init__(self):
        super().__init__()
        self.log = os.path.join({folder!r}, "runs")

    def forward(self, x):
        self.x = x
        open(self.log, "a").write("f")
        return super().forward(x)

    def backward(self, d):
        open(self.log, "a").write("b")
        self.dW, self.db = self.x.T @ d, d.sum(0)
        return d @ self.W.T

class Port(Net):
    def forward(self, x):
        self.x = x
        return super().forward(x)

    backward = Logged.backward

    def __init__(self):
        super().__init__()
        self.log = os.devnull
"""
"""A reference whose runs are counted, forward and backward, and a port of it."""


def write_logged_pair(folder: Path, log: Path, names: str) -> None:
    """A pair whose candidates are all the same port."""
    write_pair(
        folder,
        LOGGED.format(folder=str(log)),
        "{" + ", ".join(f"'{name}': Port" for name in names) + "}",
    )
    text = (folder / "pair.py").read_text()
    text = text.replace("reference=right", "reference=Logged").replace(
        "gradients=False", "blind_spots=False"
    )
    (folder / "pair.py").write_text(text)


HANGS = (
    "import subprocess\n"
    + MODEL
    + "child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
    + "        open('pids', 'w').write(f'{os.getpid()} {child.pid} ')\n"
    + "        time.sleep(1000)"
)
"""Writes its own number and that of a child in a session of its own, then does nothing more."""


def write_pair(folder: Path, code: str = "", candidates: str = "{'right': right}") -> Path:
    """A folder with ``pair.py``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pair.py").write_text(PAIR.format(code=code, candidates=candidates))
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "crosscheck.cli", "suite", *arguments]


def environment() -> dict[str, str]:
    """One thread: a matrix of 18 numbers needs no more."""
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**os.environ, **threads, "PYTHONPATH": str(ROOT)}


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, as in a terminal's pipe."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def begin(
    folder: Path, *arguments: str, seconds: float = 60
) -> tuple[subprocess.Popen[str], list[int]]:
    """A suite that has come to the job that hangs (`HANGS`), and the processes of that job."""
    parent = subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job ignores SIGINT, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    pids = folder / "pids"
    assert eventually(lambda: pids.exists() and pids.read_text().count(" ") == 2, seconds)
    return parent, [int(pid) for pid in pids.read_text().split()]


def documents(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """(exit status, the result as JSON)"""
    done = call(folder, *arguments, "--json", "-", "-q")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def by_pair(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {job["pair"]: job for job in document["jobs"]}


def alive(pid: int) -> bool:
    """Whether a process runs (one that has ended and waits to be asked does not)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> bool:
    """Whether it comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())


VERDICT = {
    "kind": "verdict",
    "message": "",
    "details": [],
    "first_divergence": None,
    "reference": {"framework": "numpy"},
    "candidate": {"framework": "numpy"},
    "coverage": {},
    "effort": "thorough",
    "largest_ratio": 1.0,
    "peak_memory": 1,
}


@dataclass
class MadeUp:
    """An engine: every pair has two candidates; ``verdicts`` says what comes of them.

    ``"crashed"`` is a crash; for the pair ``"broken"`` also while it is loaded.
    """

    verdicts: dict[str, str] = field(default_factory=dict)
    files: list[str] | None = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def run(self, tasks: Sequence[Task], watcher: Watcher) -> Generator[Outcome, None, None]:
        for task in tasks:
            answer: dict[str, Any] | None = {"kind": "pair", "name": "p", "candidates": ["x", "y"]}
            if task.action == "list" and task.job.pair == "broken":
                answer = None
            if task.action == "check":
                self.ran.append(task.job.id)
                self.options.append(dict(task.options))
                self.groups.append(task.group)
                verdict = self.verdicts.get(task.job.candidate or "", "agree")
                answer = {**VERDICT, "verdict": verdict, "files": self.files, "page": "page"}
                answer = None if verdict == "crashed" else answer
            code = 0 if answer else -11
            yield Outcome(task, answer, "", code, False, 0.0, 0, "stage", "")

    def describe(self) -> dict[str, object]:
        return {}
