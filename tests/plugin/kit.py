"""What the tests of the plugin share: a net, a pair, and pytest on a user's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import kit

ROOT = Path(__file__).parents[2]
LOAD = ("-p", "crosscheck.pytest_plugin")

NET = kit.NET + 'X = {"x": "float32[5,6]"}\n'

PAIR = """
import crosscheck
from net import Net, X

pair = crosscheck.Pair(Net, {"right": Net, "wrong": lambda: Net(1.01)}, X)
"""


def written(folder: pytest.Pytester, body: str) -> None:
    folder.makepyfile(test_port="import pytest\nfrom net import Net, X\n\n" + body)


def run(folder: pytest.Pytester, *options: str) -> pytest.RunResult:
    return folder.runpytest_inprocess(*LOAD, "-p", "no:cacheprovider", *options)
