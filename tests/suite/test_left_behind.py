"""No process, file or verdict is lost or left, however the suite ends."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.suite import kit
from tests.suite.kit import (
    HANGS,
    alive,
    by_pair,
    documents,
    eventually,
    write_pair,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pair(tmp_path / "models" / "a")
    write_pair(tmp_path / "models" / "b", HANGS, "Bad")
    return tmp_path


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("tmp")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def begin(folder: Path, *arguments: str) -> tuple[subprocess.Popen[str], list[int]]:
    return kit.begin(folder, "--jobs", "1", "--resume", "log.jsonl", *arguments)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see processes")
def test_killed_outright_then_resumed(folder: Path, temporary: Path) -> None:
    parent, (worker, child) = begin(folder)
    time.sleep(2)  # until the child has been seen, too
    parent.kill()
    parent.communicate()
    assert eventually(lambda: not alive(worker) and not alive(child))
    assert eventually(lambda: not list(temporary.iterdir()))
    with open(folder / "log.jsonl", "a") as log:
        log.write('{"key": "cut sho')
    write_pair(folder / "models" / "b")
    status, document = documents(folder, "--resume", "log.jsonl")
    jobs = by_pair(document)
    assert (status, document["summary"]["resumed"]) == (0, 1)
    assert (jobs["a"]["resumed"], jobs["b"]["resumed"]) == (True, False)
    assert jobs["a"]["status"] == jobs["b"]["status"] == "agree"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see processes")
def test_interrupted(tmp_path: Path, temporary: Path) -> None:
    folder = tmp_path
    write_pair(folder / "models" / "b", HANGS, "{'right': right, 'bad': Bad}")
    parent, pids = begin(folder, "--json", "out.json")
    assert eventually(lambda: len(list(temporary.glob("*/*/job.json"))) == 1)
    parent.send_signal(signal.SIGINT)
    out, err = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert out.splitlines()[-1].startswith("interrupted: 1 agree, 1 not run; 1 job in ")
    assert err.splitlines()[-1].startswith("crosscheck: interrupted: 1 jobs had ended")
    assert not any(alive(pid) for pid in pids)
    assert not list(temporary.iterdir())
    assert '"not_run": ["models/b::bad::seed0"]' in (folder / "out.json").read_text()
