"""`run_suite`: find the pairs, list their candidates, run what is selected, keep every result."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crosscheck import __version__
from crosscheck.errors import InvalidArgument, capped
from crosscheck.suite.classify import classify
from crosscheck.suite.engine import Engine, Silent, Watcher
from crosscheck.suite.find import find_pairs
from crosscheck.suite.jobs import FAILED, Job, JobResult, Limits, Outcome, SuiteResult, Task
from crosscheck.suite.local import LocalEngine, default_jobs
from crosscheck.suite.log import Log
from crosscheck.suite.select import Selection, parse_selection, selects
from crosscheck.suite.split import run_in_parts
from crosscheck.suite.stamps import Stamps, versions
from crosscheck.suite.storage import is_url, join, write

__all__ = ["Wanted", "run_suite"]


@dataclass(frozen=True)
class Wanted:
    """What is to be run.

    Attributes:
        paths: folders and files, see `find_pairs`.
        keyword: see `parse_selection`; compared with ``path::candidate::seedN`` and the pair's
            name.
        candidates: only those of these names; empty: all.
        seeds: of inputs and cotangents; every candidate runs with each.
        device: ``"cpu"`` or ``"cuda"``.
        options: further arguments of `crosscheck.check`, in the types of JSON.
        limits: of each job.
        html: a folder for the reports' pages, or the URL of one; None: none are written.
        split: into so many parts each job is split (`crosscheck.suite.split`).
    """

    paths: Sequence[str | os.PathLike[str]]
    keyword: str = ""
    candidates: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    html: str | None = None
    split: int = 1


def run_suite(
    wanted: Wanted,
    *,
    engine: Engine | None = None,
    watcher: Watcher | None = None,
    resume: str | os.PathLike[str] | None = None,
    leave_out: Sequence[str] = (),
    fail_fast: bool = False,
    require_all: bool = False,
) -> SuiteResult:
    """Run every pair, candidate and seed in a process of its own.

    Args:
        engine: default: processes on this machine, as many as there are cores (at most 8).
        watcher: is told what happens.
        resume: a file (or a folder for one, or the URL of either) that keeps each verdict as it
            comes; those that it holds and that would come out the same are not computed again.
        leave_out: files that the caller writes: they are no part of a pair in whose folder they
            lie.
        fail_fast: end everything at the first job that neither agrees nor is skipped.
        require_all: a missing framework is a failure, and no reason to skip.

    Returns:
        All results in the order of the jobs. After an interruption (Ctrl-C): those that there are.

    Raises:
        InvalidArgument: there is no pair, nothing is selected, or an argument makes no sense.
    """
    started = time.monotonic()
    watcher = watcher or Silent()
    jobs = 1 if wanted.device == "cuda" else default_jobs()  # a GPU is not shared unasked
    engine = engine or LocalEngine(jobs)
    selection = parse_selection(wanted.keyword) if wanted.keyword.strip() else None
    pairs = find_pairs(wanted.paths)
    collected = _Collected(fail_fast=fail_fast)
    log = None
    if resume is not None:
        outputs = [*leave_out, str(resume), *([wanted.html] if wanted.html else [])]
        options = {"device": wanted.device, **wanted.options}
        stamps = Stamps(place for place in outputs if not is_url(place))
        log = Log(str(resume), stamps, options)
    try:
        _list_pairs(pairs, wanted, selection, engine, watcher, collected)
        _run_jobs(wanted, engine, watcher, log, collected)
    except KeyboardInterrupt:
        collected.interrupted = True
    finally:
        if log is not None:
            _close(log, watcher)
    return SuiteResult(
        results=tuple(collected.in_order()),
        not_run=tuple(job for job in collected.jobs if job not in collected.results),
        seconds=round(time.monotonic() - started, 3),
        environment=_environment(wanted, engine),
        interrupted=collected.interrupted,
        require_all=require_all,
    )


@dataclass
class _Collected:
    """Jobs in their order, results as they come."""

    fail_fast: bool
    jobs: list[Job] = field(default_factory=list)
    results: dict[Job, JobResult] = field(default_factory=dict)
    interrupted: bool = False

    def add(self, result: JobResult) -> None:
        self.results[result.job] = result

    @property
    def enough(self) -> bool:
        """Whether nothing more is to be started."""
        bad = (r for r in self.results.values() if r.status not in ("agree", "skipped"))
        return self.fail_fast and next(bad, None) is not None

    def in_order(self) -> list[JobResult]:
        return [self.results[job] for job in self.jobs if job in self.results]


# -- which jobs there are --------------------------------------------------------------------------


def _list_pairs(
    pairs: Sequence[str],
    wanted: Wanted,
    selection: Selection | None,
    engine: Engine,
    watcher: Watcher,
    collected: _Collected,
) -> None:
    """Load each pair in a process of its own; what cannot be loaded is a result already."""
    watcher.listing(len(pairs))
    tasks = [
        Task(
            "list",
            Job(path, Path(path).name.removesuffix(".py"), None, device=wanted.device),
            wanted.limits,
        )
        for path in pairs
    ]
    outcomes: dict[str, Outcome] = {}
    with closing(engine.run(tasks, watcher)) as ended:
        for outcome in ended:
            outcomes[outcome.task.job.path] = outcome
    known = set()
    flags = _flags(wanted.options)
    for task in tasks:
        outcome = outcomes[task.job.path]
        if outcome.answer is None or outcome.answer["kind"] != "pair":
            _not_loaded(outcome, selection, watcher, collected)
            continue
        name, candidates = outcome.answer["name"], outcome.answer["candidates"]
        known.update(candidates)
        collected.jobs += [
            job
            for candidate in candidates
            for seed in wanted.seeds
            if not wanted.candidates or candidate in wanted.candidates
            for job in [Job(task.job.path, name, candidate, seed, wanted.device, flags)]
            if selection is None or selects(selection, f"{job.id} {name}")
        ]
    _require_jobs(wanted, known, collected)


def _flags(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The options of a check as words for `crosscheck run`."""
    words = [] if options.get("gradients", True) else ["--forward-only"]
    for name in ("effort", "max_memory"):
        if name in options:
            words += [f"--{name.replace('_', '-')}", str(options[name])]
    return tuple(words)


def _not_loaded(
    outcome: Outcome, selection: Selection | None, watcher: Watcher, collected: _Collected
) -> None:
    """Its candidates are unknown: it is left out only if -k leaves it out whatever they are."""
    job = outcome.task.job
    if selection is not None and not selects(selection, job.id, complete=False):
        return
    result = classify(outcome)
    collected.jobs.append(job)
    collected.add(result)
    watcher.finished(result)


def _require_jobs(wanted: Wanted, known: set[str], collected: _Collected) -> None:
    missing = [name for name in wanted.candidates if name not in known]
    if missing and not collected.results:
        raise InvalidArgument(
            f"--candidate: no pair has a candidate {capped(missing)}; there are "
            f"{capped(sorted(known), 20)}"
        )
    if not collected.jobs:
        raise InvalidArgument(
            f"nothing is selected: no candidate matches -k {wanted.keyword!r}"
            if wanted.keyword
            else "the pairs have no candidates: there is nothing to run"
        )


# -- running them ----------------------------------------------------------------------------------


def _run_jobs(
    wanted: Wanted, engine: Engine, watcher: Watcher, log: Log | None, collected: _Collected
) -> None:
    tasks = []
    for job in collected.jobs:
        page = _page(wanted.html, job)
        kept = None if log is None or job in collected.results else log.find(job, html=page)
        if kept is not None:
            collected.add(kept)
        elif job not in collected.results:
            options = {"device": wanted.device, **wanted.options}
            tasks.append(Task("check", job, wanted.limits, options, page))
    tasks = _grouped(tasks, wanted.split)
    kept_jobs = [r for r in collected.results.values() if r.resumed]
    watcher.planned(len(collected.jobs), len(kept_jobs))
    for result in kept_jobs:
        watcher.finished(result)
    if collected.enough or not tasks:
        return
    split = wanted.split > 1
    run = run_in_parts(engine, tasks, wanted.split, watcher) if split else None
    with closing(run or engine.run(tasks, watcher)) as ended:
        for outcome in ended:
            result = _with_page(classify(outcome), outcome)
            collected.add(result)
            if log is not None:
                _keep(log, result, outcome, watcher)
            watcher.finished(result)
            if collected.enough:
                break


def _grouped(tasks: list[Task], parts: int) -> list[Task]:
    """The same tasks; those whose reference does the same know it of each other.

    Args:
        parts: of each task; its parts do the same.
    """
    names = [
        hashlib.sha256(
            json.dumps([t.job.path, t.job.seed, t.job.device, t.options], sort_keys=True).encode()
        ).hexdigest()[:16]
        for t in tasks
    ]
    several = {name for name, count in Counter(names).items() if count * parts > 1}
    return [
        replace(task, group=name) if name in several else task
        for task, name in zip(tasks, names, strict=True)
    ]


def _with_page(result: JobResult, outcome: Outcome) -> JobResult:
    """The same result, once its page is where it was to be."""
    if result.html is None or outcome.answer is None:
        return result
    try:
        write(result.html, outcome.answer["page"])
    except (InvalidArgument, OSError) as error:
        reason = " ".join(str(error).split())
        message = f"the report could not be written: {reason}"
        if (
            result.status in FAILED
        ):  # that is no verdict already, and the reason for it matters more
            return replace(result, details=(*result.details, message), html=None)
        return replace(result, status="could-not-compare", message=message, html=None)
    return result


def _keep(log: Log, result: JobResult, outcome: Outcome, watcher: Watcher) -> None:
    try:
        began = time.time() - outcome.seconds if outcome.began is None else outcome.began
        log.add(result, began=began)
    except OSError as error:  # a full disk costs the log, and not the suite
        watcher.note(f"{log.path}: {result.job.id} could not be kept ({error.strerror})")


def _close(log: Log, watcher: Watcher) -> None:
    try:
        log.close()
    except OSError as error:
        watcher.note(f"{log.path}: the last verdicts could not be kept ({error.strerror})")


def _page(folder: str | None, job: Job) -> str | None:
    """Where a job's report goes: a name made of its id, fit for every file system, and no other
    job's."""
    if folder is None or job.candidate is None:
        return None
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in job.id).strip("-.")
    digest = hashlib.sha256(job.id.encode()).hexdigest()
    return join(folder, f"{name[-120:]}-{digest[:6]}.html")


def _environment(wanted: Wanted, engine: Engine) -> dict[str, Any]:
    return {
        "crosscheck": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **versions(),
        **engine.describe(),
        "device": wanted.device,
        "options": dict(wanted.options),
        "split": wanted.split,
        "timeout_seconds": wanted.limits.seconds,
        "memory_limit_bytes": wanted.limits.memory,
    }
