"""The child process: reads one job, does it, writes one answer.

The job is a JSON file (its path is the only argument):

    {"action": "list" | "check" | "join", "path": ..., "candidate": ..., "seed": 0,
     "options": {...}, "command": "crosscheck run ...", "title": "pair: candidate", "page": false,
     "shared": F | null, "parts": [...], "answer": F, "stages": file descriptor | null,
     "search_path": [...]}

Before each stage a line is written to ``stages``. The answer is written to ``answer``, whole or
not at all; if there is none, the process ended too early and its exit status says how. One of

    {"kind": "pair", "name": ..., "candidates": [...]}
    {"kind": "verdict", "verdict": ..., ...}
    {"kind": "error", "type": ..., "status": ..., "message": ..., "where": ...}

each with "peak_memory" (bytes) and "files" (what it was made from; null: too many to tell). If that
was asked for, a verdict also comes with "page", the report as HTML, and an error with the page that
says why there is none. The verdict of a part comes with "part", its report as JSON.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crosscheck.errors import CrosscheckError, MissingFramework, SideFailed
from crosscheck.frames import chain, plain, told, where
from crosscheck.suite.caches import processor
from crosscheck.suite.sources import Sources
from crosscheck.suite.stamps import software

__all__ = ["START", "THREADS", "main"]

# How the parent starts it: with the parent's own search path, so that both find the same modules.
START = (
    "import json, sys; job = json.load(open(sys.argv[1], encoding='utf-8')); "
    "sys.path[:] = job['search_path']; "
    "from crosscheck.suite.worker import main; main(job)"
)
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)
OOM_SCORE = 500  # of 1000: before the suite, if memory runs out
OUT_OF_MEMORY = {"OutOfMemoryError", "ResourceExhaustedError"}
OUT_OF_MEMORY_TEXT = ("RESOURCE_EXHAUSTED", "DefaultCPUAllocator")


def main(job: Mapping[str, Any]) -> None:
    """Do the job and write its answer. Returns, or ends, as the pair's code makes it."""
    from crosscheck.report.write import write_atomically

    _prepare()
    sources = Sources(job["shared"])
    sources.watch()
    say = _stages(job["stages"])
    try:
        answer = DOES[job["action"]](job, say)
    except BaseException as error:  # whatever the pair's code raises is the answer
        answer = failure(error) | _page_of(error, job)
    answer |= {"peak_memory": _peak_memory(), "files": sources.files()}
    write_atomically(job["answer"], json.dumps(answer, default=str))


def _prepare() -> None:
    """A crash shows where it was, fills no disk, and comes before one of the parent's."""
    faulthandler.enable(all_threads=True)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    with contextlib.suppress(OSError, ValueError):  # Linux: whom the kernel ends first
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(max(int(score.read_text()), OOM_SCORE)))


def _stages(descriptor: int | None) -> Callable[[str], None]:
    def say(line: str) -> None:
        if descriptor is None:
            return
        with contextlib.suppress(OSError):  # the pair's code has closed it: then nobody knows
            os.write(descriptor, (" ".join(line.split())[:400] + "\n").encode())

    return say


def _listed(job: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    pair = _pair(job, say)
    names = [str(name) for name in pair.candidates()]
    return {"kind": "pair", "name": pair.name, "candidates": names}


def _pair(job: Mapping[str, Any], say: Callable[[str], None]) -> Any:
    from crosscheck.pair import load_pair, loading

    say(f"load {job['path']}")
    with loading(f"{job['path']}"):
        return load_pair(job["path"])


def _checked(job: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    from crosscheck.traces.shared import sharing

    pair = _pair(job, say)
    say(f"build {pair.name}: {job['candidate']}")
    options = {"seed": job["seed"], "progress": say, **job["options"]}
    with sharing(job["shared"], here=_surroundings()):
        report = pair.check(job["candidate"], **options)
    answer = _answer(report, job, say)
    if "part" in report.environment:  # a recorded run is compared as a whole
        from crosscheck.report.json import dumps

        answer["part"] = dumps(report)
    return answer


def _joined(job: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    from crosscheck.judging.parts import joined
    from crosscheck.report.load import loads

    say("put the parts together")
    return _answer(joined([loads(text) for text in job["parts"]]), job, say)


DOES = {"list": _listed, "check": _checked, "join": _joined}


def _answer(report: Any, job: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    answer = verdict(report)
    if job["page"]:
        from crosscheck.report.html import render

        say("write the report")
        answer["page"] = render(report.with_command(job["command"]))
    return answer


def _surroundings() -> str:
    """What rounding hangs on beside the model: runs of a reference are shared with equal ones."""
    threads = {name: os.environ.get(name) for name in THREADS}
    return f"{processor()} {threads} {sorted(software().items())}"


def verdict(report: Any) -> dict[str, Any]:
    """What the suite keeps of a report."""
    from dataclasses import replace

    from crosscheck.report.headline import headline
    from crosscheck.report.json import to_dict
    from crosscheck.report.words import Page, Unit

    page = Page(width=100, ascii=False, unit=Unit.of(report))
    lines = headline(replace(report, name=""), page)
    document = to_dict(report)
    sites, coverage = document["sites"], document["coverage"]
    return {
        "kind": "verdict",
        "verdict": report.verdict,
        "message": lines[0].text.partition(": ")[2],
        "details": [line.text for line in lines[1:]],
        "first_divergence": document["first_divergence"],
        "reference": document["reference"],
        "candidate": document["candidate"],
        "effort": report.environment.get("effort", ""),
        "largest_ratio": max((site["ratio"] for site in sites), default=None),
        "coverage": {
            "sites": len(sites),
            "gradients": any(s["phase"] in ("backward", "parameter_gradient") for s in sites),
            **{k: len(v) if isinstance(v, (list, dict)) else v for k, v in coverage.items()},
        },
    }


# -- what went wrong -------------------------------------------------------------------------------


def failure(error: BaseException) -> dict[str, Any]:
    """What is said of an exception: whose fault it is, in one line, and where it was raised."""
    text = plain(" ".join(str(error).split()))
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SystemExit):
        message = f"called sys.exit({error.code!r}) before the result"
    answer = {
        "kind": "error",
        "type": type(error).__name__,
        "status": _status(error),
        "message": message,
        "where": where(error),
    }
    if not isinstance(error, CrosscheckError) or error.__cause__ is not None:
        raised = error.__cause__ if isinstance(error, SideFailed) and error.__cause__ else error
        print(told(raised), file=sys.stderr, end="")  # the parent shows the end of it
    return answer


def _page_of(error: BaseException, job: Mapping[str, Any]) -> dict[str, str]:
    """The page of an error, if one is wanted; what keeps it from being made hides nothing."""
    if not job["page"] or _status(error) == "skipped":
        return {}
    try:
        from crosscheck.report.html import render_failure

        return {"page": render_failure(error, name=job["title"], command=job["command"])}
    except Exception:  # out of memory, say
        traceback.print_exc()
        return {}


def _status(error: BaseException) -> str:
    if any(_is_out_of_memory(e) for e in chain(error)):
        return "out-of-memory"
    if isinstance(error, MissingFramework):
        return "skipped"
    if isinstance(error, CrosscheckError) and not isinstance(error, SideFailed):
        return "could-not-compare"
    return "crashed"


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ in OUT_OF_MEMORY:
        return True
    return any(text in str(error) for text in OUT_OF_MEMORY_TEXT)


def _peak_memory() -> int:
    """Bytes that this process held at most, or 0. (Not ``ru_maxrss`` where there is better: on
    Linux a process begins with its parent's.)"""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ImportError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024
    return 0


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
