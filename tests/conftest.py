"""What every test leaves behind: no module of a temporary folder, so that names are free again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def modules_of_temporary_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    known, path = set(sys.modules), list(sys.path)
    yield
    base = str(tmp_path_factory.getbasetemp().parent)
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(base):
            del sys.modules[name]
    sys.path[:] = [p for p in sys.path if p in path or not Path(p).is_relative_to(base)]
