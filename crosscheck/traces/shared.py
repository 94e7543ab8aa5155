"""Runs of one reference that checks in processes of their own share, through files.

The checks of several candidates on the same inputs begin alike: with the reference's free run,
forward and backward; where it is needed, also the free run in float64, and the run that shows each
layer's own VJP.
Whoever comes first makes a run and writes it; the others wait for the file and map it into memory.
In every check the reference itself stays a live model: it is forced, perturbed and altered as ever.

For that it has to be the reference of the file. Not only its parameters and inputs are compared: a
number that each process draws anew, unseeded, is part of both sides of one process. So every check
runs its own reference forward, and uses the file only where each value comes out bit for bit. That
is the cheapest of the runs; the others are what is saved. A reference that is compiled (JAX,
TensorFlow, ONNX) is another program without its backward pass: there every check makes the whole
free run, and takes the others from the files only where each value of it is the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from crosscheck.errors import CrosscheckError, InvalidArgument
from crosscheck.memory import Overlaid, is_limited
from crosscheck.oracle import oracle
from crosscheck.run import Runner
from crosscheck.taps import FORWARD, Kind
from crosscheck.trace import RunInfo, Trace
from crosscheck.traces.file import TensorFile, write_tensors
from crosscheck.traces.recorded import Renamed
from crosscheck.traces.runs import FLOAT64, FREE, VJPS, WANTED
from crosscheck.traces.stages import free_run

__all__ = ["Runs", "first_runs", "sharing"]

_CURRENT: ContextVar[_Shared | None] = ContextVar("crosscheck_shared_runs", default=None)
WAITS = "wait for the reference's runs, which another job makes"


@contextlib.contextmanager
def sharing(path: str | None, *, here: str = "") -> Iterator[None]:
    """Within it, the first runs of a check's reference come from a file, or go there.

    Args:
        path: of the file; None: nothing is shared. It is empty where there is nothing to share;
            further files beside it have longer names.
        here: what else the runs hang on, such as the processor; only runs of the same are taken.
    """
    token = _CURRENT.set(None if path is None else _Shared(path, here))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def first_runs(runner: Runner, say: Callable[[str], None]) -> Runs | None:
    """The runs of a reference, from the file that `sharing` names or made for it; None where
    nothing is shared: then each is made when it is needed."""
    shared, can = _CURRENT.get(), runner.adapter.capabilities
    if shared is None or not can.forcing or is_limited():
        return None
    return shared.runs(runner, say)


@dataclass(frozen=True)
class Runs:
    """What the reference does whatever the candidate is.

    Attributes:
        free: its free run.
    """

    free: Trace
    _place: _Place

    def float64(self, runner: Runner) -> Trace | None:
        """The free run in float64, without a backward pass; None if the reference has none."""
        return self._place.once(FLOAT64, lambda: oracle(replace(runner, cotangents=None)))

    def with_vjps(self, runner: Runner, make: Callable[[], Trace]) -> Trace:
        """The free run, with each layer's own VJP.

        Args:
            make: makes the run that shows them, and adds them.
        """
        shown = any(kind == "input_cotangent" for kind, _ in self.free.values)
        if shown or runner.cotangents is None:
            return make()  # which takes no run then
        found = self._place.once(VJPS, lambda: _only_vjps(make()))
        assert found is not None
        hidden = self.free.info.unobservable | found.info.unobservable
        info = replace(self.free.info, unobservable=hidden)
        return replace(self.free, values=Overlaid(self.free.values, found.values), info=info)


def _only_vjps(trace: Trace) -> Trace:
    values = {key: trace.values[key] for key in trace.values if key[0] == "input_cotangent"}
    info = RunInfo((), (), {}, {}, {}, unobservable=trace.info.unobservable)
    return Trace(values, info, trace.framework)


class _Shared:
    """The files, as one check uses them."""

    def __init__(self, path: str, here: str) -> None:
        self._path, self._here = path, here
        self._asked = False

    def runs(self, runner: Runner, say: Callable[[str], None]) -> Runs | None:
        """See `first_runs`. Only for the first inputs of a check: probes and seeds have others."""
        if self._asked:
            return None
        self._asked = True
        if not runner.adapter.capabilities.transparent:
            free = free_run(runner)
            known = cache(lambda: _fingerprint(runner, self._here) + _digest(free))
            return Runs(free, _Place(self._path, known, say))
        place = _Place(self._path, cache(lambda: _fingerprint(runner, self._here)), say)
        with place.locked(FREE):
            if not place.exists(FREE):
                made = place.make(FREE, lambda: free_run(runner))
                assert made is not None
                return Runs(made, place)
        found = place.read(FREE)
        return Runs(found, place) if found is not None and _comes_out(runner, found) else None


# -- which runs they are ---------------------------------------------------------------------------


def _fingerprint(runner: Runner, here: str) -> str:
    """A digest of all that the runs are made from, but the code."""
    adapter = runner.adapter
    facts = [adapter.framework, adapter.version, adapter.device, here, runner.seed, runner.train]
    named = [*runner.inputs.items(), *((p.name, p.value) for p in runner.parameters())]
    return _hashed(repr([*facts, runner.cotangents is not None]), named)


def _digest(free: Trace) -> str:
    """A digest of all that a free run has shown."""
    info = free.info
    more = [*info.parameter_gradients.items(), *info.buffers.items()]
    return _hashed("", [*((repr(key), value) for key, value in free.values.items()), *more])


def _hashed(facts: str, named: Iterable[tuple[str, np.ndarray]]) -> str:
    found = hashlib.blake2b(facts.encode())
    for name, value in named:
        found.update(f"\0{name}\0{value.dtype}\0{value.shape}\0".encode())
        found.update(value.tobytes())
    return found.hexdigest()


def _comes_out(runner: Runner, free: Trace) -> bool:
    """Whether the reference does here what it did there: every value of its forward pass, and what
    its outputs are given backward; ``runner`` then knows that."""
    compared = _Compared(free)
    compared.borrows = runner.adapter.capabilities.lends
    replace(runner, cotangents=None).run(compared, passive=True)
    forward = {key for key in free.values if key[0] in FORWARD}
    if not compared.equal or compared.seen != forward:
        return False
    if runner.cotangents is None:
        return True
    given = runner.cotangents(free.outputs())
    kept = {site: free.values.get(("cotangent", site)) for site in given}
    return all(kept[site] is None or _same(value, kept[site]) for site, value in given.items())


class _Compared:
    """An observer that compares a run with an earlier one, bit for bit."""

    borrows = False

    def __init__(self, earlier: Trace) -> None:
        self._earlier = earlier
        self.equal = True
        self.seen: set[tuple[Kind, str]] = set()

    def __call__(self, site: str, kind: Kind, value: np.ndarray) -> None:
        self.seen.add((kind, site))
        self.equal = self.equal and _same(value, self._earlier.values.get((kind, site)))


def _same(one: np.ndarray, other: np.ndarray | None) -> bool:
    if other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.tobytes() == other.tobytes()


# -- the file --------------------------------------------------------------------------------------

_INFO = ("inputs", "outputs", "layers", "sources", "parents")
_ARRAYS = ("parameter_gradients", "buffers")


@dataclass(frozen=True)
class _Place:
    """Where the runs of one fingerprint lie."""

    path: str
    fingerprint: Callable[[], str]
    say: Callable[[str], None]

    def once(self, run: str, make: Callable[[], Trace | None]) -> Trace | None:
        """A run from its file, or made for it; None if it cannot be made."""
        with self.locked(run):
            if not self.exists(run):
                return self.make(run, make)
        found = self.read(run)
        return make() if found is None else found

    def make(self, run: str, make: Callable[[], Trace | None]) -> Trace | None:
        """Make a run and write it. Where there is none, let the others find out all at once."""
        try:
            made = make()
        except CrosscheckError:
            self.leave_empty(run)
            raise
        if made is None:
            self.leave_empty(run)
        else:
            self.write(run, made)
        return made

    @contextlib.contextmanager
    def locked(self, run: str) -> Iterator[None]:
        """Hold a lock that ends with the process, however that ends."""
        import fcntl

        Path(f"{self.path}{run}{WANTED}").touch()
        with open(f"{self.path}{run}.lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.say(WAITS)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def exists(self, run: str) -> bool:
        """Whether it was made, or tried."""
        return os.path.exists(f"{self.path}{run}")

    def leave_empty(self, run: str) -> None:
        """There is nothing to share."""
        Path(f"{self.path}{run}").touch()

    def write(self, run: str, trace: Trace) -> None:
        """Write a run; nothing where no file can hold it."""
        tensors: dict[str, np.ndarray] = {}
        about = {"fingerprint": self.fingerprint(), **_described(trace, tensors)}
        try:
            write_tensors(f"{self.path}{run}", tensors, {"about": json.dumps(about)})
        except InvalidArgument:  # a dtype that has no form there; no room
            self.leave_empty(run)

    def read(self, run: str) -> Trace | None:
        """The run of this fingerprint; None if there is none."""
        path = f"{self.path}{run}"
        if not os.path.exists(path) or not os.path.getsize(path):
            return None
        file = TensorFile(path)
        about = json.loads(file.metadata["about"])
        return _trace_of(file, about) if about["fingerprint"] == self.fingerprint() else None


def _described(trace: Trace, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """What is said of a run; its arrays go to ``tensors``, by number."""

    def kept(value: np.ndarray) -> str:
        name = str(len(tensors))
        tensors[name] = value
        return name

    info = trace.info
    said: dict[str, Any] = {name: getattr(info, name) for name in _INFO}
    said["framework"] = trace.framework
    said["unobservable"] = sorted(info.unobservable)
    said["values"] = [(*key, kept(value)) for key, value in trace.values.items()]
    for arrays in _ARRAYS:
        said[arrays] = [(name, kept(value)) for name, value in getattr(info, arrays).items()]
    return said


def _trace_of(file: TensorFile, said: Mapping[str, Any]) -> Trace:
    info = RunInfo(
        inputs=tuple(said["inputs"]),
        outputs=tuple(said["outputs"]),
        layers=said["layers"],
        sources=said["sources"],
        parents=said["parents"],
        unobservable=frozenset((kind, site) for kind, site in said["unobservable"]),
        parameter_gradients=Renamed(file, dict(said["parameter_gradients"])),
        buffers=Renamed(file, dict(said["buffers"])),
    )
    values = Renamed(file, {(kind, site): name for kind, site, name in said["values"]})
    return Trace(values, info, said["framework"])
