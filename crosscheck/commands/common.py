"""What the commands share: exit status, errors in one line, progress, reports."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, NoReturn

import click

from crosscheck.commands.again import command_line
from crosscheck.errors import CrosscheckError, InvalidArgument
from crosscheck.frames import plain, told, where

if TYPE_CHECKING:
    from crosscheck.results import Report

__all__ = [
    "INTERRUPTED",
    "deliver",
    "failures",
    "parse_inputs",
    "parse_layouts",
    "progress",
    "renderings",
    "show",
]

AGREE, DIFFER, NOT_COMPARED, INTERRUPTED = 0, 1, 2, 130


def parse_inputs(texts: tuple[str, ...]) -> dict[str, str]:
    """``NAME=SPEC`` texts -> {name: spec}."""
    found: dict[str, str] = {}
    for text in texts:
        name, separator, spec = text.partition("=")
        if not separator or not name.strip():
            raise InvalidArgument(f'--input {text!r}: write NAME=SPEC, such as x="float32[2,3]"')
        if name.strip() in found:
            raise InvalidArgument(f"--input {name.strip()} is given twice")
        found[name.strip()] = spec
    return found


def parse_layouts(texts: tuple[str, ...]) -> str | dict[str, str]:
    """``--candidate-inputs``: one layout for all inputs, or {name: layout}."""
    from crosscheck.candidate_inputs import LAYOUTS

    if len(texts) == 1 and texts[0] in LAYOUTS:
        return texts[0]
    found: dict[str, str] = {}
    for text in texts:
        name, separator, layout = text.partition("=")
        if not separator or layout not in LAYOUTS:
            raise InvalidArgument(
                f"--candidate-inputs {text!r}: write {' or '.join(LAYOUTS)}, once for all inputs "
                "or NAME=LAYOUT for each. Anything else takes a pair file, with a function"
            )
        found[name.strip()] = layout
    return found


def renderings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--markdown``, ``--junit`` and ``--verbose`` to a command that shows a report."""
    for option in (
        click.option("--verbose", "-v", is_flag=True, help="Show every comparison."),
        click.option("--junit", "junit_path", metavar="F", help="Write JUnit XML."),
        click.option(
            "--markdown",
            "markdown_path",
            metavar="F",
            help="Write Markdown, for a comment on a pull request; `-`: print it alone.",
        ),
    ):
        command = option(command)
    return command


def show(report: Report, json_path: str | None, *, verbose: bool = False) -> None:
    """The report on stdout: JSON alone for ``-``, else the page."""
    if json_path == "-":
        from crosscheck.report.json import dumps

        click.echo(dumps(report))
    else:
        from crosscheck.report.terminal import print_report

        print_report(report, verbose=verbose)


def write(
    report: Report,
    *,
    json_path: str | None = None,
    html_path: str | None = None,
    markdown_path: str | None = None,
    junit_path: str | None = None,
) -> None:
    """The files that were asked for; ``-`` is none."""
    from crosscheck.report.write import write_atomically

    if json_path not in (None, "-"):
        report.save_json(json_path)
    if html_path is not None:
        report.save_html(html_path)
    if markdown_path not in (None, "-"):
        from crosscheck.report.markdown import render

        write_atomically(markdown_path, render(report))
    if junit_path is not None:
        from crosscheck.report import junit

        write_atomically(junit_path, junit.render(report))


def deliver(
    report: Report,
    json_path: str | None,
    html_path: str | None,
    *,
    markdown_path: str | None = None,
    junit_path: str | None = None,
    verbose: bool = False,
    shown: bool = False,
) -> NoReturn:
    """Write the files that were asked for, show the report, end with its exit status.

    Args:
        shown: of a saved report: the command did what it should, whatever the verdict.
    """
    if not shown:
        report = report.with_command(command_line())
    with failures():
        if json_path == "-" == markdown_path:
            raise InvalidArgument(
                "--json - and --markdown -: stdout holds one; give a file for one"
            )
    # Shown first: a file that cannot be written does not take the report with it.
    if markdown_path == "-":
        from crosscheck.report.markdown import render

        click.echo(render(report), nl=False)
    else:
        show(report, json_path, verbose=verbose)
    with failures():
        write(
            report,
            json_path=json_path,
            html_path=html_path,
            markdown_path=markdown_path,
            junit_path=junit_path,
        )
    raise SystemExit(AGREE if shown or report.verdict == "agree" else DIFFER)


@contextmanager
def failures(html_path: str | None = None) -> Iterator[None]:
    """Whatever goes wrong is one line on stderr and exit status 2, never a verdict's.

    Args:
        html_path: where the report would have been written; a page that says why it was not.
    """
    try:
        yield
    except CrosscheckError as error:
        fail(error, html_path, at=where(error))
    except SystemExit as error:  # of the user's file; its status 0 would read as an agreement
        stopped = f"a file or model called sys.exit({error.code!r}) before the result"
        fail(InvalidArgument(stopped), html_path, at=where(error))
    except Exception as error:  # exit status 1 would read as a divergence
        click.echo(told(error), err=True, nl=False)
        fail(error, html_path)


def fail(error: BaseException, html_path: str | None = None, *, at: str = "") -> NoReturn:
    """One line on stderr, the page that was asked for, and exit status 2.

    Args:
        at: the line of the user's file; empty: nothing is said of it.
    """
    notes = [f"({note})" for note in getattr(error, "__notes__", ())]
    notes += [f"(at {at})"] if at else []
    text = plain(" ".join(f"{error} {' '.join(notes)}".split()))
    text += "" if html_path is None else _paged(error, html_path)
    click.echo(f"crosscheck: {type(error).__name__}: {text}", err=True)
    raise SystemExit(NOT_COMPARED)


def _paged(error: BaseException, html_path: str) -> str:
    """Write the page of an error; what keeps that from being written is said and hides nothing."""
    from crosscheck.report.html import render_failure
    from crosscheck.report.write import write_atomically

    try:
        write_atomically(html_path, render_failure(error, command=command_line()))
    except (CrosscheckError, OSError) as refused:
        return f" (and {' '.join(str(refused).split())})"
    return ""


class progress:  # noqa: N801  (a context manager that reads as a statement)
    """Stages on stderr as they begin: a spinner on a terminal, plain lines elsewhere.

    What the models print goes to stderr meanwhile: stdout is for the result.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._status: Any = None
        self._printed: Any = redirect_stdout(sys.stderr)

    def __enter__(self) -> Callable[[str], None]:
        self._printed.__enter__()
        if self._quiet:
            return lambda line: None
        if not sys.stderr.isatty():
            return lambda line: click.echo(f"... {line}", err=True)
        from rich.console import Console

        self._status = Console(stderr=True).status("loading")
        self._status.start()
        return lambda line: self._status.update(line)  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        if self._status is not None:
            self._status.stop()
        self._printed.__exit__(*error)
