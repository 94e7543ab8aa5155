"""The pytest plugin: the fixtures ``crosscheck`` and ``crosscheck_golden``, and a marker.

    @pytest.mark.crosscheck(seeds=[0, 1, 2], devices=["cpu", "cuda"])
    def test_port(crosscheck):
        crosscheck(TorchNet(), NumpyNet(), {"x": "float32[2,3,33,47]"})

    def test_release(crosscheck_golden):
        crosscheck_golden(build(), {"x": "float32[2,3,33,47]"})

Each fixture fails the test, with the report as its text, unless the verdict is ``agree``. Nothing
else of crosscheck is imported until a test asks for it. docs/pytest.md has the details.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from crosscheck.results import Report

__all__ = ["Checker", "GoldenChecker"]

_MARKER = (
    "crosscheck(seeds=[0, 1], devices=['cpu', 'cuda'], candidates=[...], pair=PATH, **options): "
    "what the test is parametrised over, and options of the crosscheck fixtures"
)


class Checker(Protocol):
    """The type of the fixture ``crosscheck``."""

    def __call__(
        self, reference: Any = None, candidate: Any = None, inputs: Any = None, **options: Any
    ) -> Report:
        """Check and assert; gives the report for further assertions."""


class GoldenChecker(Protocol):
    """The type of the fixture ``crosscheck_golden``."""

    def __call__(
        self, model: Any, inputs: Any = None, *, name: str | None = None, **options: Any
    ) -> Report:
        """Compare with the recorded run and assert."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The command line."""
    group = parser.getgroup("crosscheck", "checks of neural-network ports")
    group.addoption(
        "--crosscheck-seed",
        type=_seed,
        metavar="N",
        help="seed of inputs and cotangents in every check, whatever the tests say (default: 0)",
    )
    group.addoption(
        "--crosscheck-html", metavar="DIR", help="write an HTML page for each check that fails"
    )
    group.addoption(
        "--crosscheck-html-all", action="store_true", help="with --crosscheck-html: for every check"
    )
    group.addoption(
        "--crosscheck-update",
        action="store_true",
        help="write the traces that crosscheck_golden compares with",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", _MARKER)


def pytest_report_header(config: pytest.Config) -> str | None:
    """What the command line changes, so that a log can be replayed."""
    seed, html = config.getoption("--crosscheck-seed"), config.getoption("--crosscheck-html")
    parts = [] if seed is None else [f"seed {seed}"]
    parts += [f"pages in {html}"] if html else []
    parts += ["golden traces are written"] if config.getoption("--crosscheck-update") else []
    return f"crosscheck: {', '.join(parts)}" if parts else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise over the marker's ``seeds``, ``devices`` and ``candidates``."""
    if "_crosscheck_seed" not in metafunc.fixturenames:
        return
    from crosscheck.testing.marks import AXES, axis, marked

    options = marked(metafunc.definition)
    for key, fixture in AXES.items():
        values = axis(options, key, seed=metafunc.config.getoption("--crosscheck-seed"))
        if values is not None:
            ids = [f"seed{value}" if key == "seeds" else str(value) for value in values]
            metafunc.parametrize(fixture, values, ids=ids, indirect=True)


@pytest.fixture
def _crosscheck_seed(request: pytest.FixtureRequest) -> Any:
    return getattr(request, "param", None)


@pytest.fixture
def _crosscheck_device(request: pytest.FixtureRequest) -> Any:
    return getattr(request, "param", None)


@pytest.fixture
def _crosscheck_candidate(request: pytest.FixtureRequest) -> Any:
    return getattr(request, "param", None)


@pytest.fixture
def _crosscheck_axes(
    _crosscheck_seed: Any, _crosscheck_device: Any, _crosscheck_candidate: Any
) -> dict[str, Any]:
    return {
        "seed": _crosscheck_seed,
        "device": _crosscheck_device,
        "candidate": _crosscheck_candidate,
    }


@pytest.fixture
def crosscheck(request: pytest.FixtureRequest, _crosscheck_axes: dict[str, Any]) -> Checker:
    """`crosscheck.check`, failing the test unless both sides agree; takes a pair's path as well."""
    from crosscheck.testing.checking import Checking

    return Checking(request.node, _crosscheck_axes)


@pytest.fixture
def crosscheck_golden(
    request: pytest.FixtureRequest, _crosscheck_axes: dict[str, Any]
) -> GoldenChecker:
    """Compare a model with the trace of an earlier run, kept in __crosscheck__ beside the test."""
    from crosscheck.testing.golden import Golden

    return Golden(request.node, _crosscheck_axes)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show a divergence as its report, also one of ``report.raise_if_diverged()``; and why a check
    could not be made, without the calls in between (``--full-trace`` has them)."""
    report = yield
    errors = sys.modules.get("crosscheck.errors")  # not imported: nothing of ours was raised
    if call.excinfo is not None and errors is not None and report.failed:
        error = call.excinfo
        if isinstance(error.value, errors.Diverged):
            from crosscheck.testing.shown import shown

            report.longrepr = shown(error)  # type: ignore[arg-type]
        elif isinstance(error.value, errors.CrosscheckError) and not item.config.option.fulltrace:
            from crosscheck.testing.shown import refused

            report.longrepr = refused(error)  # type: ignore[arg-type]
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many pages were written; under xdist, all workers' together."""
    reports = [r for group in terminalreporter.stats.values() for r in group]
    properties = [p for r in reports for p in getattr(r, "user_properties", ())]
    pages = {value for name, value in properties if name == "crosscheck_html"}
    if pages:
        where = terminalreporter.config.getoption("--crosscheck-html")
        what = "page" if len(pages) == 1 else "pages"
        terminalreporter.write_line(f"crosscheck: {len(pages)} {what} in {where}")


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value
