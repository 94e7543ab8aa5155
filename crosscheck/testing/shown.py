"""How pytest shows a divergence: the report as it is, and one line in the short summary."""

from __future__ import annotations

from typing import Any

import pytest

from crosscheck.errors import Diverged
from crosscheck.report.oneline import summary

__all__ = ["shown"]


def shown(error: pytest.ExceptionInfo[Diverged]) -> Any:
    """The representation of a failure: where the test asked, then the report's own lines."""
    made: Any = error.getrepr(style="value", chain=False)
    lines = str(error.value).splitlines()
    if made.reprcrash is not None:
        made.reprcrash.message = f"Diverged: {summary(error.value.report)}"
        lines = [f"{made.reprcrash.path}:{made.reprcrash.lineno}: Diverged", "", *lines]
    made.reprtraceback.reprentries[-1].lines = lines
    return made
