"""The suite on a Ray cluster of three nodes: as on one machine, also with a node killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crosscheck.suite.engine import Silent
from crosscheck.suite.jobs import Job, Limits
from crosscheck.suite.run import Wanted, run_suite
from crosscheck.suite.summary import to_dict
from tests.suite import kit
from tests.suite.kit import (
    HANGS,
    MODEL,
    ROOT,
    alive,
    documents,
    eventually,
    write_logged_pair,
    write_pair,
)

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'crosscheck[ray]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see processes"),
]

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
FORWARD = {
    "segfaults": "os.kill(os.getpid(), signal.SIGSEGV)",
    "hangs": "time.sleep(1000)",
    "eats": "eat()",
    "exits": "sys.exit(0)",
    "raises": "raise RuntimeError('out of luck')",
}
CULPRITS = """
def eat():
    eaten = bytearray(600 << 20)
    time.sleep(1000)

""" + "".join(
    f"class {name}(Net):\n    def forward(self, x):\n        {does}\n"
    for name, does in FORWARD.items()
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))  # where crosscheck is not installed
        made = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
        for _ in range(2):
            made.add_node(**NODE)
        yield made
        ray.shutdown()
        made.shutdown()


def comparable(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A result without what two runs of one job differ in."""
    jobs = {}
    for job in document["jobs"]:
        kept = {k: v for k, v in job.items() if k not in ("seconds", "peak_memory_bytes", "host")}
        # How much memory it held, addresses of threads, how far the allocation was when seen.
        for key in ("message", "output"):
            kept[key] = re.sub(r"[\d.]+ [MG]iB of|0x[0-9a-f]+|\d+(?= in eat)", "*", kept[key])
        jobs[job["id"]] = kept
    return jobs


def test_the_same_results_as_on_this_machine(cluster: Any, tmp_path: Path) -> None:
    candidates = ", ".join(f"'{name}': {name}" for name in FORWARD)
    write_pair(tmp_path / "models" / "bad", CULPRITS, f"{{{candidates}}}")
    write_pair(tmp_path / "models" / "good", "", "{'agrees': right, 'diverges': wrong}")
    (tmp_path / "models" / "none").mkdir()
    (tmp_path / "models" / "none" / "pair.py").write_text("raise OSError('no such disk')")
    limits = ("--timeout", "15", "--memory", "400MiB", "--resume", "log.jsonl", "--html", "html")
    there = documents(tmp_path, *limits, "--engine", "ray", "--address", cluster.address)
    pages = {job["candidate"] for job in there[1]["jobs"] if job["html"]}
    assert pages == {"agrees", "diverges", "raises", "exits"}, [
        (job["candidate"], job["status"], job["message"]) for job in there[1]["jobs"]
    ]
    assert len(list((tmp_path / "html").glob("*-*.html"))) == len(pages)
    again = documents(tmp_path, *limits, "-k", "good and not none")
    assert [job["resumed"] for job in again[1]["jobs"]] == [True, True]
    (tmp_path / "log.jsonl").unlink()
    here = documents(tmp_path, *limits)
    assert there[0] == here[0] == 2
    assert comparable(there[1]) == comparable(here[1])
    assert {job["host"] for job in there[1]["jobs"]} == {os.uname().nodename}
    environment = there[1]["environment"]
    assert (environment["engine"], environment["machines"], environment["cpus"]) == ("ray", 3, 2)


def started(log: Path) -> Counter[int]:
    """How often each process has written its number."""
    return Counter(map(int, log.read_text().split() if log.exists() else ()))


class Killer(Silent):
    """Kills a node once a candidate runs on each of the two."""

    def __init__(self, cluster: Any, log: Path) -> None:
        self.cluster, self.log = cluster, log
        self.notes: list[str] = []
        self.killed = False

    def stage(self, job: Job, stage: str, memory: int) -> None:
        if not self.killed and sum(map(alive, started(self.log))) > 1:
            self.killed = True
            self.cluster.remove_node(self.cluster.worker_nodes.copy().pop(), allow_graceful=False)

    def note(self, line: str) -> None:
        """A job may still end, and its answer arrive, for a moment after its node was killed."""
        self.notes.append(line)
        if "started again" in line:
            gate(self.log).touch()


SLOW = (
    MODEL.replace("Bad", "Slow")
    + "import pathlib\n"
    + "        pathlib.Path({log!r}).open('a').write(f'{{os.getpid()}}\\n')\n"
    + "        while not os.path.exists({gate!r}):\n            time.sleep(0.05)\n"
    + "        return super().forward(x)\n"
)
"""Runs until the job that was lost with a node is started again."""


def gate(log: Path) -> Path:
    return log.with_name("gate")


def slow(log: Path) -> str:
    return SLOW.format(log=str(log), gate=str(gate(log)))


def test_a_node_is_killed_in_the_middle(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crosscheck.suite.ray_engine import RayEngine

    monkeypatch.chdir(tmp_path)
    log = tmp_path / "started"
    names = "abcd"
    write_pair(
        tmp_path / "models" / "slow",
        slow(log),
        "{" + ", ".join(f"'{n}': Slow" for n in names) + "}",
    )
    watcher = Killer(cluster, log)
    wanted = Wanted(["models"], limits=Limits(100.0, 2**30), options={"explain": False})
    with RayEngine(cluster.address, ship=False) as engine:
        result = run_suite(wanted, engine=engine, watcher=watcher)
    cluster.add_node(**NODE)
    assert watcher.killed
    assert [(r.job.candidate, r.status) for r in result.results] == [(n, "agree") for n in names]
    assert to_dict(result)["summary"]["agree"] == 4 and result.exit_status == 0
    again = [line for line in watcher.notes if "started again (1 of 3)" in line]
    assert len(again) == 1
    pids = started(log)
    assert len(pids) == 5  # four jobs, one of them twice
    assert eventually(lambda: not any(alive(pid) for pid in pids))


def test_parts_with_a_node_killed_in_the_middle(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each job has the result of the whole check, also the one that lost a part."""
    from crosscheck.suite.ray_engine import RayEngine

    monkeypatch.chdir(tmp_path)
    log = tmp_path / "started"
    write_pair(tmp_path / "models" / "p", slow(log), "{'a': Slow, 'b': Slow, 'wrong': wrong}")
    gate(log).touch()
    whole = run_suite(Wanted(["models"]))
    log.unlink()
    gate(log).unlink()
    watcher = Killer(cluster, log)
    wanted = Wanted(["models"], split=2, limits=Limits(100.0, 2**30))
    with RayEngine(cluster.address, ship=False) as engine:
        result = run_suite(wanted, engine=engine, watcher=watcher)
    cluster.add_node(**NODE)
    assert watcher.killed and result.exit_status == whole.exit_status == 1
    for one, other in zip(result.results, whole.results, strict=True):
        for name in ("job", "status", "message", "details", "coverage", "first_divergence"):
            assert getattr(one, name) == getattr(other, name), (one.job.id, name)
    notes = "\n".join(watcher.notes)
    assert notes.count("started again (1 of 3)") == 1
    assert re.search("wrong::seed0: part . of 2 did not clear it .*; checked as a whole", notes)
    assert notes.count("checked as a whole") == 1


def test_the_reference_is_made_once_for_all_machines(tmp_path: Path) -> None:
    """Two machines that do not see each other's temporary files: it goes by the object store."""
    from ray.cluster_utils import Cluster

    write_logged_pair(tmp_path / "models" / "p", tmp_path, "abcdef")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        made = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
        for name in "ab":
            (tmp_path / name).mkdir()
            made.add_node(**NODE, env_vars={"TMPDIR": str(tmp_path / name)})
        try:
            options = ("--engine", "ray", "--address", made.address, "--effort", "quick")
            status, document = documents(tmp_path, *options, "--no-ship")
        finally:
            made.shutdown()
    assert status == 0, document
    assert (tmp_path / "runs").read_text().count("b") == 1
    left = [p.name for name in "ab" for p in (tmp_path / name).glob("crosscheck-*")]
    assert left == []


def test_a_pair_that_kills_its_ray_worker(cluster: Any, tmp_path: Path) -> None:
    kills = MODEL + "os.kill(os.getppid(), signal.SIGKILL); time.sleep(1000)"
    write_pair(tmp_path / "models" / "bad", kills, "{'bad': Bad, 'right': right}")
    options = ("--engine", "ray", "--address", cluster.address, "--retries", "1", "--no-ship")
    status, document = documents(tmp_path, *options)
    bad, right = document["jobs"]
    assert (status, bad["status"], right["status"]) == (2, "crashed", "agree")
    assert "its Ray worker was lost 2 times" in bad["message"]


def begin(cluster: Any, folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    write_pair(folder / "models" / "b", HANGS, "{'right': right, 'bad': Bad}")
    engine = ("--engine", "ray", "--address", cluster.address, "--no-ship", "-j", "1")
    begun = kit.begin(folder, *engine, seconds=90)
    time.sleep(1)
    return begun


def test_interrupted(cluster: Any, tmp_path: Path) -> None:
    parent, pids = begin(cluster, tmp_path)
    parent.send_signal(signal.SIGINT)
    out, err = parent.communicate(timeout=90)
    assert parent.returncode == 130, err
    assert "interrupted: 1 agree, 1 not run" in out
    assert not any(alive(pid) for pid in pids)


def test_killed_outright(cluster: Any, tmp_path: Path) -> None:
    parent, pids = begin(cluster, tmp_path)
    parent.kill()
    parent.communicate()
    assert eventually(lambda: not any(alive(pid) for pid in pids))
