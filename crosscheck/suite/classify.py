"""How a worker's process ended -> what is said of the job: its status, and what the culprit did."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from typing import Any

from crosscheck.frames import is_ours
from crosscheck.suite.jobs import JobResult, Outcome, Status

__all__ = ["classify", "gibibytes", "signal_name"]

TAIL_LINES = 16
LINE = 300  # characters
BEFORE_DUMP = 3  # lines in front of a dump of the stack: what happened
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$')
_NOISE = ("Extension modules:", "Fatal Python error: Aborted")


def classify(outcome: Outcome) -> JobResult:
    """The result of a check, or of a pair that could not be loaded."""
    answer = outcome.answer
    if answer is None:
        return _without_answer(outcome)
    if answer["kind"] == "error":
        where = f" (at {answer['where']})" if answer["where"] else ""
        failed = answer["status"] != "skipped"
        return _result(
            outcome,
            answer["status"],
            message=answer["message"] + where,
            stage=outcome.stage if failed else "",
            html=outcome.task.html if "page" in answer else None,
            output=_tail(outcome.output) if failed else "",
        )
    code = outcome.returncode
    return _result(
        outcome,
        answer["verdict"],
        message=answer["message"],
        details=(*answer["details"], *_after_the_answer(outcome)),
        first_divergence=answer["first_divergence"],
        largest_ratio=answer["largest_ratio"],
        reference=answer["reference"],
        candidate_side=answer["candidate"],
        coverage=answer["coverage"],
        effort=answer["effort"],
        signal=signal_name(-code) if code is not None and code < 0 else None,
        exit_status=code if code is not None and code > 0 else None,
        html=outcome.task.html,
    )


def _after_the_answer(outcome: Outcome) -> tuple[str, ...]:
    """A verdict stands, whatever the process does at its end; but it is told."""
    if outcome.returncode == -signal.SIGKILL:
        return ("its process gave this answer, did not end by itself, and was killed",)
    ended = _ending(outcome)
    return (f"after the answer {ended}",) if ended else ()


def _without_answer(outcome: Outcome) -> JobResult:
    status, did = _what_it_did(outcome)
    code = outcome.returncode
    where = _interrupted_at(outcome.output)
    message = f"{did}; last stage: {outcome.stage}" + (f", at {where}" if where else "")
    return _result(
        outcome,
        status,
        message=message,
        stage=outcome.stage,
        signal=signal_name(-code) if code is not None and code < 0 else None,
        exit_status=code if code is not None and code >= 0 else None,
        output=_tail(outcome.output),
    )


def _what_it_did(outcome: Outcome) -> tuple[Status, str]:
    limits, code = outcome.task.limits, outcome.returncode
    if outcome.stopped == "timeout":
        return "timeout", f"no result after {limits.seconds:g} s"
    if outcome.stopped == "memory":
        held, most = gibibytes(outcome.peak_memory), gibibytes(limits.memory or 0)
        return "out-of-memory", f"held {held} of memory, more than the limit of {most}"
    if code == -signal.SIGKILL and outcome.kernel_oom is not False:
        sure = "by the kernel: the machine ran out of memory"
        likely = "from outside, most likely by the kernel for want of memory"
        held = gibibytes(outcome.peak_memory)
        who = sure if outcome.kernel_oom else likely
        return "out-of-memory", f"killed {who} (it held {held})"
    return "crashed", _ending(outcome) or "its process ended without a result, with exit status 0"


def _ending(outcome: Outcome) -> str:
    """How the process ended, empty where that was in order."""
    code = outcome.returncode
    if code is None:
        return outcome.output if not outcome.seconds else "its process could not be ended"
    if code < 0:
        return f"its process was ended by {signal_name(-code)}"
    return f"its process ended with exit status {code}" if code else ""


def signal_name(number: int) -> str:
    """``SIGSEGV`` for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def gibibytes(size: int) -> str:
    """``1.5 GiB``, ``85 MiB``."""
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _result(outcome: Outcome, status: Status, *, message: str, **facts: Any) -> JobResult:
    answer: Mapping[str, Any] = outcome.answer or {}
    files = answer.get("files", ())
    return JobResult(
        job=outcome.task.job,
        status=status,
        seconds=round(outcome.seconds, 3),
        peak_memory_bytes=outcome.peak_memory,
        host=outcome.host,
        message=_CONTROL.sub("", message),
        files=None if files is None else tuple(files),
        **facts,
    )


def _tail(output: str) -> str:
    """The lines that matter most, without what would move a terminal's cursor or set colours."""
    text = _CONTROL.sub("", output.replace("\r\n", "\n").replace("\r", "\n"))
    lines = [line.rstrip()[-LINE:] for line in text.splitlines() if not line.startswith(_NOISE)]
    while lines and not lines[-1]:
        lines.pop()
    dumps = [i for i, line in enumerate(lines) if line.startswith("Current thread")]
    if dumps:  # of a stack, its innermost call first
        lines = lines[max(0, dumps[-1] - BEFORE_DUMP) :]
        lines = [line for line in lines if not _is_our_frame(line)][:TAIL_LINES]
    return "\n".join(lines[-TAIL_LINES:])


def _is_our_frame(line: str) -> bool:
    found = _FRAME.match(line)
    return found is not None and (found[1] == "<string>" or is_ours(found[1]))


def _interrupted_at(output: str) -> str:
    """Where the main thread was, from the traceback that a dying interpreter writes (each thread's
    innermost call first, the main thread last); empty where there is none."""
    lines = output.splitlines()
    starts = [i for i, line in enumerate(lines) if line.endswith("(most recent call first):")]
    current = [i for i in starts if lines[i].startswith("Current thread")] or starts
    if not current or current[-1] + 1 >= len(lines):
        return ""
    found = _FRAME.match(lines[current[-1] + 1])
    return f"{found[1]}:{found[2]} in {found[3]}" if found else ""
