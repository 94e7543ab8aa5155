"""The overview of a suite: every job is on it, what needs a look first, links lead to reports."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from crosscheck.suite import overview
from crosscheck.suite.jobs import Job, JobResult, Status, SuiteResult
from tests.suite.kit import call, write_pair


def result(name: str, status: Status, **facts: object) -> JobResult:
    made = JobResult(Job(f"ports/{name}", name, "torch", 0), status, 1.25, 3 * 2**28)
    return replace(made, **facts)  # type: ignore[arg-type]


def suite(*results: JobResult, **facts: object) -> SuiteResult:
    made = SuiteResult(results, (), 2.5, {"python": "3.11", "options": {}})
    return replace(made, **facts)  # type: ignore[arg-type]


AGREES = result("a", "agree", largest_ratio=0.73, html="out/a-1.html", coverage={"sites": 12})
DIVERGES = result(
    "b", "diverge", largest_ratio=2405.0, message="first at `fc`", html="s3://x/ü#.html"
)
CRASHED = result("c", "crashed", message="SIGABRT", output="\n<b>Fatal</b> error\n")
SKIPPED = result("d", "skipped", message="d needs jax")


def many(count: int) -> SuiteResult:
    """With something of everything, and long lines."""
    agreeing = [
        replace(AGREES, job=Job(f"ports/net{i}", "net", "torch", 0)) for i in range(count - 3)
    ]
    crashed = replace(CRASHED, output="x" * 500 + "\n" + "y " * 200, details=("z" * 300,))
    return suite(*agreeing, DIVERGES, crashed, SKIPPED, not_run=(Job("p" * 200, "p", "q", 0),))


def groups(page: str) -> dict[str, str]:
    found = re.findall(
        r'<details class="group"( open)?>\n<summary><b>(.*?)</b>(.*?)</details>', page, re.S
    )
    return {title: ("open " if is_open else "") + rest for is_open, title, rest in found}


def test_what_needs_a_look_is_open_and_first() -> None:
    page = overview.render(suite(AGREES, DIVERGES, CRASHED, SKIPPED))
    found = groups(page)
    assert list(found) == ["look at these", "agree", "skipped"]
    assert [title for title, text in found.items() if text.startswith("open")] == ["look at these"]
    assert "ports/b::torch::seed0" in found["look at these"] and "2.4e+03" in found["look at these"]
    assert "first at <code>fc</code>" in found["look at these"]
    assert "crosscheck run ports/b --candidate torch" in found["look at these"]
    assert "12 comparisons" in found["agree"] and "crosscheck run" not in found["agree"]
    assert "d needs jax" in found["skipped"]
    assert list(groups(overview.render(suite(AGREES)))) == ["agree"]
    assert groups(overview.render(suite(AGREES)))["agree"].startswith("open")


def test_links_lead_to_the_reports_beside_it() -> None:
    page = overview.render(suite(AGREES, DIVERGES, CRASHED))
    links = [link for link in re.findall(r'href="(.*?)"', page) if not link.startswith("#")]
    assert links == ["%C3%BC%23.html", "a-1.html"]


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (suite(AGREES), "agree"),
        (suite(AGREES, SKIPPED), "agree"),
        (suite(AGREES, DIVERGES), "diverge"),
        (suite(AGREES, result("e", "suspect")), "suspect"),
        (suite(DIVERGES, CRASHED), "failed"),
        (suite(SKIPPED), "failed"),
        (suite(), "nothing was run"),
        (suite(AGREES, interrupted=True), "interrupted"),
    ],
)
def test_the_heading_says_what_the_exit_status_does(made: SuiteResult, word: str) -> None:
    found = re.search(r'<span class="badge (\w+)">(.*?)</span>', overview.render(made))
    assert found is not None and found[2] == word
    agrees = made.exit_status == 0 and not made.interrupted
    assert (found[1] == "agree") == agrees


def test_text_from_files_is_no_markup() -> None:
    evil = "<script>alert(1)</script>"
    page = overview.render(
        suite(
            replace(CRASHED, message=evil, details=(evil,), job=Job(evil, evil, evil, 0)),
            not_run=(Job("p", "p", evil, 0),),
        )
    )
    assert evil not in page and page.count("<script>") == 1
    assert unescape(page).count(evil) >= 5
    assert "&lt;b&gt;Fatal" in page


def test_the_command_writes_it(tmp_path: Path) -> None:
    write_pair(tmp_path / "models" / "net", "", "{'agrees': right, 'diverges': wrong}")
    done = call(tmp_path, "--html", "out", "--jobs", "2")
    page = (tmp_path / "out" / "index.html").read_text()
    links = [link for link in re.findall(r'href="(.*?)"', page) if not link.startswith("#")]
    assert len(links) == 2 and all((tmp_path / "out" / link).is_file() for link in links)
    assert f"overview: {tmp_path / 'out' / 'index.html'}" in done.stderr
