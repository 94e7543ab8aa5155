"""``crosscheck suite``: every pair below a folder, a table, one exit status."""

from __future__ import annotations

import io
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from crosscheck.commands.common import failures
from crosscheck.errors import InvalidArgument

if TYPE_CHECKING:
    from crosscheck.suite.engine import Engine, Watcher
    from crosscheck.suite.jobs import SuiteResult
    from crosscheck.suite.run import Wanted

__all__ = ["suite"]

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def size(context: click.Context, option: click.Parameter, value: str) -> int | None:
    """``8GiB``, ``500MB``, a number of bytes -> bytes; ``none`` -> None."""
    text = value.strip().lower()
    if text == "none":
        return None
    found = re.fullmatch(r"(\d+(?:\.\d*)?) *([kmg]i?)?b?", text)
    parsed = int(float(found[1]) * UNITS[found[2] or ""]) if found else 0
    if parsed <= 0:
        raise click.BadParameter(f"{value!r}: write a size such as 8GiB or 500MB, or none")
    return parsed


def seconds(context: click.Context, option: click.Parameter, value: float) -> float:
    """A limit of time that is one: nothing is ever longer than ``nan``."""
    if math.isnan(value):
        raise click.BadParameter("nan is no number of seconds")
    return value


def least(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """A `size` of at least 1 MiB, which is what a check takes for a limit: ``5`` was meant to be
    something else than bytes."""
    parsed = None if value is None else size(context, option, value)
    if value is not None and (parsed or 0) < UNITS["mi"]:
        raise click.BadParameter(f"{value!r}: write a size of at least 1 MiB, such as 2GiB")
    return parsed


def least_or_none(context: click.Context, option: click.Parameter, value: str) -> int | None:
    """The same, or ``none``."""
    return None if value.strip().lower() == "none" else least(context, option, value)


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(), metavar="[PATH]...")
@click.option(
    "-k",
    "keyword",
    default="",
    metavar="EXPRESSION",
    help="Only jobs whose name (path::candidate::seedN, or the pair's) has these words in it: "
    "`mlp and not (keras or jax)`.",
)
@click.option("--candidate", "candidates", multiple=True, metavar="NAME", help="Only these.")
@click.option("--seed", "given", multiple=True, type=click.IntRange(min=0), help="Repeatable.")
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Seeds 0 to N-1.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--forward-only", is_flag=True, help="Leave out cotangents and gradients.")
@click.option(
    "--effort",
    type=click.Choice(["quick", "thorough"]),
    help="quick: one free run of each side; thorough where that does not clear it. [default: what "
    "the pair says, else thorough]",
)
@click.option(
    "--max-memory",
    callback=least,
    metavar="SIZE",
    help="What the runs of each check may hold in memory; the rest goes to TMPDIR.",
)
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many at a time. [default: the cores, at most 8, as memory allows; 1 on cuda; with "
    "ray: what the machines have room for]",
)
@click.option(
    "--split",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Check each pair in N parts, each in a process of its own (PyTorch leaves out the layers "
    "of the other parts); as a whole where a part does not clear its stretch.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    callback=seconds,
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="For each job.",
)
@click.option(
    "--memory",
    callback=least_or_none,
    default="8GiB",
    show_default=True,
    metavar="SIZE",
    help="Resident memory of each job and all its processes; `none`: no limit.",
)
@click.option("--fail-fast", "-x", is_flag=True, help="End at the first job that does not agree.")
@click.option("--require-all", is_flag=True, help="A missing framework is a failure, not a skip.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="Of the Ray cluster, or `auto`. [default: $RAY_ADDRESS, or this machine alone]",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    metavar="N",
    help="ray: how often a job is started again when its machine is lost. [default: 3]",
)
@click.option(
    "--cpus-per-job",
    type=click.IntRange(min=1),
    metavar="N",
    help="ray: cores, and threads, of a job. [default: 1]",
)
@click.option(
    "--gpus-per-job",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="ray: of a job on cuda; less than 1 where several share a GPU. [default: 1]",
)
@click.option(
    "--no-ship",
    is_flag=True,
    help="ray: the machines see this folder under the same path; send no copy of it.",
)
@click.option(
    "--resume",
    metavar="F",
    help="Keep every verdict in F (or a URL) as it comes; compute only what F does not hold.",
)
@click.option("--json", "json_path", metavar="F", help="Write the result; `-`: print it.")
@click.option("--junit", "junit_path", metavar="F", help="Write JUnit XML.")
@click.option(
    "--html",
    "html_path",
    metavar="DIR",
    help="Write a report page for each job, and an overview, index.html.",
)
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def suite(
    paths: tuple[str, ...],
    given: tuple[int, ...],
    seeds: int | None,
    json_path: str | None,
    junit_path: str | None,
    html_path: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Check every candidate of every pair at and below each PATH (default: models/).

    A pair is a folder with pair.py, or a Python file that defines pair = crosscheck.Pair(...).
    Each job (pair, candidate, seed) runs in a process of its own: what crashes, hangs or eats
    memory costs only itself, and is named.

    \b
    Exit status:
      0    all agree
      1    the worst is suspect or diverge
      2    something crashed, hung, ran out of memory or could not be compared, or nothing was
      130  interrupted

    \b
    Examples:
      crosscheck suite
      crosscheck suite models -k "gpt or mlp" --seeds 3 --jobs 4
      crosscheck suite models --resume out/suite.jsonl --junit out/junit.xml --html out/reports
      crosscheck suite models --engine ray --address head:6379 --json s3://bucket/suite.json
    """
    from crosscheck.suite.run import run_suite

    with failures():
        written = [path for path in (json_path, junit_path) if path is not None and path != "-"]
        _require_places(written, html_path, options["resume"])
        wanted = _wanted(paths, _seeds(given, seeds), html_path, options)
        with _engine(options) as engine, _watcher(quiet) as watcher:
            result = run_suite(
                wanted,
                engine=engine,
                watcher=watcher,
                resume=options["resume"],
                leave_out=written,
                fail_fast=options["fail_fast"],
                require_all=options["require_all"],
            )
    _show(result, json_path)
    with failures():  # only now: what cannot be written does not cost what was found
        _write(result, json_path, junit_path)
        overview = _write_overview(result, html_path)
    if overview is not None and not quiet:
        click.echo(f"overview: {overview}", err=True)
    raise SystemExit(result.exit_status)


@contextmanager
def _engine(options: dict[str, Any]) -> Iterator[Engine | None]:
    """What runs the jobs; None: `run_suite`'s own choice."""
    names = {"cpus_per_job": "cpus", "gpus_per_job": "gpus", "address": "address"}
    names["retries"] = "retries"
    given = {name: options[option] for option, name in names.items() if options[option] is not None}
    if options["engine"] == "local":
        if given or options["no_ship"]:
            raise InvalidArgument(
                "--address, --retries, --cpus-per-job, --gpus-per-job and --no-ship are for "
                "--engine ray"
            )
        from crosscheck.suite.local import LocalEngine

        yield LocalEngine(options["jobs"]) if options["jobs"] else None
        return
    from crosscheck.suite.ray_engine import RayEngine

    with RayEngine(jobs=options["jobs"], ship=not options["no_ship"], **given) as engine:
        yield engine


def _require_places(files: list[str], folder: str | None, log: str | None) -> None:
    """Mistakes that need not wait until all jobs have run."""
    from crosscheck.report.write import require_place
    from crosscheck.suite.storage import filesystem, is_url

    for place in [*files, folder, log]:
        if place is not None and is_url(place):
            filesystem(place)
    for file in files:
        if os.path.isdir(file):
            raise InvalidArgument(f"{file}: is a folder; give a file")
    if len({os.path.realpath(file) for file in files}) < len(files):
        raise InvalidArgument(f"--json and --junit {files[0]}: one file for both; give two")
    if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):
        raise InvalidArgument(f"--html {folder}: is a file; give a folder for the reports")
    for file in [*files, *([] if folder is None else [os.path.join(folder, "page.html")])]:
        if not is_url(file):
            require_place(file)


def _wanted(
    paths: tuple[str, ...], seeds: tuple[int, ...], html: str | None, options: dict[str, Any]
) -> Wanted:
    from crosscheck.suite.jobs import Limits
    from crosscheck.suite.run import Wanted

    if options["split"] > 1 and options["effort"] == "quick":
        raise InvalidArgument(
            "--split is for thorough checks, whose forced runs can be split; drop --effort quick"
        )
    return Wanted(
        paths or ("models",),
        keyword=options["keyword"],
        candidates=options["candidates"],
        seeds=seeds,
        device=options["device"],
        options=_of_the_check(options),
        limits=Limits(options["timeout"], options["memory"]),
        html=html,
        split=options["split"],
    )


def _of_the_check(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `crosscheck.check`; what is not given is the pair's own."""
    given = {name: options[name] for name in ("effort", "max_memory") if options[name] is not None}
    return given | ({"gradients": False} if options["forward_only"] else {})


def _seeds(given: tuple[int, ...], count: int | None) -> tuple[int, ...]:
    if given and count is not None:
        raise InvalidArgument("give --seed or --seeds, not both")
    return tuple(dict.fromkeys(given)) or tuple(range(count or 1))


@contextmanager
def _watcher(quiet: bool) -> Iterator[Watcher]:
    from crosscheck.suite.engine import Silent

    if quiet:
        yield Silent()
        return
    from crosscheck.suite.live import Lines, LiveTable

    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Lines(lambda line: click.echo(line, err=True))
        return
    from rich.console import Console

    with LiveTable(Console(stderr=True)) as table:
        yield table


def _write(result: SuiteResult, json_path: str | None, junit_path: str | None) -> None:
    from crosscheck.suite import junit, summary
    from crosscheck.suite.storage import write

    if json_path is not None and json_path != "-":
        write(json_path, summary.dumps(result) + "\n")
    if junit_path is not None:
        write(junit_path, junit.dumps(result))


def _write_overview(result: SuiteResult, folder: str | None) -> str | None:
    """Where it is, or None: no pages are wanted."""
    if folder is None:
        return None
    from crosscheck.suite import overview
    from crosscheck.suite.storage import join, write

    path = join(folder, overview.NAME)
    write(path, overview.render(result))
    return path


def _show(result: SuiteResult, json_path: str | None) -> None:
    from crosscheck.suite import summary

    if json_path == "-":
        click.echo(summary.dumps(result))
    else:
        from rich.console import Console

        if isinstance(sys.stdout, io.TextIOWrapper):  # names that the encoding does not have
            sys.stdout.reconfigure(errors="backslashreplace")
        terminal = sys.stdout.isatty()
        console = Console(highlight=False, width=None if terminal else summary.WIDTH)
        summary.print_summary(result, console)
    if result.interrupted:
        ended = f"{len(result.results)} jobs had ended, what still ran was stopped"
        click.echo(f"crosscheck: interrupted: {ended}", err=True)
    elif not result.compared:
        click.echo("crosscheck: nothing was compared: " + summary.counts(result), err=True)
