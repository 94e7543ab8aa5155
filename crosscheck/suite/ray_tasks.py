"""What runs on the machines of a Ray cluster: one job, as the local engine does it.

The Ray worker itself imports neither a framework nor a pair's file: it starts the same child
process as `crosscheck.suite.local`, watches it, and gives back how it ended. So whatever a pair
does, the Ray worker lives; and when Ray ends the worker, the worker's guardian ends the child.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import crosscheck
from crosscheck.suite.engine import Silent
from crosscheck.suite.jobs import Job, Outcome, Task
from crosscheck.suite.local import LocalEngine, Surroundings
from crosscheck.suite.ray_shared import with_exchange
from crosscheck.suite.stamps import software

__all__ = ["Answer", "Board", "News", "RayStore", "Sent", "run_task", "shared_variables"]

PACKAGE = str(Path(crosscheck.__file__).parent)
GONE = 30.0  # seconds in which a machine asks again while it makes what others wait for
ANSWER = 60.0  # seconds for the board to answer; a job goes without what it shares then
PAUSE = 0.5  # seconds between two messages of one job, at least
BEHAVIOUR = (
    "CUBLAS_",
    "JAX_",
    "KERAS_",
    "MKL_",
    "NUMBA_",
    "NUMEXPR_",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_",
    "OPENBLAS_",
    "ORT_",
    "PYTHONHASHSEED",
    "TF_",
    "TORCH_",
    "XLA_",
)
"""How the names of variables begin that say what a framework does, and not where something is."""
PLACE = ("_DIR", "_FILE", "_HOME", "_PATH")
RAYS_OWN = ("RAY_", "PYTHONBREAKPOINT", "SPT_NOENV")


@dataclass(frozen=True)
class Sent:
    """What a job is started with on another machine.

    Attributes:
        folder: the suite's current folder.
        package: where its crosscheck lies.
        shipped: whether the machine has a copy of it, as the Ray worker's own current folder; else
            it sees the same files.
        threads: for BLAS and OpenMP.
        search_path: of the suite; None: the Ray worker's.
        variables: of the suite's environment.
        whole: whether these are all; else they are added to those of the Ray worker.
        session: of the suite, a name for what its jobs share on one machine.
    """

    folder: str
    package: str
    shipped: bool
    threads: int
    search_path: tuple[str, ...] | None
    variables: Mapping[str, str]
    whole: bool
    session: str = ""


@dataclass(frozen=True)
class Answer:
    """How a job ended on a machine, and with which versions of everything."""

    outcome: Outcome
    software: Mapping[str, str]


@dataclass(frozen=True)
class News:
    """What a job does at the moment.

    Attributes:
        attempt: how many of its processes were lost with a machine before.
        memory: bytes.
    """

    attempt: int
    host: str
    stage: str
    memory: int


class Board:
    """An actor: the jobs write on it what they do, the suite reads it. And it knows which machine
    makes what a group of jobs shares, and where in the object store that is."""

    def __init__(self) -> None:
        self._news: dict[Job, News] = {}
        self._makers: dict[str, tuple[str, float]] = {}
        self._handles: dict[str, list[Any]] = {}

    def put(self, job: Job, news: News) -> None:
        """Of one job, only the last is kept."""
        self._news[job] = news

    def take(self) -> dict[Job, News]:
        """What is new since the last call."""
        news, self._news = self._news, {}
        return news

    def claim(self, name: str, machine: str) -> Any:
        """See `Store`. Who makes it and has not asked for a while is gone."""
        if name in self._handles:
            return self._handles[name]
        now = time.monotonic()
        maker, asked = self._makers.get(name, (machine, now))
        if maker == machine or now > asked + GONE:
            self._makers[name] = machine, now
            return "make"
        return "wait"

    def release(self, name: str, machine: str) -> None:
        """See `Store`."""
        if self._makers.get(name, ("",))[0] == machine:
            del self._makers[name]

    def give(self, name: str, content: Any) -> None:
        """What the file holds. Put into the object store from here, it stays there when the machine
        that made it is gone."""
        import ray

        self.keep(name, ray.put(content))

    def keep(self, name: str, handle: Any) -> None:
        """What the file holds is in the object store."""
        self._handles[name] = [handle]  # in a list Ray passes it on as it is

    def forget(self, group: str) -> None:
        """All jobs of the group have ended: nobody needs it any more."""
        for known in (self._handles, self._makers):
            for name in [name for name in known if name.partition(".")[0] == group]:
                del known[name]


class RayStore:
    """The cluster's object store and its `Board`; see `crosscheck.suite.ray_shared.Store`."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def claim(self, name: str, machine: str) -> Any:
        import ray

        return ray.get(self._board.claim.remote(name, machine), timeout=ANSWER)

    def put(self, name: str, path: Path) -> None:
        import numpy as np
        import ray

        # An array, since the object store lends its memory for those, and for bytes does not.
        size = path.stat().st_size
        content = np.asarray(np.memmap(path, np.uint8, "r")) if size else np.empty(0, np.uint8)
        ray.get(self._board.give.remote(name, content))

    def get(self, handle: Any) -> Any:
        import ray

        return ray.get(handle)

    def release(self, name: str, machine: str) -> None:
        self._board.release.remote(name, machine)


def shared_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Those that mean the same on another machine."""
    return {
        name: value
        for name, value in variables.items()
        if name.startswith(BEHAVIOUR) and not name.endswith(PLACE)
    }


def run_task(task: Task, sent: Sent, board: Any, attempt: int) -> Answer:
    """Do one task on this machine, as `LocalEngine` does it.

    Args:
        board: a handle of a `Board`.
    """
    folder = os.getcwd() if sent.shipped else sent.folder
    around = Surroundings(sent.threads, folder, _search_path(sent), _variables(sent))
    teller = _Teller(board, attempt)
    with with_exchange(sent.session, task.group, RayStore(board)) as shared:
        engine = LocalEngine(1, replace(around, shared=shared))
        with closing(engine.run([task], teller)) as ended:
            outcome = next(ended)
    if sent.shipped:
        outcome = _at_home(outcome, {folder: sent.folder, PACKAGE: sent.package})
    return Answer(replace(outcome, host=platform.node()), software())


def _search_path(sent: Sent) -> tuple[str, ...]:
    if sent.search_path is not None:
        return sent.search_path
    return tuple(entry for entry in sys.path if "/ray/_private" not in entry)


def _variables(sent: Sent) -> dict[str, str]:
    here = {name: v for name, v in os.environ.items() if not name.startswith(RAYS_OWN)}
    if not sent.whole:
        return {**here, **sent.variables}
    gpus = {name: here[name] for name in ("CUDA_VISIBLE_DEVICES",) if here.get(name)}
    return {**sent.variables, **gpus}  # which GPUs a job may use, Ray says


def _at_home(outcome: Outcome, originals: Mapping[str, str]) -> Outcome:
    """The same outcome, speaking of the suite's files and not of this machine's copies.

    Args:
        originals: {folder here: the suite's}, the current folder first.
    """
    text = json.dumps([outcome.answer, outcome.output, outcome.stage])
    for copy, original in originals.items():
        for path in {copy, os.path.realpath(copy)}:
            text = text.replace(json.dumps(path)[1:-1], json.dumps(original)[1:-1])
    home = next(iter(originals.values()))
    answer, output, stage = json.loads(text)
    if answer is not None and answer.get("files") is not None:
        # What else it read lies on this machine, where the suite cannot look at it.
        answer["files"] = [file for file in answer["files"] if file.startswith(home + os.sep)]
    return replace(outcome, answer=answer, output=output, stage=stage)


class _Teller(Silent):
    """Passes on what a job does, but not each of the many times a second that it is looked at."""

    def __init__(self, board: Any, attempt: int) -> None:
        self._board, self._attempt = board, attempt
        self._next = 0.0

    def started(self, job: Job) -> None:
        self._tell(job, "start", 0)

    def stage(self, job: Job, stage: str, memory: int) -> None:
        if time.monotonic() >= self._next:
            self._tell(job, stage, memory)

    def _tell(self, job: Job, stage: str, memory: int) -> None:
        self._board.put.remote(job, News(self._attempt, platform.node(), stage, memory))
        self._next = time.monotonic() + PAUSE
