"""A Ray cluster, as the engine sees it: start a job, what has ended, what went wrong.

Nothing else in the suite calls Ray.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from crosscheck.errors import InvalidArgument, MissingFramework
from crosscheck.suite.jobs import Job, Task
from crosscheck.suite.local import cores
from crosscheck.suite.ray_tasks import (
    PACKAGE,
    Answer,
    Board,
    News,
    Sent,
    run_task,
    shared_variables,
)

__all__ = ["Lost", "Needs", "RayCluster"]

HERE = "local"  # Ray's word for a cluster of its own on this machine
KNOCK = 5.0  # seconds for a machine to answer at its address
STORE = 200 * 2**20  # bytes of shared memory for a cluster of our own: pages are small
RAYS_THREAD = "ray_listen_error_messages"
END = 30.0  # seconds for jobs to end when they are told to
NOT_SENT = ["**/.*/", "**/__pycache__/", "**/node_modules/"]
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # What git ignores may be weights that a pair reads.
    "RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "1",
}


@dataclass(frozen=True)
class Needs:
    """What a job takes of a machine; Ray starts it where that much is free.

    Attributes:
        cpus: cores, which are also its threads.
        gpus: of one job on ``cuda``; a part of 1 where several share a GPU.
        memory: bytes.
    """

    cpus: float = 1.0
    gpus: float = 1.0
    memory: int = 0

    def of(self, task: Task) -> dict[str, float]:
        """In Ray's names for the resources of a machine."""
        gpus = self.gpus if task.job.device == "cuda" else 0.0
        return {"CPU": self.cpus, "GPU": gpus, "memory": float(self.memory)}


class Lost(Exception):
    """A job's Ray worker, its machine or its answer is gone; its pair need not be the culprit.

    Attributes:
        memory: Ray ended the worker because the machine's memory was full.
    """

    def __init__(self, reason: str, *, memory: bool) -> None:
        super().__init__(reason)
        self.memory = memory


class RayCluster:
    """A connection to a cluster, or to a new one on this machine.

    Args:
        address: ``host:port``, ``ray://host:port`` or ``auto``; None: what ``RAY_ADDRESS`` says,
            or a cluster of our own, which ends with the connection.
        ship: whether the cluster's machines are sent a copy of the current folder and of
            crosscheck; else they see the files of this one under the same paths.

    Raises:
        MissingFramework: Ray is not installed.
        InvalidArgument: there is no cluster, or it does not take us; says what to do.
    """

    def __init__(self, address: str | None, *, ship: bool) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ImportError as error:
            raise MissingFramework("ray", needed_for="crosscheck suite --engine ray") from error
        self._ray: Any = ray
        self.address = address or os.environ.get("RAY_ADDRESS") or HERE
        self.ships = ship and self.address != HERE
        self.sent_at = time.time()
        self._session = secrets.token_hex(8)
        self._quiet = contextlib.redirect_stdout(_WithoutRay(sys.stdout))
        self._connect()
        self._quiet.__enter__()
        self._run = ray.remote(run_task)
        self._board = self._new_board()

    # -- the connection ----------------------------------------------------------------------------

    def _connect(self) -> None:
        _knock(self.address)
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address == HERE:
            own = {"num_cpus": cores(), "object_store_memory": STORE, "include_dashboard": False}
            self._ray.init(address=HERE, **own, **quiet)
            return
        try:
            self._ray.init(self.address, runtime_env=_shipment() if self.ships else None, **quiet)
        except (ConnectionError, SystemExit) as error:  # what answers there is no Ray: it exits
            raise _no_cluster(self.address) from error
        except (RuntimeError, ValueError) as error:  # other versions; a folder that is too large
            raise InvalidArgument(
                f"the Ray cluster at {self.address} cannot be used: {_one_line(error)}\n"
                "  Fix: the same Python and Ray on every machine; if the current folder is too "
                "large to be sent, run in a smaller one, or use --no-ship where the machines see "
                "this folder under the same path"
            ) from error

    def _new_board(self) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        mine = self._ray.get_runtime_context().get_node_id()  # a machine that does not go before us
        place = NodeAffinitySchedulingStrategy(mine, soft=True)
        actor = self._ray.remote(Board)
        return actor.options(num_cpus=0, max_restarts=-1, scheduling_strategy=place).remote()

    def close(self) -> None:
        """Leave the cluster; what still runs there of ours is ended by Ray."""
        self._quiet.__exit__(None, None, None)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it has held back
            self._ray.shutdown()

    # -- its machines ------------------------------------------------------------------------------

    def machines(self) -> list[Mapping[str, float]]:
        """What each living machine has: cores, GPUs, bytes."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def fits(self, needs: Mapping[str, float]) -> bool:
        """Whether some machine has so much, were it idle."""
        return any(
            all(machine.get(name, 0.0) >= wanted for name, wanted in needs.items())
            for machine in self.machines()
        )

    # -- jobs --------------------------------------------------------------------------------------

    def start(self, task: Task, needs: Needs, attempt: int) -> Any:
        """Queue a job; the handle stands for its answer."""
        wanted = needs.of(task)
        options = {
            "num_cpus": wanted["CPU"],
            "num_gpus": wanted["GPU"],
            "memory": int(wanted["memory"]),
            "max_retries": 0,  # the engine counts them
            "name": task.job.id,
        }
        sent = self._sent(max(1, int(needs.cpus)))
        return self._run.options(**options).remote(task, sent, self._board, attempt)

    def _sent(self, threads: int) -> Sent:
        own = self.address == HERE
        variables = dict(os.environ) if own else shared_variables(os.environ)
        path = tuple(os.path.abspath(entry) for entry in sys.path)
        return Sent(
            folder=os.getcwd(),
            package=PACKAGE,
            shipped=self.ships,
            threads=threads,
            search_path=None if self.ships else path,
            variables=variables,
            whole=own,
            session=self._session,
        )

    def forget(self, group: str) -> None:
        """The last job of a group has ended; what they shared goes."""
        self._board.forget.remote(group)

    def ended(self, handles: Sequence[Any], seconds: float) -> list[Any]:
        """Those that have ended, after so many seconds at most."""
        return list(self._ray.wait(list(handles), num_returns=len(handles), timeout=seconds)[0])

    def answer(self, handle: Any) -> Answer:
        """Of a job that has ended.

        Raises:
            Lost: there is none.
        """
        from ray import exceptions

        try:
            answer: Answer = self._ray.get(handle)
        except exceptions.RayError as error:
            memory = isinstance(error, exceptions.OutOfMemoryError)
            raise Lost(_one_line(error), memory=memory) from error
        return answer

    def news(self) -> dict[Job, News]:
        """What jobs do, where that is new; nothing while it cannot be asked."""
        from ray import exceptions

        try:
            news: dict[Job, News] = self._ray.get(self._board.take.remote(), timeout=END)
        except (exceptions.RayActorError, exceptions.GetTimeoutError):  # it is started again
            return {}
        return news

    def cancel(self, handles: Iterable[Any]) -> None:
        """End these jobs, and return when they are gone."""
        left = list(handles)
        for force in (False, True):  # first so that they clean up
            for handle in left:
                with contextlib.suppress(ValueError):  # it has ended
                    self._ray.cancel(handle, force=force)
            if left:
                left = self._ray.wait(left, num_returns=len(left), timeout=END)[1]


def _knock(address: str) -> None:
    """Ray itself waits for minutes for a machine that is not there."""
    place = address.removeprefix("ray://")
    host, colon, port = place.rpartition(":")
    if not colon or not port.isdecimal():
        if place not in (HERE, "auto"):
            raise InvalidArgument(
                f"--address {address}: write host:port, ray://host:port, or auto for a cluster "
                "that runs on this machine"
            )
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address) from error


def _no_cluster(address: str) -> InvalidArgument:
    return InvalidArgument(
        f"no Ray cluster answers at {address}: start one with `ray start --head` and give the "
        "address that it prints, or leave out --address to use this machine alone"
    )


def _shipment() -> dict[str, Any]:
    """What every machine gets: the current folder and this crosscheck, without what is made again
    or installed there."""
    folder = os.getcwd()
    environments = [f"{path.parent.name}/" for path in Path(folder).glob("*/pyvenv.cfg")]
    excluded = [*NOT_SENT, *environments]
    return {"working_dir": folder, "py_modules": [PACKAGE], "excludes": excluded}


class _WithoutRay(io.TextIOBase):
    """A stream without what Ray's own thread prints of dead workers: the engine tells of them, and
    stdout may be JSON."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if threading.current_thread().name == RAYS_THREAD:
            return len(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


def _one_line(error: BaseException) -> str:
    """The first line that says something, without the traceback of the other machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    traced = [line for line in lines if not line.startswith(("File ", "^", "ray::", "Traceback"))]
    return (traced or lines or [type(error).__name__])[0][:400]
