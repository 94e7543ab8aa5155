"""What jobs of a group share between machines: made once, also when a machine dies."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import crosscheck
from crosscheck.inputs import make_inputs
from crosscheck.run import Runner
from crosscheck.suite import ray_shared, ray_tasks
from crosscheck.suite.ray_shared import Exchange, shared_folder, with_exchange
from crosscheck.suite.ray_tasks import Board
from crosscheck.traces.runs import RUNS, WANTED
from crosscheck.traces.shared import first_runs, sharing
from tests.suite.kit import eventually
from tests.suite.test_shared_runs import Net, X, check, runs


class Store:
    """A cluster in memory."""

    def __init__(self, *, lost: bool = False, slow: float = 0.0) -> None:
        self.board, self.lost, self.slow = Board(), lost, slow
        self.puts: list[bytes] = []
        self.given: list[str] = []
        self.gets = 0
        self.asked = False

    def claim(self, group: str, machine: str) -> Any:
        self.asked = True
        time.sleep(self.slow)
        return self.board.claim(group, machine)

    def put(self, group: str, path: Path) -> None:
        self.puts.append(path.read_bytes())
        self.given.append(path.name)
        self.board.keep(group, self.puts[-1])

    def get(self, handle: Any) -> bytes:
        if self.lost:
            raise RuntimeError("the node that held it is gone")
        self.gets += 1
        return bytes(handle)

    def release(self, group: str, machine: str) -> None:
        self.board.release(group, machine)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ray_shared, "PAUSE", 0.01)
    yield


def wanted(path: Path) -> None:
    """A job has come to the run."""
    Path(f"{path}{WANTED}").touch()


def machine(folder: Path, name: str) -> Path:
    (folder / name).mkdir(exist_ok=True)
    return folder / name / "group.safetensors"


def job(
    store: Store,
    path: Path,
    reference: Net,
    verdicts: list[str],
    wants: Callable[[Net], str] = lambda reference: check(Net(), reference)().verdict,
) -> threading.Thread:
    """One job on the machine of ``path``, in a thread."""

    def work() -> None:
        with ExitStack() as stack:
            for run in RUNS:
                stack.enter_context(Exchange(store, Path(f"{path}{run}")))
            stack.enter_context(sharing(str(path)))
            time.sleep(0.2)  # imports frameworks
            verdicts.append(wants(reference))

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_one_machine_makes_it_and_all_have_it(tmp_path: Path) -> None:
    store, verdicts = Store(), list[str]()
    references = [Net() for _ in range(6)]
    jobs = [
        job(store, machine(tmp_path, "abc"[i % 3]), reference, verdicts)
        for i, reference in enumerate(references)
    ]
    for thread in jobs:
        thread.join(30)
    assert verdicts == ["agree"] * 6
    assert sorted(runs(r)[1] > 0 for r in references) == [False] * 5 + [True]
    assert len(store.puts) == 1 and store.gets >= 2
    files = [machine(tmp_path, name).read_bytes() for name in "abc"]
    assert files == [store.puts[0]] * 3 and store.puts[0]


def in_float64(reference: Net) -> str:
    """The dtype of the reference's outputs in the shared float64 run."""
    runner = Runner("reference", crosscheck.adapt(reference), make_inputs(X, seed=0))
    runs = first_runs(runner, lambda line: None)
    assert runs is not None
    found = runs.float64(runner)
    assert found is not None
    return str(found.values["activation", "output"].dtype)


def test_the_float64_run_as_well(tmp_path: Path) -> None:
    """Each is made once."""
    store, dtypes = Store(), list[str]()
    jobs = [job(store, machine(tmp_path, name), Net(), dtypes, in_float64) for name in "abc"]
    for thread in jobs:
        thread.join(30)
    assert dtypes == ["float64"] * 3
    assert sorted(store.given) == ["group.safetensors", "group.safetensors.float64"]
    assert all(store.puts) and store.gets == 4


def test_nobody_is_asked_before_a_job_wants_it(tmp_path: Path) -> None:
    store = Store()
    with Exchange(store, machine(tmp_path, "a")):
        time.sleep(0.2)
    assert not store.asked


def test_the_lock_is_held_until_the_last_job_is_answered(tmp_path: Path) -> None:
    """One that ends while another one waits lets nobody make what another machine makes."""
    store, path = Store(), machine(tmp_path, "a")
    store.claim("group.safetensors", "b")
    wanted(path)
    with open(f"{path}.lock", "a") as lock, Exchange(store, path):
        with Exchange(store, path):
            time.sleep(0.2)
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_machine_that_makes_it_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_tasks, "GONE", 0.5)
    store, verdicts = Store(), list[str]()
    assert store.claim("group.safetensors", "dead") == "make"
    reference = Net()
    job(store, machine(tmp_path, "a"), reference, verdicts).join(30)
    assert verdicts == ["agree"] and runs(reference)[1] and len(store.puts) == 1


def test_a_cluster_that_answers_late(tmp_path: Path) -> None:
    """A job that is ready before the answer does not make what another machine makes."""
    store, verdicts = Store(slow=1.0), list[str]()
    references = [Net(), Net()]
    jobs = [
        job(store, machine(tmp_path, name), reference, verdicts)
        for name, reference in zip("ab", references, strict=True)
    ]
    for thread in jobs:
        thread.join(30)
    assert verdicts == ["agree"] * 2 and len(store.puts) == 1
    assert sorted(runs(r)[1] > 0 for r in references) == [False, True]


def test_its_job_fails(tmp_path: Path) -> None:
    """Another machine need not wait until it seems to be gone."""
    store = Store()
    wanted(machine(tmp_path, "a"))
    with Exchange(store, machine(tmp_path, "a")):
        assert eventually(lambda: store.asked, 5)
    assert store.claim("group.safetensors", "b") == "make"


def test_what_is_lost_with_a_machine_is_made_again(tmp_path: Path) -> None:
    store, verdicts = Store(lost=True), list[str]()
    store.board.keep("group.safetensors", b"gone")
    reference = Net()
    job(store, machine(tmp_path, "a"), reference, verdicts).join(30)
    assert verdicts == ["agree"] and runs(reference)[1]


def test_a_job_that_ends_first_still_gives_it(tmp_path: Path) -> None:
    store, path = Store(), machine(tmp_path, "a")
    wanted(path)
    with Exchange(store, path):
        assert eventually(lambda: store.asked, 5)
        path.write_bytes(b"")
    assert store.puts == [b""]


def test_forgotten_with_the_last_job() -> None:
    board = Board()
    for name in ("g.safetensors", "g.safetensors.float64", "h.safetensors"):
        board.keep(name, "handle")
        assert board.claim(name, "a") == ["handle"]
    board.forget("g")
    assert board.claim("h.safetensors", "b") == ["handle"]
    for name in ("g.safetensors", "g.safetensors.float64"):
        assert board.claim(name, "b") == "make"
        board.release(name, "other")
        assert board.claim(name, "a") == "wait"


def test_the_folder_goes_with_its_last_user(tmp_path: Path) -> None:
    with shared_folder(tmp_path / "s") as folder:
        with shared_folder(tmp_path / "s") as same:
            assert same == folder
        (folder / "kept").write_text("")
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_what_a_group_has_goes_with_its_last_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not with the last of all, of which there may be for days."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = Store()
    with with_exchange("s", "one", store) as one:
        with with_exchange("s", "two", store) as two:
            assert one is not None and two is not None and one != two
            assert Path(two).is_dir()
        assert Path(one).is_dir() and not Path(two).exists()
    assert list(tmp_path.iterdir()) == []
    with with_exchange("s", "", store) as none:
        assert none is None and list(tmp_path.iterdir()) == []
