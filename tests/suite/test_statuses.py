"""How a process ended -> what is said of the job; what the whole says of its jobs."""

from __future__ import annotations

import signal
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from crosscheck.errors import MissingFramework, SideFailed
from crosscheck.suite import junit, summary
from crosscheck.suite.classify import classify
from crosscheck.suite.jobs import Job, JobResult, Limits, Outcome, SuiteResult, Task
from crosscheck.suite.worker import failure
from tests.suite.kit import VERDICT

JOB = Job("models/mlp", "mlp", "numpy")
TASK = Task("check", JOB, Limits(5.0, 2**30))


def outcome(**facts: Any) -> Outcome:
    defaults: dict[str, Any] = {
        "answer": None,
        "stopped": "",
        "returncode": 0,
        "kernel_oom": False,
        "seconds": 2.0,
        "peak_memory": 3 * 2**29,
        "stage": "align",
        "output": "",
    }
    return Outcome(TASK, **{**defaults, **facts})


@pytest.mark.parametrize(
    ("facts", "status", "message"),
    [
        ({"stopped": "timeout", "returncode": -6}, "timeout", "no result after 5 s; last stage: a"),
        ({"stopped": "memory", "returncode": -6}, "out-of-memory", "held 1.5 GiB of memory, more"),
        ({"returncode": -9, "kernel_oom": True}, "out-of-memory", "killed by the kernel: the"),
        ({"returncode": -9, "kernel_oom": None}, "out-of-memory", "killed from outside, most like"),
        ({"returncode": -9}, "crashed", "its process was ended by SIGKILL; last stage: align"),
        ({"returncode": -11, "kernel_oom": True}, "crashed", "its process was ended by SIGSEGV"),
        ({"returncode": -63}, "crashed", "its process was ended by signal 63"),
        ({"returncode": 3}, "crashed", "its process ended with exit status 3; last stage: align"),
        ({"returncode": None, "stopped": "timeout"}, "timeout", "no result after 5 s"),
        ({"returncode": None, "seconds": 0.0, "output": "no more"}, "crashed", "no more"),
    ],
)
def test_without_an_answer(facts: dict[str, Any], status: str, message: str) -> None:
    result = classify(outcome(**facts))
    assert result.status == status
    assert result.message.startswith(message)
    code = facts["returncode"]
    named = code is not None and code < 0 and -code in set(signal.Signals)
    assert result.signal == (signal.Signals(-code).name if named else result.signal)


def test_a_crash_after_the_answer_is_told() -> None:
    answer = {**VERDICT, "verdict": "agree", "files": []}
    result = classify(outcome(answer=answer, returncode=-11))
    assert (result.status, result.signal) == ("agree", "SIGSEGV")
    assert result.details == ("after the answer its process was ended by SIGSEGV",)
    assert "ended by SIGSEGV" in printed(SuiteResult((result,), (), 1.0, {}))
    killed = classify(outcome(answer=answer, returncode=-9))
    assert killed.details[-1].endswith("did not end by itself, and was killed")
    assert classify(outcome(answer=answer)).details == ()


def test_output_is_made_harmless_and_short() -> None:
    text = "\x1b[2J\x1b]0;title\x07begin\rbar\n" + "line\n" * 100 + "x" * 999 + "last \x9b31m\n\n"
    shown = classify(outcome(returncode=1, output=text)).output.splitlines()
    assert len(shown) == 16 and len(shown[-1]) == 300 and shown[-1].endswith("xlast 31m")
    assert not set("".join(shown)) & set("\x1b\x07\r\x9b")


def test_of_a_dumped_stack_the_innermost_calls_are_shown() -> None:
    frames = [f'  File "net.py", line {n} in f' for n in range(50)]
    dump = ["noise", "Fatal Python error: Segmentation fault", ""]
    dump += ["Current thread 0x1 (most recent call first):", *frames, "", "Extension modules: x"]
    result = classify(outcome(returncode=-11, output="\n".join(["noise"] * 9 + dump)))
    shown = result.output.splitlines()
    assert shown[:4] == dump[:4] and shown[4:] == frames[:12]
    assert result.message.endswith("last stage: align, at net.py:0 in f")


class OutOfMemoryError(RuntimeError):
    """Named as a framework names its own."""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError("Unable to allocate 9 TiB"), "out-of-memory"),
        (OutOfMemoryError("CUDA"), "out-of-memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out-of-memory"),
        (RuntimeError("other"), "crashed"),
        (ImportError("x"), "crashed"),
        (SystemExit(0), "crashed"),
        (KeyboardInterrupt(), "crashed"),
        (MissingFramework("torch", needed_for="this"), "skipped"),
    ],
)
def test_exceptions(error: BaseException, status: str) -> None:
    assert failure(error)["status"] == status


def test_what_lies_behind_a_failed_side_counts() -> None:
    for cause, status in ((MemoryError("no"), "out-of-memory"), (ValueError("no"), "crashed")):
        failed = SideFailed("candidate", "fc1", stage="forward", framework="numpy", cause=cause)
        failed.__cause__ = cause
        assert failure(failed)["status"] == status


def whole(*statuses: str, **facts: Any) -> SuiteResult:
    jobs = [
        JobResult(Job("models/mlp", "mlp", name), name, 1.0, 2**20, message="why [red]")  # type: ignore[arg-type]
        for name in statuses
    ]
    return SuiteResult(tuple(jobs), (), 3.0, {}, **facts)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ((), 2),
        (("agree",), 0),
        (("agree", "skipped"), 0),
        (("skipped",), 2),
        (("agree", "suspect"), 1),
        (("agree", "diverge", "skipped"), 1),
        (("diverge", "could-not-compare"), 2),
        (("agree", "crashed"), 2),
        (("agree", "timeout"), 2),
        (("diverge", "out-of-memory"), 2),
    ],
)
def test_exit_status(statuses: tuple[str, ...], expected: int) -> None:
    assert whole(*statuses).exit_status == expected


def test_exit_status_of_all_required_and_of_the_interrupted() -> None:
    assert whole("agree", "skipped", require_all=True).exit_status == 2
    assert whole("agree", require_all=True).exit_status == 0
    assert whole("agree", interrupted=True).exit_status == 130


def test_junit_counts_what_is_required() -> None:
    counted = ET.fromstring(junit.dumps(whole("agree", "skipped", "suspect"))).attrib
    assert (counted["failures"], counted["errors"], counted["skipped"]) == ("1", "0", "1")
    counted = ET.fromstring(junit.dumps(whole("agree", "skipped", require_all=True))).attrib
    assert (counted["errors"], counted["skipped"]) == ("1", "0")


def test_junit_takes_any_text() -> None:
    hostile = JobResult(Job("a<b", "&", '"\x00\ud800'), "crashed", 0.0, 0, output="]]>\x1b\ufffe")
    text = junit.dumps(SuiteResult((hostile,), (), 0.0, {}))
    case = ET.fromstring(text.encode()).find("testsuite/testcase")
    assert case is not None and case.attrib["classname"] == "a<b"


def printed(result: SuiteResult) -> str:
    console = Console(width=120, highlight=False, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    summary.print_summary(result, console)
    return console.export_text()


def test_names_are_no_markup() -> None:
    assert "why [red]" in printed(whole("diverge"))


def test_the_last_line_says_why() -> None:
    assert printed(whole("skipped")).endswith("1 skipped; 1 job in 3.0 s; nothing was compared\n")
    assert "--require-all: what is skipped" in printed(whole("agree", "skipped", require_all=True))


def test_pairs_of_one_name_are_told_apart() -> None:
    two = [JobResult(Job(f"{x}/mlp", "mlp", "n"), "agree", 1.0, 1) for x in "ab"]
    text = printed(SuiteResult(tuple(two), (), 1.0, {}))
    assert "a/mlp" in text and "b/mlp" in text


def test_what_an_agreement_rests_on() -> None:
    facts: dict[str, Any] = {"largest_ratio": 1.234, "coverage": {"sites": 7, "gradients": False}}
    job = JobResult(JOB, "agree", 1.0, 1, **facts)
    assert "7 comparisons, largest ratio 1.2, no gradients" in printed(
        SuiteResult((job,), (), 1.0, {})
    )
