"""What several tests of `check` count."""

from __future__ import annotations

from typing import Any

import pytest

from crosscheck.run import Runner

from .kit import Run


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Every run that is made, in order."""
    made: list[Run] = []
    original = Runner.run

    def run(self: Runner, observer: Any, **options: Any) -> Any:
        made.append((self.side, options.get("float64", False), self.cotangents is not None))
        return original(self, observer, **options)

    monkeypatch.setattr(Runner, "run", run)
    return made
