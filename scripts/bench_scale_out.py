"""How the suite's throughput grows with the workers of a Ray cluster, on this machine.

    python scripts/bench_scale_out.py [--jobs 8] [--work 2] [--wait 10] [--repeat 3]
        [--suite suite.json] [--pairs 10000] [--gpus 100]

A cluster of one, then of two nodes with one core each runs the same jobs: tiny NumPy pairs that
first work for some seconds (a fixed number of additions on one core) or wait for them. Waiting
shows what the engine costs whatever else this machine does; working shows what there is to gain
here, and is set beside what the machine itself gives to two bare processes. Best of several.

With ``--suite``, what `crosscheck suite --json` wrote is extrapolated to many pairs and GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from crosscheck.suite.engine import Silent
from crosscheck.suite.jobs import Job, Limits, Outcome, Task
from crosscheck.suite.local import LocalEngine

ROUNDS = 2_000_000  # additions between two looks at the clock, when the work is measured out
DISPATCHED = 2000  # jobs, to see what the suite's own process can keep up with
PAIR = """
import time
import numpy as np
import crosscheck


class Net:
    W = np.eye(6, 3, dtype="float32")

    def forward(self, x):
        return x @ self.W


def work():
    total = 0
    for i in range({additions}):
        total += i
    return Net()


def wait():
    time.sleep({seconds})
    return Net()


pair = crosscheck.Pair(
    reference=Net,
    candidate={{"work": work, "wait": wait, "nothing": Net}},
    inputs={{"x": "float32[5,6]"}},
    gradients=False,
)
"""


def main() -> None:
    arguments = parsed()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        additions = measured_out(arguments.work)
        Path("pair.py").write_text(PAIR.format(additions=additions, seconds=arguments.wait))
        bare = best(arguments.repeat, lambda: bare_ratio(additions))
        print(f"machine: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        print(f"two bare processes for one: {bare:.2f} times the throughput")
        scale(arguments.jobs, arguments.repeat, bare)
        os.chdir("/")
    if arguments.suite:
        extrapolate(json.loads(Path(arguments.suite).read_text()), arguments.pairs, arguments.gpus)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=8, help="in each run")
    parser.add_argument("--work", type=float, default=2.0, help="seconds in each job that works")
    parser.add_argument("--wait", type=float, default=10.0, help="seconds in each that waits")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--suite", help="JSON of `crosscheck suite`, to extrapolate from")
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--gpus", type=int, default=100)
    given = parser.parse_args()
    if given.suite:
        given.suite = os.path.abspath(given.suite)
    return given


# -- the machine itself ----------------------------------------------------------------------------


def measured_out(seconds: float) -> int:
    """How many additions take so long on one core (by the time that the core was ours)."""
    began, total = time.process_time(), 0
    for i in range(ROUNDS):
        total += i
    return int(ROUNDS * seconds / (time.process_time() - began))


def bare_ratio(additions: int) -> float:
    """Throughput of two processes to that of one."""
    code = f"total = 0\nfor i in range({additions}): total += i"

    def seconds(count: int) -> float:
        began = time.monotonic()
        running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
        for process in running:
            process.wait()
        return time.monotonic() - began

    return 2 * seconds(1) / seconds(2)


def best(repeat: int, measure: Any) -> float:
    return max(measure() for _ in range(repeat))


# -- the engine ------------------------------------------------------------------------------------


def scale(jobs: int, repeat: int, bare: float) -> None:
    """Throughput with one and with two nodes, in turn."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0})
    found: dict[tuple[str, int], list[Run]] = defaultdict(list)
    cluster.add_node(**node)
    for _ in range(repeat):
        for workers in (1, 2):
            second = cluster.add_node(**node) if workers == 2 else None
            for kind in ("wait", "work", "nothing"):
                found[kind, workers].append(through_ray(cluster.address, kind, jobs, workers))
            if second is not None:
                cluster.remove_node(second)
    seconds, core = dispatched(cluster.address, DISPATCHED)
    cluster.shutdown()
    table(found, bare)
    quick = min(found["nothing", 1], key=lambda run: run.seconds)
    print(f"a job that has nothing to do: {quick.per_job:.2f} s in its process")
    print(f"beside it, of Ray and the engine: {quick.seconds / jobs - quick.per_job:.2f} s a job")
    print(
        f"{DISPATCHED} jobs whose answers are there at once: {DISPATCHED / seconds:.0f} a second; "
        f"{1000 * core / DISPATCHED:.1f} ms of a core each in the suite's own process"
    )
    alone = best(repeat, lambda: -local(jobs))
    print(f"the local engine, a job that has nothing to do: {-alone / jobs:.2f} s")


class Run:
    """What one run took.

    Attributes:
        seconds: all of it.
        per_job: seconds of a job's process, the median.
    """

    def __init__(self, seconds: float, outcomes: list[Outcome]) -> None:
        self.seconds = seconds
        self.per_job = sorted(o.seconds for o in outcomes)[len(outcomes) // 2]
        if not all(o.answer and o.answer.get("verdict") == "agree" for o in outcomes):
            raise SystemExit(f"a job did not agree: {[o.answer or o.output for o in outcomes]}")


def tasks(kind: str, count: int) -> list[Task]:
    jobs = [Job("pair.py", "pair", kind, seed) for seed in range(count)]
    return [Task("check", job, Limits(300.0, 2**30)) for job in jobs]


def through_ray(address: str, kind: str, jobs: int, workers: int) -> Run:
    from crosscheck.suite.ray_engine import RayEngine

    with RayEngine(address, ship=False) as engine:
        list(engine.run(tasks("nothing", 2 * workers), Silent()))  # Ray's own processes start
        began = time.monotonic()
        outcomes = list(engine.run(tasks(kind, jobs), Silent()))
        return Run(time.monotonic() - began, outcomes)


def dispatched(address: str, jobs: int) -> tuple[float, float]:
    """Seconds, and seconds of a core in this process, for jobs whose answers are there at once."""
    import ray

    from crosscheck.suite.ray_cluster import Needs, RayCluster
    from crosscheck.suite.ray_engine import RayEngine
    from crosscheck.suite.ray_tasks import Answer
    from crosscheck.suite.stamps import software

    class Empty(RayCluster):
        def start(self, task: Task, needs: Needs, attempt: int) -> Any:
            outcome = Outcome(task, {"kind": "none"}, "", 0, False, 0.0, 0, "", "")
            return answered.remote(Answer(outcome, software()))

    @ray.remote
    def answered(answer: Answer) -> Answer:
        return answer

    with RayEngine(cluster=Empty(address, ship=False), jobs=1000) as engine:
        list(engine.run(tasks("nothing", 4), Silent()))
        began, driver = time.monotonic(), time.process_time()
        list(engine.run(tasks("nothing", jobs), Silent()))
        return time.monotonic() - began, time.process_time() - driver


def local(jobs: int) -> float:
    began = time.monotonic()
    list(LocalEngine(1).run(tasks("nothing", jobs), Silent()))
    return time.monotonic() - began


def table(found: dict[tuple[str, int], list[Run]], bare: float) -> None:
    print(
        f"{'jobs that':10} {'1 worker':>10} {'2 workers':>10} {'ratio':>6} {'of the machine':>15}"
    )
    for kind in ("wait", "work"):
        one, two = (min(run.seconds for run in found[kind, workers]) for workers in (1, 2))
        share = f"{one / two / bare:.0%}" if kind == "work" else "-"
        print(f"{kind:10} {one:8.1f} s {two:8.1f} s {one / two:6.2f} {share:>15}")


# -- many pairs, many GPUs -------------------------------------------------------------------------


def extrapolate(document: dict[str, Any], pairs: int, gpus: int) -> None:
    """Seconds of jobs by what the candidate is written in, and how long many pairs would take."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for job in document["jobs"]:
        seconds[(job["candidate_side"] or {}).get("framework", "none")].append(job["seconds"])
    count = len({job["path"] for job in document["jobs"]})
    print(f"{count} pairs, {len(document['jobs'])} jobs: seconds of a job by its candidate")
    for framework, found in sorted(seconds.items()):
        mean = sum(found) / len(found)
        print(f"  {framework:8} {len(found):4} jobs, mean {mean:5.1f}, longest {max(found):5.1f}")
    a_pair = sum(map(sum, seconds.values())) / count
    print(f"a pair with all its candidates: {a_pair:.1f} s, so {pairs} pairs:")
    for shared in (1, 2, 4, 8):
        hours = pairs * a_pair / (gpus * shared) / 3600
        print(f"  {shared} jobs on each of {gpus} GPUs: {hours:5.2f} h")


if __name__ == "__main__":
    main()
