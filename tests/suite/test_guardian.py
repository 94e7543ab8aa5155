"""What is left of a suite that was killed outright."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crosscheck.suite.guardian import Guardian


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
