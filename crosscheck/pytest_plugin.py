"""The pytest plugin: a ``crosscheck`` fixture.

    def test_port(crosscheck):
        crosscheck(TorchNet(), NumpyNet(), {"x": "float32[2,3,33,47]"})

The fixture is `crosscheck.check` that fails the test, with the report as its text, unless the
verdict is ``agree``. Nothing else of crosscheck is imported until a test asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from crosscheck.results import Report

__all__ = ["Checker"]


class Checker(Protocol):
    """The fixture's type."""

    def __call__(self, reference: Any, candidate: Any, inputs: Any, **options: Any) -> Report:
        """Check and assert; gives the report for further assertions."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--crosscheck-seed``."""
    group = parser.getgroup("crosscheck", "checks of neural-network ports")
    group.addoption(
        "--crosscheck-seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the inputs and cotangents of the crosscheck fixture (default: 0)",
    )


@pytest.fixture
def crosscheck(request: pytest.FixtureRequest) -> Checker:
    """`crosscheck.check`, failing the test unless both sides agree."""
    __tracebackhide__ = True
    from crosscheck.api import check

    seed = request.config.getoption("--crosscheck-seed")

    def checked(reference: Any, candidate: Any, inputs: Any, **options: Any) -> Report:
        __tracebackhide__ = True
        report = check(reference, candidate, inputs, **{"seed": seed, **options})
        if report.verdict != "agree":
            pytest.fail(str(report), pytrace=False)
        return report

    return checked
