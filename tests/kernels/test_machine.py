"""Machine code that is kept: loaded without Numba, to the same bits; never when it is damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from crosscheck.kernels import machine, pairs

CODE = """
import os, sys
import numpy as np
from crosscheck.kernels import pairs

os.environ["CROSSCHECK_KERNELS"] = "numba"
a = np.random.default_rng(0).standard_normal((64, 4099)).astype(np.float32)
b = np.asfortranarray(a.astype(np.float64) * (1 + 1e-7))
a[3, 5] = b[3, 5] = np.nan
for found in (pairs.group_rows([(a, b, b)], [1e-7]), *pairs.moments(a)):
    print(found.tobytes().hex())
"""


def test_what_was_compiled_once_needs_no_numba(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CROSSCHECK_KERNELS", "numba")
    exec(CODE, {})  # compiled and kept, if nobody has done so before
    here = capsys.readouterr().out
    code = CODE + "assert 'numba' not in sys.modules\nassert 'llvmlite.binding' in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == here != ""


def test_what_is_damaged_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "some.o"
    assert machine._kept(path) is None
    machine._keep(path, b"some code")
    assert machine._kept(path) == b"some code"
    assert [one.name for one in path.parent.iterdir()] == ["some.o"]
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"x", b"", whole[:40] + b"?" + whole[41:]):
        path.write_bytes(damaged)
        assert machine._kept(path) is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners here")
def test_what_others_may_write_to_is_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "some.o"
    machine._require_room(path.parent)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    machine._keep(path, b"some code")
    path.chmod(0o620)
    assert machine._kept(path) is None
    path.chmod(0o600)
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    foreign = path.stat().st_uid != 0  # what is root's is nobody's to write
    assert (machine._kept(path) is None) == foreign
    monkeypatch.undo()
    path.parent.chmod(0o770)
    with pytest.raises(ImportError, match="not private"):
        machine._require_room(path.parent)


def test_where_nothing_can_be_kept_everything_is_numpy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(machine, "_folder", lambda: tmp_path / "file" / "kernels")
    monkeypatch.setattr(machine, "_LOADED", {})
    monkeypatch.setenv("CROSSCHECK_KERNELS", "numba")
    pairs._load.cache_clear()
    assert pairs._load() is None
    assert pairs.pair_sums(np.ones(5), np.ones(5)).count == 5
    monkeypatch.undo()
    pairs._load.cache_clear()


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    machine._keep(tmp_path / "file" / "some.o", b"code")
    assert machine._kept(tmp_path / "file" / "some.o") is None


def test_other_sources_or_settings_are_other_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    make = machine._folder.__wrapped__
    first = make()
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")  # which is no part of the code
    assert make() == first
    monkeypatch.setenv("NUMBA_OPT", "1")
    assert make() != first
    monkeypatch.delenv("NUMBA_OPT")
    monkeypatch.setattr(machine, "SOURCES", machine.SOURCES[:-1])
    assert make() != first


def test_a_kernel_that_needs_more_than_c_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from crosscheck.kernels import compiled

    def kept(jobs: int, chunks: int, first: int, last: int, room: int, out: int) -> None:
        np.empty(last)[first] = out  # takes Numba's allocator

    monkeypatch.setattr(compiled, "moment_chunks", kept)
    with pytest.raises(ImportError, match="moment_chunks calls NRT_"):
        machine._compiled("moment_chunks")


@pytest.mark.parametrize("name", machine.KERNELS)
def test_a_kernel_shares_no_name_with_another(name: str) -> None:
    """Files of several processes are loaded side by side: one must not call another's functions."""
    module = machine._module(name)
    made = machine._defined(module.functions) + machine._defined(module.global_variables)
    private = machine.llvm.Linkage.internal, machine.llvm.Linkage.private
    assert [one.name for one in made if one.linkage not in private] == [name]


def test_compiled_kernels_are_in_use_here() -> None:
    pairs._load.cache_clear()
    assert pairs._load() is machine
