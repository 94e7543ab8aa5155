"""A user's folder: models in NumPy (so that the command line is quick), a port that is right, one
that is wrong, one that raises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from crosscheck.cli import main
from tests import kit as net

NET = (
    net.NET
    + """
class Raises(Net):
    def forward(self, x):
        raise RuntimeError("out of luck")


def build():
    return Net()


def wrong():
    return Net(1.01)


def needs_an_argument(width):
    return Net(width)


def double(x):
    return x * 2


def doubled(x):
    return x + x


instance = Net()
number = 3


class nested:
    net = Net()
"""
)

PAIR = """
import crosscheck
from net import Net, Raises, build, wrong

pair = crosscheck.Pair(
    reference=build,
    candidate={"right": Net, "wrong": wrong, "raises": Raises},
    inputs={"x": "float32[5,6]"},
)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory of the test."""
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "port").mkdir()
    (tmp_path / "port" / "net.py").write_text(NET)
    (tmp_path / "port" / "pair.py").write_text(PAIR)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def crosscheck(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the command line in this process; what it imports and puts on the path is undone."""
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def call(*arguments: str) -> Result:
        try:
            return CliRunner().invoke(main, list(arguments))
        finally:
            for name in set(sys.modules) - before:
                if name in ("net", "pair") or name.startswith("crosscheck_loaded"):
                    del sys.modules[name]

    return call
