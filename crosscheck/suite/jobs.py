"""What the suite passes around: tasks for a worker, how they ended, results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

__all__ = [
    "FAILED",
    "NOT_SPLIT",
    "STATUSES",
    "Job",
    "JobResult",
    "Limits",
    "Outcome",
    "Status",
    "SuiteResult",
    "Task",
]

Status = Literal[
    "agree",
    "suspect",
    "diverge",
    "could-not-compare",
    "crashed",
    "timeout",
    "out-of-memory",
    "skipped",
]
STATUSES: tuple[Status, ...] = get_args(Status)
FAILED = frozenset({"could-not-compare", "crashed", "timeout", "out-of-memory"})
"""Statuses of jobs that have no verdict and should have one."""
NOT_SPLIT = "not split: "
"""How the line begins that says of a job why it has no parts."""


@dataclass(frozen=True)
class Limits:
    """What one job may use.

    Attributes:
        seconds: by the clock on the wall, from the start of its process.
        memory: bytes of resident memory, over its process and all that it started; None: any.
    """

    seconds: float = 300.0
    memory: int | None = None


@dataclass(frozen=True)
class Job:
    """One pair, candidate, seed and device.

    Attributes:
        path: what `crosscheck run` takes: a folder with ``pair.py``, or a Python file.
        pair: the pair's own name; the path's last part where the pair could not be loaded.
        candidate: None where the pair could not be loaded, and so has no known candidates.
        flags: further words of the command line that does this job alone.
        part: of a job that is split: its number, from 1, and how many there are.
    """

    path: str
    pair: str
    candidate: str | None
    seed: int = 0
    device: str = "cpu"
    flags: tuple[str, ...] = field(default=(), compare=False)
    part: tuple[int, int] | None = None

    @property
    def id(self) -> str:
        """``models/mlp::numpy::seed0``; the path alone where there are no known candidates."""
        if self.candidate is None:
            return self.path
        part = "::part{}of{}".format(*self.part) if self.part else ""
        return f"{self.path}::{self.candidate}::seed{self.seed}{part}"

    @property
    def title(self) -> str:
        """For a line of progress."""
        if self.candidate is None:
            return f"{self.pair} (load)"
        part = ", part {} of {}".format(*self.part) if self.part else ""
        seed = f", seed {self.seed}" if self.seed else ""
        return f"{self.pair}: {self.candidate}{seed}{part}"

    @property
    def command(self) -> str:
        """The command line that does this job alone, in the foreground."""
        import shlex

        words = ["crosscheck", "run", self.path]
        if self.candidate is not None:
            words += ["--candidate", self.candidate, "--seed", str(self.seed)]
        if self.device != "cpu":
            words += ["--device", self.device]
        words += self.flags
        return shlex.join(words)


@dataclass(frozen=True)
class Task:
    """What one worker process is asked.

    Attributes:
        action: ``"list"``: load the pair and name its candidates. ``"check"``: check the job's.
            ``"join"``: put the reports of its parts together.
        options: further arguments of `crosscheck.Pair.check`.
        html: where the report's page goes (a file or a URL); the worker gives it with its answer,
            as ``page``. None: no page is made.
        group: a name that tasks of one pair, seed, device and options have in common, whose
            reference then does the same; empty where there is but one of them.
        parts: to join: what the parts answered, in order.
    """

    action: Literal["list", "check", "join"]
    job: Job
    limits: Limits
    options: Mapping[str, Any] = field(default_factory=dict)
    html: str | None = None
    group: str = ""
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        answer: what the worker wrote before its end; None: nothing.
        stopped: why the engine ended it: ``"timeout"``, ``"memory"``, or ``""``: it ended itself.
        returncode: exit status, or minus the number of the signal that ended it.
        kernel_oom: whether the kernel's out-of-memory killer was at work meanwhile; None: unknown.
        seconds, peak_memory: used; memory in bytes, 0 where it was too quick to be seen.
        stage: what it said last that it does.
        output: the end of what it wrote to stdout and stderr.
        host: the machine, where it is another than the suite's own may be; else empty.
        began: when what it read was as it is now, at the latest, in seconds since the epoch; None:
            ``seconds`` ago.
    """

    task: Task
    answer: Mapping[str, Any] | None
    stopped: Literal["", "timeout", "memory"]
    returncode: int | None
    kernel_oom: bool | None
    seconds: float
    peak_memory: int
    stage: str
    output: str
    host: str = ""
    began: float | None = None


@dataclass(frozen=True)
class JobResult:
    """What is said of one job.

    Attributes:
        message: one line: where it first departs, or what the culprit did.
        details: more lines of the same, as the report words them.
        stage: the last stage it was in, for jobs without a verdict.
        signal: name of the signal that ended the process, if one did.
        exit_status: of the process, if it ended without a verdict, or afterwards with another
            than 0.
        output: the end of what the process wrote, for jobs without a verdict.
        first_divergence, reference, candidate_side: as in ``report.json``.
        largest_ratio: of all comparisons, to the rounding floor.
        coverage: as in ``report.json``, with numbers in place of lists of names; also ``sites``,
            how many comparisons there are, and ``gradients``, whether any of them is of one.
        effort: of the check that decided: ``"quick"`` or ``"thorough"``; empty without a verdict.
        html: the report's page, or the one that says why there is none, if it was written.
        files: what the result was made from (paths), as far as the worker could tell; None:
            more than it keeps count of.
        host: as in `Outcome`.
        resumed: taken from a log of an earlier run.
    """

    job: Job
    status: Status
    seconds: float
    peak_memory_bytes: int
    message: str = ""
    details: tuple[str, ...] = ()
    stage: str = ""
    signal: str | None = None
    exit_status: int | None = None
    output: str = ""
    first_divergence: Mapping[str, Any] | None = None
    largest_ratio: float | None = None
    reference: Mapping[str, Any] | None = None
    candidate_side: Mapping[str, Any] | None = None
    coverage: Mapping[str, Any] | None = None
    effort: str = ""
    html: str | None = None
    files: tuple[str, ...] | None = ()
    host: str = ""
    resumed: bool = False


@dataclass(frozen=True)
class SuiteResult:
    """All results, in the order of the jobs, and what was not run.

    Attributes:
        not_run: jobs left over by ``fail_fast`` or an interruption.
        environment: versions, machine and limits.
        require_all: a missing framework is a failure.
    """

    results: tuple[JobResult, ...]
    not_run: tuple[Job, ...]
    seconds: float
    environment: Mapping[str, Any]
    interrupted: bool = False
    require_all: bool = False

    def count(self, status: str) -> int:
        """How many jobs ended so."""
        return sum(r.status == status for r in self.results)

    @property
    def compared(self) -> int:
        """How many jobs have a verdict."""
        return sum(self.count(s) for s in ("agree", "suspect", "diverge"))

    @property
    def exit_status(self) -> int:
        """0 all agree; 1 the worst is suspect or diverge; 2 something that should have been
        compared was not, or nothing was; 130 interrupted."""
        if self.interrupted:
            return 130
        failed = any(self.count(s) for s in FAILED) or not self.compared
        if failed or (self.require_all and self.count("skipped")):
            return 2
        return 1 if self.count("suspect") or self.count("diverge") else 0
