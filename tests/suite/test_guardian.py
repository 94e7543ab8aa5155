"""What is left of a suite that was killed outright."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from crosscheck.suite.guardian import Guardian
from crosscheck.suite.processes import snapshot
from tests.suite.kit import eventually


@pytest.mark.skipif(sys.platform != "linux", reason="reads other processes' environments")
def test_what_it_was_never_told_of_is_ended_by_its_environment(tmp_path: Path) -> None:
    mine, others = tmp_path / "mine", tmp_path / "others"
    mine.mkdir()
    begun = {
        folder: subprocess.Popen(
            ["sleep", "100"],
            env={**os.environ, "TMPDIR": str(folder / "job")},
            start_new_session=True,
        )
        for folder in (mine, others)
    }
    try:
        Guardian(str(mine)).close()
        assert begun[mine].wait(timeout=10) < 0
        assert begun[others].poll() is None
        assert not mine.exists()
    finally:
        for process in begun.values():
            process.kill()
            process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="reads other processes' environments")
def test_what_is_just_being_started_is_ended_too(tmp_path: Path) -> None:
    """It is not to be known by its environment yet when the guardian first looks."""
    folder = tmp_path / "folder"
    folder.mkdir()
    command = f"TMPDIR={folder} sleep 100; TMPDIR={folder} exec sleep 100"
    begun = subprocess.Popen(["sh", "-c", command], start_new_session=True)
    try:
        assert eventually(lambda: any(p.parent == begun.pid for p in snapshot().values()))
        Guardian(str(folder)).close()
        assert begun.wait(timeout=10) < 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(begun.pid, signal.SIGKILL)
        begun.wait()
