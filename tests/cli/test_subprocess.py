"""The installed command, as CI calls it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import crosscheck


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(crosscheck.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-m", "crosscheck.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_statuses_and_streams(folder: Path) -> None:
    right = call(folder, "run", "port", "--json", "-")
    assert (right.returncode, json.loads(right.stdout)["verdict"]) == (0, "agree")
    assert "... " in right.stderr
    wrong = call(folder, "run", "port", "--candidate", "wrong", "-q")
    assert wrong.returncode == 1 and wrong.stderr == ""
    assert wrong.stdout.startswith("diverge") and "\x1b[" not in wrong.stdout
    broken = call(folder, "run", "port", "--candidate", "raises", "-q")
    assert (broken.returncode, broken.stdout) == (2, "")
    assert broken.stderr.count("\n") == 1
    assert re.search(r"RuntimeError: out of luck.* \(at .*net\.py:\d+ in forward\)$", broken.stderr)


def test_a_syntax_error_shows_where(folder: Path) -> None:
    (folder / "bad.py").write_text("def build(:\n")
    result = call(folder, "run", "bad.py", "-q")
    assert result.returncode == 2 and result.stdout == ""
    assert "bad.py" in result.stderr and "SyntaxError" in result.stderr.splitlines()[-1]
    assert "crosscheck/" not in result.stderr and "importlib" not in result.stderr


@pytest.mark.parametrize("when", ["loaded", "made"])
def test_an_error_shows_the_users_calls_alone(folder: Path, when: str) -> None:
    called = "build()\n" if when == "loaded" else ""
    (folder / "bad.py").write_text(
        "def build():\n    return inner()\n\n\ndef inner():\n    raise OSError('no such disk')\n"
        + called
    )
    pair = ("--reference", "bad.py:build", "--candidate", "net.py:Net")
    result = call(folder, "run", "-q", *pair, "--input", "x=float32[5,6]")
    frames = re.findall(r'^  File "(.*)", line \d+, in (.*)$', result.stderr, re.MULTILINE)
    assert {Path(file).name for file, _ in frames} == {"bad.py"}
    assert [name for _, name in frames][-2:] == ["build", "inner"]
    assert result.returncode == 2 and "OSError: no such disk" in result.stderr.splitlines()[-1]


def test_a_users_class_has_its_own_name(folder: Path) -> None:
    (folder / "odd.py").write_text("class Odd:\n    pass\n\n\nodd = Odd()\n")
    pair = ("--reference", "net.py:Net", "--candidate", "odd.py:odd")
    result = call(folder, "run", "-q", *pair, "--input", "x=float32[5,6]")
    assert result.returncode == 2 and "no adapter takes an odd.Odd" in result.stderr


def test_a_pair_of_two_frameworks(folder: Path) -> None:
    (folder / "torch_pair.py").write_text(
        "import crosscheck\n"
        "def reference():\n"
        "    import torch\n"
        "    return torch.nn.Linear(6, 3)\n"
        "def candidate():\n"
        "    from net import Net\n"
        "    return Net()\n"
        "pair = crosscheck.Pair(reference, candidate, 'float32[5,6]')\n"
    )
    result = call(folder, "run", "torch_pair.py", "--json", "-", "-q")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["reference"]["framework"] == "torch"
    assert report["coverage"]["parameters_matched"] == 2
