"""Values beyond a limit lie on disk: the same bits come back, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from crosscheck import CannotCompare, InvalidArgument
from crosscheck.memory import Overlaid, Values, limited, new_values, parse_bytes, spilled
from crosscheck.trace import RunInfo

MIB = 2**20


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def filled(count: int, nbytes: int = 2**18) -> Any:
    values = new_values()
    for i in range(count):
        values["activation", f"s{i}"] = np.full(nbytes // 4, i, np.float32)
    return values


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2GiB", 2 * 2**30),
        ("500 MB", 500_000_000),
        ("1.5gib", 3 * 2**29),
        (MIB, MIB),
        ("1MiB", MIB),
    ],
)
def test_limits_are_read(text: Any, wanted: int) -> None:
    assert parse_bytes(text) == wanted


@pytest.mark.parametrize("text", ["", "lots", "2 GiBB", "-1GiB", 0, 1000, True, 1.5, None])
def test_what_is_no_limit_is_refused(text: Any) -> None:
    with pytest.raises(InvalidArgument, match="max_memory=.*2GiB"):
        parse_bytes(text)


def test_without_a_limit_nothing_is_different() -> None:
    with limited(None):
        assert type(new_values()) is dict


@pytest.mark.parametrize(
    "dtype",
    [
        np.float64,
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        np.int64,
        bool,
    ],
)
def test_what_comes_back_has_the_same_bits(dtype: Any) -> None:
    draws = np.random.default_rng(0).integers(0, 255, size=(3, 5, 7, 16), dtype=np.uint8)
    array = draws.astype(bool) if dtype is bool else draws.view(dtype)
    with limited(MIB):
        values = new_values()
        values["a"] = array.copy()
        values["scalar"] = np.array(3.0, np.float32)
        values["empty"] = np.zeros((0, 4), np.float32)
        for i in range(8):
            values[i] = np.zeros(2**16, np.float32)
        assert not values["a"].flags.writeable  # it lies on disk
        assert values["a"].dtype == array.dtype and values["a"].shape == array.shape
        assert values["a"].tobytes() == array.tobytes()
        assert values["scalar"].shape == () and values["scalar"] == 3.0
        assert values["empty"].shape == (0, 4)
        assert values.shape_of("a") == array.shape
        assert list(values) == ["a", "scalar", "empty", *range(8)]


def test_no_more_than_the_limit_is_held() -> None:
    tracemalloc.start()
    try:
        with limited(2 * MIB):
            values = filled(80)  # 20 MiB
            held = tracemalloc.get_traced_memory()[1]
            for i in range(80):
                assert (values["activation", f"s{i}"] == i).all()
    finally:
        tracemalloc.stop()
    assert held < 2 * MIB + MIB / 2


def test_several_runs_share_one_limit() -> None:
    tracemalloc.start()
    try:
        with limited(2 * MIB):
            runs = [filled(16) for _ in range(6)]
            held = tracemalloc.get_traced_memory()[1]
            assert all((run["activation", "s9"] == 9).all() for run in runs)
    finally:
        tracemalloc.stop()
    assert held < 2 * MIB + MIB / 2


def test_what_is_seen_stays_right_when_its_memory_is_given_back() -> None:
    with limited(MIB):
        values = filled(60)
        views = [values["activation", f"s{i}"] for i in range(60)]
    assert all((view == i).all() for i, view in enumerate(views))


def test_a_value_may_be_larger_than_the_limit() -> None:
    with limited(MIB):
        values = filled(3, nbytes=4 * MIB)
        assert [values["activation", f"s{i}"][-1] for i in range(3)] == [0, 1, 2]


def test_a_value_that_was_replaced_or_deleted_does_not_come_back() -> None:
    with limited(MIB):
        values = filled(4)
        values["activation", "s0"] = np.full(2**16, -1, np.float32)
        del values["activation", "s1"]
        for i in range(4, 20):
            values["activation", f"s{i}"] = np.full(2**16, i, np.float32)
        assert (values["activation", "s0"] == -1).all()
        assert ("activation", "s1") not in values and len(values) == 19


def test_gradients_count_as_well() -> None:
    gradients = {f"p{i}": np.full((256, 256), i, np.float32) for i in range(20)}
    bare = RunInfo((), (), {}, {}, {}, parameter_gradients=gradients)
    with limited(MIB):
        kept = spilled(bare).parameter_gradients
        assert isinstance(kept, Values)
        assert {name: int(g[0, 0]) for name, g in kept.items()} == {f"p{i}": i for i in range(20)}
    assert spilled(bare) is bare


def test_two_runs_as_one() -> None:
    with limited(MIB):
        both = Overlaid(filled(9), {("input", "x"): np.ones(3, np.float32)})
        assert len(both) == 10 and list(both)[-1] == ("input", "x")
        assert both.shape_of(("input", "x")) == (3,)
        assert both.shape_of(("activation", "s8")) == (2**16,)
        assert (both["activation", "s2"] == 2).all() and ("input", "y") not in both


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc to count files with")
def test_nothing_is_left_behind(scratch: Path) -> None:
    before, threads = descriptors(), threading.active_count()
    with limited(MIB):
        values = filled(40)
        assert os.listdir(scratch) == []  # the file has no name, so no crash can leave it there
        assert descriptors() > before
    assert threading.active_count() == threads
    assert (values["activation", "s3"] == 3).all()
    del values
    assert descriptors() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_behind_by_an_error(scratch: Path, error: type[BaseException]) -> None:
    threads = threading.active_count()
    with pytest.raises(error), limited(MIB):
        filled(40)
        raise error
    assert threading.active_count() == threads
    assert os.listdir(scratch) == []


def test_a_folder_that_takes_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with (
        pytest.raises(CannotCompare, match=r"no scratch file can be written in .*nowhere") as error,
        limited(MIB),
    ):
        raise AssertionError("it should not have come so far")
    assert "TMPDIR=FOLDER" in str(error.value)


FULL = """
import resource, sys
import numpy as np
from crosscheck import CannotCompare
from crosscheck.memory import limited, new_values

resource.setrlimit(resource.RLIMIT_FSIZE, (2**27, 2**27))  # what a full disk does: writes fail
try:
    with limited("1MiB"):
        values = new_values()
        for i in range(10_000):
            values[i] = np.full(2**18, i, np.float32)
except CannotCompare as error:
    assert i > 100, i
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_full_disk_is_said_clearly() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "takes no more than the 128 MiB of values" in done.stdout
    assert "Fix: TMPDIR=FOLDER with more space" in done.stdout
