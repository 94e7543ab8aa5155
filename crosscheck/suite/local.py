"""The local engine: a process for each task, a few at a time, on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from crosscheck.errors import InvalidArgument
from crosscheck.suite.caches import compilation_cache
from crosscheck.suite.engine import Queue, Watcher
from crosscheck.suite.guardian import Guardian
from crosscheck.suite.jobs import Outcome, Task
from crosscheck.suite.processes import Process, Tree, kernel_oom_kills, snapshot
from crosscheck.suite.worker import START, THREADS

__all__ = ["LocalEngine", "Surroundings", "default_jobs", "worker_environment"]

TICK = 0.05  # seconds between two looks at the children
SAMPLE = 0.1  # seconds between two looks at their memory, at least
SHARE = 20  # of the parent's time, at most one part in so many goes into looking
LAST_WORDS = 1.0  # seconds to say where it was before it is killed
GRACE = 10.0  # seconds to end after the answer has been given
ABANDON = 30.0  # seconds after the kill, where even the kernel cannot end it
KEPT_OUTPUT = 32_768  # bytes
MOST_READS = 64  # of what has ended
SHARED_GPU = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
MEMORY_PER_JOB = 3 * 2**30  # bytes; what a job with two frameworks needs, with room


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def default_jobs() -> int:
    """As many as there are cores, at most 8, and no more than fit into memory."""
    try:
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return min(cores(), 8)
    return max(1, min(cores(), 8, installed // MEMORY_PER_JOB))


@dataclass(frozen=True)
class Surroundings:
    """What the process of a job is started with.

    Attributes:
        threads: for BLAS and OpenMP, unless their variables are set; None: the cores, shared out.
        folder: its current folder; None: this process's.
        search_path: for modules; None: this process's.
        variables: of its environment; None: this process's.
        shared: a folder for what the tasks of a group share; None: one that goes with the run.
    """

    threads: int | None = None
    folder: str | None = None
    search_path: tuple[str, ...] | None = None
    variables: Mapping[str, str] | None = None
    shared: str | None = None


class LocalEngine:
    """Runs each task in a process, session and temporary folder of its own.

    Args:
        jobs: how many run at a time.
    """

    def __init__(self, jobs: int, surroundings: Surroundings | None = None) -> None:
        self.jobs = jobs
        self._surroundings = surroundings or Surroundings()

    def describe(self) -> dict[str, object]:
        """See `Engine`."""
        return {"engine": "local", "parallel_jobs": self.jobs, "cpus": cores()}

    def run(self, tasks: Iterable[Task], watcher: Watcher) -> Generator[Outcome, None, None]:
        """See `Engine`."""
        if os.name != "posix":
            raise InvalidArgument(
                "the suite needs process groups, which this system does not have; run it under "
                "Linux or macOS (on Windows, in WSL), or use `crosscheck run` for each pair"
            )
        waiting = Queue.of(tasks)
        around = self._surroundings
        if around.threads is None:
            share = max(1, cores() // max(1, min(self.jobs, len(waiting))))
            around = replace(around, threads=share)
        crew = _Crew(waiting, self.jobs, around, watcher)
        orderly = False
        try:
            while crew.has_work():
                yield from crew.start()
                yield from crew.look_after()
            orderly = True
        finally:
            crew.close(orderly=orderly)


class _Crew:
    """The workers of one run of the suite, and the folder for what belongs to it."""

    def __init__(self, waiting: Queue, jobs: int, around: Surroundings, watcher: Watcher) -> None:
        self._waiting, self._jobs, self._watcher = waiting, jobs, watcher
        self._folder = tempfile.mkdtemp(prefix="crosscheck-")
        self._around = replace(around, shared=around.shared or self._folder)
        self._guardian = Guardian(self._folder)
        self._selector = selectors.DefaultSelector()
        self._running: list[_Child] = []
        self._look = _Look()

    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def start(self) -> Iterator[Outcome]:
        """Start as many tasks as there is room for; yields those that could not be started."""
        while self._waiting and len(self._running) < self._jobs:
            task = self._waiting.take()
            self._watcher.started(task.job)
            try:
                child = _Child(task, self._folder, self._around, self._selector, self._guardian)
            except OSError as error:  # no more processes or descriptors to be had
                self._forget(task)
                yield _not_started(task, error)
            else:
                self._running.append(child)

    def look_after(self) -> Iterator[Outcome]:
        """Read what the workers say for a moment, then look at each; yields those that ended."""
        for key, _ in self._selector.select(TICK):
            key.data()
        processes = self._look.if_due()
        for child in list(self._running):
            outcome = child.step(processes)
            self._watcher.stage(child.task.job, child.stage, child.memory)
            if outcome is not None:
                self._running.remove(child)
                self._forget(child.task)
                yield outcome

    def _forget(self, task: Task) -> None:
        """Remove what the tasks of a group shared, after the last of them."""
        group = self._waiting.ended(task)
        for path in Path(self._folder).glob(f"{group}*") if group else ():
            path.unlink(missing_ok=True)

    def close(self, *, orderly: bool) -> None:
        """End what still runs, and leave nothing behind."""
        for child in self._running:
            child.end()
        self._selector.close()
        self._guardian.close(orderly=orderly)
        shutil.rmtree(self._folder, ignore_errors=True)


def _not_started(task: Task, error: OSError) -> Outcome:
    reason = f"its process could not be started: {error}"
    return Outcome(task, None, "", None, None, 0.0, 0, "start", reason)


class _Look:
    """The table of processes, as often as looking is worth its time."""

    def __init__(self) -> None:
        self._next = 0.0

    def if_due(self) -> dict[int, Process] | None:
        start = time.monotonic()
        if start < self._next:
            return None
        processes = snapshot()
        now = time.monotonic()
        self._next = now + max(SAMPLE, SHARE * (now - start))
        return processes


class _Child:
    """One worker: started, watched, ended, judged by nobody here."""

    def __init__(
        self,
        task: Task,
        folder: str,
        around: Surroundings,
        selector: selectors.BaseSelector,
        guardian: Guardian,
    ) -> None:
        self.task, self.stage, self.memory = task, "start", 0
        self._guardian, self._selector = guardian, selector
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._answer = self._folder / "answer.json"
        self._output, self._unread = b"", b""
        self._peak = 0
        self._stopped: Literal["", "timeout", "memory"] = ""
        self._kill_at: float | None = None
        self._kill_answered_at: float | None = None
        self._oom_kills = kernel_oom_kills()
        self._began = time.monotonic()
        self._process, stages = self._started(around)
        self._tree = Tree(self._process.pid, mark=str(self._folder))
        guardian.watch(self._tree.groups)
        assert self._process.stdout is not None
        self._pipes: list[IO[bytes]] = [self._process.stdout, stages]
        for pipe, reader in zip(self._pipes, (self._read_output, self._read_stages), strict=True):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, reader)

    def _started(self, around: Surroundings) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        """The process, and the end of a pipe where it says which stage it has come to."""
        stages, theirs = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", START, str(self._write_job(theirs, around))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(theirs,),
                cwd=around.folder,
                env=worker_environment(self.task, around, self._folder),
            )
        except OSError:
            os.close(stages)
            raise
        finally:
            os.close(theirs)
        return process, os.fdopen(stages, "rb", 0)

    def _write_job(self, stages: int, around: Surroundings) -> Path:
        job = self.task.job
        search_path = sys.path if around.search_path is None else around.search_path
        text = json.dumps(
            {
                "action": self.task.action,
                "path": job.path,
                "candidate": job.candidate,
                "seed": job.seed,
                "options": dict(self.task.options),
                "command": job.command,
                "title": job.title,
                "page": self.task.html is not None,
                "shared": self._shared(around),
                "parts": self.task.parts,
                "answer": str(self._answer),
                "stages": stages,
                "search_path": [os.path.abspath(entry) for entry in search_path],
            }
        )
        path = self._folder / "job.json"
        path.write_text(text, encoding="utf-8")
        return path

    def _shared(self, around: Surroundings) -> str | None:
        """The file for the runs of the reference that the task's group shares."""
        if not self.task.group or around.shared is None:
            return None
        return os.path.join(around.shared, f"{self.task.group}.safetensors")

    # -- what it says ------------------------------------------------------------------------------

    def _read(self, pipe: IO[bytes]) -> bytes:
        with contextlib.suppress(BlockingIOError):
            data = os.read(pipe.fileno(), 65_536)
            if not data:  # nobody holds the other end any more
                self._selector.unregister(pipe)
            return data
        return b""

    def _read_output(self) -> bytes:
        data = self._read(self._pipes[0])
        self._output = (self._output + data)[-KEPT_OUTPUT:]
        return data

    def _read_stages(self) -> bytes:
        data = self._read(self._pipes[1])
        *lines, self._unread = (self._unread + data)[-KEPT_OUTPUT:].split(b"\n")
        if lines:
            self.stage = lines[-1].decode(errors="replace")
        return data

    # -- what becomes of it ------------------------------------------------------------------------

    def step(self, processes: Mapping[int, Process] | None) -> Outcome | None:
        """Look after it; how it ended, once it has."""
        now = time.monotonic()
        if self._process.poll() is not None:
            return self._outcome(now)
        if processes is not None:
            self.memory = self._tree.memory(dict(processes), self.task.limits.memory)
            self._peak = max(self._peak, self.memory)
            self._guardian.watch(self._tree.groups)
        if self._kill_at is not None:
            if now >= self._kill_at + ABANDON:
                return self._outcome(now)
            if now >= self._kill_at:
                self._tree.kill()
        elif self._answer.exists():
            if self._kill_answered_at is None:
                self._kill_answered_at = now + GRACE
            if now > self._kill_answered_at + ABANDON:
                return self._outcome(now)
            if now > self._kill_answered_at:
                self._tree.kill()
        elif self.task.limits.memory is not None and self.memory > self.task.limits.memory:
            self._stop("memory", now)
        elif now > self._began + self.task.limits.seconds:
            self._stop("timeout", now)
        return None

    def _stop(self, reason: Literal["timeout", "memory"], now: float) -> None:
        """An abort makes it write where each thread was; it need not obey, the kill will."""
        self._stopped, self._kill_at = reason, now + LAST_WORDS
        with contextlib.suppress(OSError):
            os.kill(self._process.pid, signal.SIGABRT)

    def _outcome(self, now: float) -> Outcome:
        answer = self._read_answer()
        self._finish()
        peak = answer.get("peak_memory", 0) if answer else 0
        kills = kernel_oom_kills()
        known = kills is not None and self._oom_kills is not None
        return Outcome(
            task=self.task,
            answer=answer,
            stopped=self._stopped if answer is None else "",
            returncode=self._process.returncode,
            kernel_oom=kills != self._oom_kills if known else None,
            seconds=now - self._began,
            peak_memory=max(self._peak, peak),
            stage=self.stage,
            output=self._output.decode(errors="replace"),
        )

    def _read_answer(self) -> dict[str, Any] | None:
        try:
            answer = json.loads(self._answer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return answer if isinstance(answer, dict) else None

    def _finish(self) -> None:
        """End what it left running, read what it said last, let go of everything."""
        self._tree.kill()
        self._guardian.forget(self._tree.groups)
        for pipe, read in zip(self._pipes, (self._read_output, self._read_stages), strict=True):
            for _ in range(MOST_READS):
                if pipe not in self._selector.get_map() or not read():
                    break
            if pipe in self._selector.get_map():
                self._selector.unregister(pipe)
            pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def end(self) -> None:
        """End it now; nothing is told."""
        self._tree.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._finish()


def worker_environment(task: Task, around: Surroundings, folder: Path) -> dict[str, str]:
    """The parent's, with one share of the cores, a temporary folder that goes when the job does,
    compiled programs kept for later jobs, and a GPU that no framework takes whole; what the user
    has set stays."""
    given = os.environ if around.variables is None else around.variables
    defaults = {**dict.fromkeys(THREADS, str(around.threads or 1)), "PYTHONUNBUFFERED": "1"}
    defaults |= compilation_cache(given)
    if task.job.device == "cuda":
        defaults |= SHARED_GPU
    return {**defaults, **given, "TMPDIR": str(folder)}
