"""A user's folder, with all loaded that a check in it needs."""

from __future__ import annotations

import pytest

import crosscheck
import crosscheck.pair
import crosscheck.report.html
import crosscheck.sketches.file
import crosscheck.testing.checking
import crosscheck.testing.golden
import crosscheck.testing.shown

from .kit import NET, ROOT


@pytest.fixture(scope="module", autouse=True)
def everything_loaded() -> None:
    """pytester takes back what a test imports, which NumPy does not survive."""
    space: dict = {}
    exec(NET, space)
    report = crosscheck.check(space["Net"](), space["Net"](1.01), space["X"])
    assert report.verdict == "diverge" and str(report) and crosscheck.report.html.render(report)
    trace = crosscheck.record(space["Net"](), space["X"])
    assert crosscheck.check(trace, space["Net"]()).verdict == "agree"
    assert crosscheck.check(trace.sketch(20_000), space["Net"]()).verdict == "agree"


@pytest.fixture
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A user's folder, with a model in it."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # only ours, installed or not
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}")
    pytester.syspathinsert()
    pytester.makepyfile(net=NET)
    return pytester
