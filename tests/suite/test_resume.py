"""What a log keeps, and what makes it out of date. With a made-up engine: no processes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

import crosscheck.suite.stamps
from crosscheck.errors import InvalidArgument
from crosscheck.suite.jobs import Limits, SuiteResult
from crosscheck.suite.log import Log
from crosscheck.suite.run import Wanted, run_suite
from crosscheck.suite.stamps import Stamps
from tests.suite.kit import MadeUp


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pair = tmp_path / "models" / "p"
    pair.mkdir(parents=True)
    (pair / "pair.py").write_text("")
    (pair / "weights.bin").write_bytes(b"1")
    (tmp_path / "shared.py").write_text("1")
    old(pair / "pair.py", pair / "weights.bin", tmp_path / "shared.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def old(*files: Path) -> None:
    """The clock of a file system is coarser than a test is quick."""
    time.sleep(0.02)
    for file in files:
        os.utime(file, (1, 1))


def suite(engine: MadeUp, **options: Any) -> tuple[list[str], SuiteResult]:
    """(what was computed, the result)"""
    engine.ran.clear()
    wanted = Wanted(["models"], **options)
    result = run_suite(wanted, engine=engine, resume="log.jsonl")
    return list(engine.ran), result


X, Y = "models/p::x::seed0", "models/p::y::seed0"


def test_a_verdict_is_kept(folder: Path) -> None:
    engine = MadeUp({"y": "diverge"})
    assert suite(engine)[0] == [X, Y]
    ran, result = suite(engine)
    assert (ran, result.exit_status) == ([], 1)
    assert [(r.status, r.resumed) for r in result.results] == [("agree", True), ("diverge", True)]
    assert result.results[0].reference == {"framework": "numpy"}


def test_what_has_no_verdict_is_tried_again(folder: Path) -> None:
    assert suite(MadeUp({"y": "crashed"}))[1].exit_status == 2
    ran, result = suite(MadeUp())
    assert (ran, result.exit_status) == ([Y], 0)


def test_other_questions_are_asked(folder: Path) -> None:
    engine = MadeUp()
    suite(engine)
    assert suite(engine, seeds=(1,))[0] == [X.replace("0", "1"), Y.replace("0", "1")]
    assert suite(engine, options={"gradients": False})[0] == [X, Y]
    assert suite(engine, limits=Limits(1.0))[0] == []  # a verdict does not hang on limits
    assert suite(engine, seeds=(0, 1))[0] == []


@pytest.mark.parametrize("change", ["pair.py", "weights.bin", "new", "shared"])
def test_what_it_was_made_from(folder: Path, change: str) -> None:
    engine = MadeUp(files=[str(folder / "shared.py")])
    suite(engine)
    assert suite(engine)[0] == []
    file = folder / "shared.py" if change == "shared" else folder / "models" / "p" / change
    file.write_text("2")
    old(file)
    assert suite(engine)[0] == [X, Y]
    assert suite(engine)[0] == []


def test_caches_and_its_own_files_are_no_change(folder: Path) -> None:
    engine, inside = MadeUp(), "models/p"
    for _ in range(2):
        run_suite(
            Wanted([inside], html=f"{inside}/pages"),
            engine=engine,
            resume=f"{inside}/log.jsonl",
            leave_out=[f"{inside}/out.json"],
        )
        Path(inside, "out.json").write_text(str(len(engine.ran)))
        Path(inside, "__pycache__").mkdir(exist_ok=True)
        Path(inside, "__pycache__", "x.pyc").write_text(str(len(engine.ran)))
    assert engine.ran == [X, Y]


def test_a_file_that_changes_meanwhile(folder: Path) -> None:
    (folder / "shared.py").write_text("2")
    os.utime(folder / "shared.py", (time.time() + 60, time.time() + 60))
    engine = MadeUp(files=[str(folder / "shared.py")])
    suite(engine)
    assert suite(engine)[0] == [X, Y]


def test_too_many_files_to_tell(folder: Path) -> None:
    engine = MadeUp(files=None)
    suite(engine)
    assert suite(engine)[0] == [X, Y]


def test_other_software(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = MadeUp()
    suite(engine)
    monkeypatch.setattr(crosscheck.suite.stamps, "_own_source", lambda: "another")
    assert suite(engine)[0] == [X, Y]
    monkeypatch.setattr(crosscheck.suite.stamps, "versions", lambda: {"torch": "9"})
    assert suite(engine)[0] == [X, Y]
    monkeypatch.setenv("KERAS_BACKEND", "another")
    assert suite(engine)[0] == [X, Y]
    assert suite(engine)[0] == []


def test_a_page_that_is_missing_is_made(folder: Path) -> None:
    engine = MadeUp()
    suite(engine)
    assert suite(engine, html="pages")[0] == [X, Y]
    assert suite(engine, html="pages")[0] == []
    next(Path("pages").glob("*-x-*.html")).unlink()
    assert suite(engine, html="pages")[0] == [X]


def test_lines_that_were_cut_short(folder: Path) -> None:
    engine, log = MadeUp(), folder / "log.jsonl"
    suite(engine)
    log.write_bytes(log.read_bytes()[:-40])
    assert suite(engine)[0] == [Y]
    assert suite(engine)[0] == []
    assert [bool(line) for line in log.read_text().split("\n")] == [True] * 4 + [False]


@pytest.mark.parametrize("text", ["import numpy\n", '{"suite": 99}\n', "[1]", "\0"])
def test_another_file_is_left_as_it_is(folder: Path, text: str) -> None:
    log = folder / "log.jsonl"
    log.write_text(text)
    with pytest.raises(InvalidArgument, match="no log of `crosscheck suite`"):
        suite(MadeUp())
    assert log.read_text() == text


def test_a_folder_for_the_log(folder: Path) -> None:
    run_suite(Wanted(["models"]), engine=MadeUp(), resume="kept")
    lines = (folder / "kept" / "suite.jsonl").read_text().splitlines()
    assert [json.loads(line).get("result", {}).get("status") for line in lines] == [
        None,
        "agree",
        "agree",
    ]


def test_two_suites_at_once(folder: Path) -> None:
    log = Log("log.jsonl", Stamps(), {})
    with pytest.raises(InvalidArgument, match="another suite is writing"):
        suite(MadeUp())
    log.close()
    suite(MadeUp())


def test_a_place_that_cannot_be_written(folder: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot be written"):
        run_suite(Wanted(["models"]), engine=MadeUp(), resume="shared.py/log.jsonl")
