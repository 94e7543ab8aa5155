"""Arguments of `crosscheck suite`, and what is seen on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crosscheck.cli import main
from tests.suite.kit import ROOT, command, environment, write_pair


def suite(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["suite", *arguments])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--memory", "lots"), "write a size such as 8GiB"),
        (("--memory", "0"), "write a size such as 8GiB"),
        (("--timeout", "0"), "--timeout"),
        (("--effort", "some"), "'quick', 'thorough'"),
        (("--memory", "5"), "write a size of at least 1 MiB"),
        (("--max-memory", "1kB"), "write a size of at least 1 MiB"),
        (("--max-memory", "none"), "write a size of at least 1 MiB"),
        (("--jobs", "0"), "--jobs"),
        (("--seed", "1", "--seeds", "2"), "give --seed or --seeds"),
        (("-k", "a b"), "put `and` or `or` between words"),
        (("--json", "."), ".: is a folder; give a file"),
        (("--junit", "."), ".: is a folder; give a file"),
        (("--html", "file"), "--html file: is a file"),
        (("--json", "out", "--junit", "./out"), "one file for both; give two"),
        (("--json", "file/out.json"), "cannot write to `file/out.json`"),
        (("--junit", "file/far/out.xml"), "cannot write to `file/far/out.xml`"),
        (("--html", "file/reports"), "cannot write to `file/reports/page.html`"),
        (("--timeout", "nan"), "--timeout"),
        (("nowhere",), "no such folder or file"),
        ((), "models: no such folder or file"),
    ],
)
def test_arguments_that_make_no_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    result = suite(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert reason in result.stderr


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * 2**30), ("500MB", 500_000_000), ("1.5g", 1_500_000_000), ("4096", 4096)],
)
def test_sizes(text: str, size: int) -> None:
    from crosscheck.commands.suite import size as parsed

    assert parsed(None, None, text) == size  # type: ignore[arg-type]
    assert parsed(None, None, "none") is None  # type: ignore[arg-type]


def test_effort_and_memory_of_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They reach every check, and a log of quick results answers no thorough question."""
    from crosscheck.suite import local
    from tests.suite.kit import MadeUp

    write_pair(tmp_path / "models" / "a")
    monkeypatch.chdir(tmp_path)
    engine = MadeUp()
    monkeypatch.setattr(local, "LocalEngine", lambda jobs: engine)
    resumed = ("--jobs", "1", "--resume", "log", "-q")
    for arguments, ran in [
        (("--effort", "quick", "--max-memory", "2GiB"), 2),
        (("--effort", "quick", "--max-memory", "2GiB"), 0),
        (("--effort", "thorough"), 2),
        (("--effort", "quick"), 2),
        ((), 2),
    ]:
        engine.ran.clear()
        assert suite(*arguments, *resumed).exit_code == 0
        assert len(engine.ran) == ran, arguments
    cpu = {"device": "cpu"}
    quick, thorough = {**cpu, "effort": "quick"}, {**cpu, "effort": "thorough"}
    assert engine.options[::2] == [{**quick, "max_memory": 2**31}, thorough, quick, cpu]


def test_a_live_table_on_a_terminal(tmp_path: Path) -> None:
    write_pair(tmp_path / "models" / "a", candidates="{'right': right, 'wrong': wrong}")
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        command("models", "--candidate", "right", "--seeds", "2", "--jobs", "1"),
        cwd=tmp_path,
        env={**environment(), "TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    seen = b""
    os.set_blocking(ours, False)
    end = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < end:
        try:
            seen += os.read(ours, 65536)
        except (BlockingIOError, OSError):
            time.sleep(0.02)
    out, _ = child.communicate(timeout=10)
    assert child.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())
    assert "a (load)" in plain and "0 of 2 done" in plain
    assert "agree  models/a::right::seed0" in plain
    assert "agree  models/a::right::seed1" in plain
    assert "\x1b" not in out and "2 agree; 2 jobs in " in out


def test_the_parent_loads_neither_numpy_nor_a_framework() -> None:
    """It stays small, and what breaks in a framework breaks in a worker."""
    code = (
        "import sys\n"
        "import crosscheck.commands.suite, crosscheck.suite.run\n"
        "import crosscheck.suite.summary, crosscheck.suite.junit, crosscheck.suite.live\n"
        "print([m for m in ('numpy', 'torch', 'keras', 'jax', 'onnx') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_python_of_the_page(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "suite.md").read_text(), re.S)
    write_pair(tmp_path / "models" / "doubled")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0 [('models/doubled::right::seed0', 'agree')]\n"
