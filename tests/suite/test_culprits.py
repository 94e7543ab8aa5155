"""One suite in which everything happens at once: each culprit costs only itself, and is named."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.suite.kit import alive, call, write_pair

FORWARD = {
    "segfaults": "os.kill(os.getpid(), signal.SIGSEGV)",
    "hangs": "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)",
    "eats": "eat()",
    "exits": "sys.exit(0)",
    "exits_at_once": "os._exit(0)",
    "raises": "raise RuntimeError('out of luck \\x1b[31m')",
    "leaves": "leave()",
}
CODE = """
import subprocess

def eat():
    eaten = bytearray(600 << 20)
    time.sleep(1000)

def leave():
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    open("pids", "w").write(f"{os.getpid()} {child.pid} ")
    os._exit(3)

def cannot():
    net = Net()
    net.W = net.W[:, :2]
    return net

def needs_more():
    raise ModuleNotFoundError("no", name="cupy")
"""
CODE += "".join(
    f"class {name}(Net):\n    def forward(self, x):\n        {does}\n"
    for name, does in FORWARD.items()
)
BAD = {
    "segfaults": "crashed",
    "hangs": "timeout",
    "eats": "out-of-memory",
    "exits": "crashed",
    "exits_at_once": "crashed",
    "raises": "crashed",
    "leaves": "crashed",
    "cannot": "could-not-compare",
    "needs_more": "skipped",
}
LOADED = {
    "does_not_load": ("raise OSError('no such disk')", "crashed"),
    "crashes_while_loading": ("os.abort()", "crashed"),
    "no_pair": ("", "could-not-compare"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("culprits") / "models"
    write_pair(models / "bad", CODE, "{" + ", ".join(f"'{n}': {n}" for n in BAD) + "}")
    write_pair(models / "good", "", "{'agrees': right, 'diverges': wrong, 'again': Net}")
    for name, (code, _) in LOADED.items():
        write_pair(models / name, code)
    (models / "no_pair" / "pair.py").write_text("pair = 3\n")
    return models.parent


@pytest.fixture(scope="module")
def done(folder: Path) -> subprocess.CompletedProcess[str]:
    limits = ("--timeout", "10", "--memory", "400MiB", "--jobs", "3")
    return call(folder, *limits, "--json", "out.json", "--junit", "out.xml", "--html", "html")


@pytest.fixture(scope="module")
def document(folder: Path, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return json.loads((folder / "out.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def jobs(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By candidate, or by pair where that could not be loaded."""
    return {job["candidate"] or job["pair"]: job for job in document["jobs"]}


def test_every_job_is_run_and_named(document: dict[str, Any], jobs: Any, done: Any) -> None:
    assert done.returncode == 2
    expected = {**BAD, "agrees": "agree", "diverges": "diverge", "again": "agree"}
    expected |= {name: status for name, (_, status) in LOADED.items()}
    assert {name: job["status"] for name, job in jobs.items()} == expected
    order = [(job["pair"], job["candidate"]) for job in document["jobs"]]
    assert order == [
        *(("bad", name) for name in BAD),
        ("crashes_while_loading", None),
        ("does_not_load", None),
        ("good", "agrees"),
        ("good", "diverges"),
        ("good", "again"),
        ("no_pair", None),
    ]


def test_a_crash_says_where(jobs: Any) -> None:
    job = jobs["segfaults"]
    assert job["signal"] == "SIGSEGV"
    assert job["stage"].startswith("candidate")  # the first that runs it
    assert re.search(
        r"ended by SIGSEGV; last stage: candidate.*pair\.py:\d+ in forward", job["message"]
    )
    assert "Segmentation fault" in job["output"]


def test_a_hang_says_where(jobs: Any) -> None:
    job = jobs["hangs"]
    assert re.match(r"no result after 10 s; last stage: .*pair\.py:\d+ in forward$", job["message"])
    assert 10 <= job["seconds"] < 40


def test_eaten_memory_is_counted(jobs: Any) -> None:
    job = jobs["eats"]
    assert "more than the limit of 400 MiB" in job["message"]
    assert job["message"].endswith(" in eat")
    assert 400 * 2**20 < job["peak_memory_bytes"] < 4 * 2**30
    assert 20 * 2**20 < jobs["agrees"]["peak_memory_bytes"] < 400 * 2**20


def test_one_that_ends_itself(jobs: Any) -> None:
    assert "called sys.exit(0) before the result" in jobs["exits"]["message"]
    at_once = jobs["exits_at_once"]
    assert "without a result, with exit status 0" in at_once["message"]
    assert (at_once["exit_status"], at_once["signal"]) == (0, None)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see processes")
def test_what_a_job_leaves_running_is_ended(folder: Path, jobs: Any) -> None:
    assert jobs["leaves"]["exit_status"] == 3
    worker, child = (int(pid) for pid in (folder / "pids").read_text().split())
    assert not alive(worker) and not alive(child)


def test_what_was_raised_and_where(jobs: Any) -> None:
    message = jobs["raises"]["message"]
    assert "out of luck" in message and "\x1b" not in message
    assert re.search(r"pair\.py:\d+ in forward", message)
    assert "RuntimeError: out of luck" in jobs["raises"]["output"]
    for name in ("raises", "does_not_load", "hangs"):
        assert "pair.py" in jobs[name]["output"]
        assert "crosscheck/" not in jobs[name]["output"], jobs[name]["output"]
    assert jobs["does_not_load"]["candidate"] is None
    assert jobs["does_not_load"]["message"].startswith("OSError: no such disk (at ")
    assert jobs["crashes_while_loading"]["signal"] == "SIGABRT"
    assert "found a int" in jobs["no_pair"]["message"]


def test_a_missing_framework_is_no_failure(jobs: Any, done: Any) -> None:
    assert "pip install 'crosscheck[cupy]'" in jobs["needs_more"]["message"]
    assert "skipped models/bad::needs_more::seed0: needs the module `cupy`" in done.stdout


def test_the_divergence_is_located(jobs: Any) -> None:
    first = jobs["diverges"]["first_divergence"]
    assert (first["phase"], first["verdict"]) == ("forward", "diverge")
    assert jobs["diverges"]["message"].startswith("first at `output`")
    assert jobs["agrees"]["first_divergence"] is None
    assert jobs["agrees"]["reference"]["framework"] == "numpy"
    assert jobs["agrees"]["coverage"]["gradients"] is False
    assert jobs["agrees"]["coverage"]["sites"] > 2
    assert jobs["agrees"]["largest_ratio"] < 8 < 32 < jobs["diverges"]["largest_ratio"]


def test_the_schema(document: dict[str, Any]) -> None:
    assert list(document) == ["schema", "jobs", "not_run", "summary", "environment"]
    assert document["schema"] == 1
    summary = document["summary"]
    assert (summary["jobs"], summary["agree"], summary["diverge"]) == (15, 2, 1)
    assert (summary["crashed"], summary["skipped"], summary["exit_status"]) == (7, 1, 2)
    assert summary["jobs"] == sum(
        summary[status]
        for status in (
            "agree",
            "diverge",
            "could-not-compare",
            "crashed",
            "timeout",
            "out-of-memory",
            "skipped",
        )
    )
    assert document["environment"]["parallel_jobs"] == 3
    assert document["environment"]["memory_limit_bytes"] == 400 * 2**20


def test_junit(folder: Path, done: Any) -> None:
    root = ET.parse(folder / "out.xml").getroot()
    (suite,) = root.findall("testsuite")
    counted = {name: suite.attrib[name] for name in ("tests", "failures", "errors", "skipped")}
    assert counted == {"tests": "15", "failures": "1", "errors": "11", "skipped": "1"}
    cases = {case.attrib["name"]: case for case in suite.findall("testcase")}
    assert cases["diverges[seed0]"].attrib["classname"] == "models.good"
    failure = cases["diverges[seed0]"].find("failure")
    assert failure is not None and "first at `output`" in failure.attrib["message"]
    error = cases["segfaults[seed0]"].find("error")
    assert error is not None and error.attrib["type"] == "crashed"
    assert "crosscheck run models/bad --candidate segfaults" in (error.text or "")


def test_a_page_for_each_check(folder: Path, jobs: Any) -> None:
    """None where a framework is missing, and where no process was left to write it."""
    pages = {name: Path(job["html"]).read_text() for name, job in jobs.items() if job["html"]}
    assert set(pages) == {"agrees", "diverges", "again", "raises", "cannot", "exits"}
    assert len(list((folder / "html").glob("*-*.html"))) == 6
    assert "<html" in pages["diverges"]
    assert "one side raised" in pages["raises"] and "out of luck" in pages["raises"]
    assert "the two cannot be put side by side" in pages["cannot"]
    assert jobs["cannot"]["command"] in pages["cannot"]
    assert "called sys.exit" in jobs["exits"]["message"]


def test_plain_lines_where_there_is_no_terminal(done: Any) -> None:
    assert "\x1b" not in done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "... load 5 pairs"
    ended = [
        line for line in lines if re.match(r"(\d+/15 )?(agree|diverge|[a-z-]+): models/", line)
    ]
    assert len(ended) == 15
    assert any("agree: models/good::agrees::seed0 (" in line for line in lines)


def test_the_table(done: Any) -> None:
    header = done.stdout.splitlines()[0].split()
    assert header[:3] == ["pair", "candidate", "status"]
    assert "again: crosscheck run models/bad --candidate hangs --seed 0" in done.stdout
    closing = done.stdout.splitlines()[-1]
    assert closing.startswith("2 agree, 1 diverge, 2 could-not-compare, 7 crashed, 1 timeout, ")
