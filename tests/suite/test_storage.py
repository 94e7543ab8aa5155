"""Results at URLs, with fsspec's file system in memory; and mistakes that are told at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from crosscheck.cli import main
from crosscheck.errors import InvalidArgument
from crosscheck.suite import lines, run, storage
from crosscheck.suite.classify import classify
from crosscheck.suite.engine import Silent
from crosscheck.suite.jobs import JobResult, Outcome, SuiteResult
from crosscheck.suite.run import Wanted, run_suite
from tests.suite.kit import MadeUp

fsspec = pytest.importorskip("fsspec", reason="needs fsspec: pip install fsspec")

X, Y = "models/p::x::seed0", "models/p::y::seed0"


@pytest.fixture
def memory() -> Iterator[Any]:
    """An empty bucket."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models" / "p").mkdir(parents=True)
    (tmp_path / "models" / "p" / "pair.py").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s3://b/x", True),
        ("memory://x", True),
        ("out/x.json", False),
        ("C:/x", False),
        ("-", False),
    ],
)
def test_what_is_a_url(path: str, expected: bool) -> None:
    assert storage.is_url(path) is expected


def test_written_and_replaced(memory: Any, tmp_path: Path) -> None:
    for text in ("one", "two ü"):
        storage.write("memory://bucket/a/b.json", text)
        assert memory.cat("/bucket/a/b.json").decode() == text
    assert storage.exists("memory://bucket/a/b.json")
    assert not storage.exists("memory://bucket/a") and not storage.exists("memory://bucket/c")
    storage.write(f"file://{tmp_path}/new/x.json", "three")
    assert (tmp_path / "new" / "x.json").read_text() == "three"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.json"]


def test_no_bucket_is_made(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(memory), "protocol", ("s3", "s3a"))
    storage.make_folder(memory, "/mistyped/x.json")
    assert not memory.exists("/mistyped")
    monkeypatch.undo()
    storage.make_folder(memory, "/folder/x.json")
    assert memory.isdir("/folder")


def test_nothing_is_there_when_writing_fails(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, data: bytes) -> int:
        raise PermissionError("access denied")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.write", refuse, raising=False)
    with pytest.raises(InvalidArgument, match="cannot write to memory://b/x.json: access denied"):
        storage.write("memory://b/x.json", "text")
    assert not memory.exists("/b/x.json")


def test_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, package in (("s3", "s3fs"), ("gs", "gcsfs")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(InvalidArgument, match=f"needs the package `{package}`(.|\n)*install"):
            storage.filesystem(f"{kind}://bucket/x")
    with pytest.raises(InvalidArgument, match="fsspec knows no `nothing://`"):
        storage.filesystem("nothing://x")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(InvalidArgument, match="needs the package `fsspec`"):
        storage.filesystem("memory://x")


def test_a_missing_plugin_is_told_before_anything_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for option in ("--json", "--junit", "--html", "--resume"):
        done = CliRunner().invoke(main, ["suite", option, "s3://bucket/x.json"])
        assert (done.exit_code, done.stdout) == (2, "")
        assert "needs the package `s3fs`" in done.stderr and "... load" not in done.stderr


# -- the suite -------------------------------------------------------------------------------------


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def suite(engine: MadeUp, **options: Any) -> tuple[list[str], SuiteResult]:
    engine.ran.clear()
    wanted = Wanted(["models"], html=options.pop("html", None))
    result = run_suite(wanted, engine=engine, resume="memory://b/log.jsonl", **options)
    return list(engine.ran), result


def test_a_log_and_pages_at_a_url(folder: Path, memory: Any) -> None:
    engine = MadeUp({"y": "diverge"})
    assert suite(engine, html="memory://b/pages")[0] == [X, Y]
    pages = memory.ls("/b/pages", detail=False)
    assert len(pages) == 2 and memory.cat(pages[0]) == b"page"
    ran, result = suite(engine, html="memory://b/pages")
    assert (ran, result.exit_status) == ([], 1)
    assert [r.html for r in result.results] == [f"memory:/{page}" for page in pages]
    memory.rm(pages[1])
    assert suite(engine, html="memory://b/pages")[0] == [Y]
    (folder / "models" / "p" / "pair.py").write_text("2")
    assert suite(engine)[0] == [X, Y]
    held = memory.cat("/b/log.jsonl").splitlines()
    assert [json.loads(line).get("result", {}).get("status") for line in held[:2]] == [
        None,
        "agree",
    ]


def test_a_folder_for_the_log(folder: Path, memory: Any) -> None:
    run_suite(Wanted(["models"]), engine=MadeUp(), resume="memory://b/kept")
    assert memory.isfile("/b/kept/suite.jsonl")


def test_what_another_suite_has_written_is_left(folder: Path, memory: Any) -> None:
    log = lines.lines_at("memory://b/log.jsonl")
    log.add(b"one\n")
    log.add(b"two\n")  # too soon: it waits
    assert memory.cat("/b/log.jsonl") == b"one\n"
    memory.pipe("/b/log.jsonl", b"another's\n")
    with pytest.raises(OSError, match="another suite has written"):
        log.close()
    assert memory.cat("/b/log.jsonl") == b"another's\n"


def test_a_log_that_cannot_be_written_costs_no_result(
    folder: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after_another_wrote(outcome: Outcome) -> JobResult:
        memory.pipe("/b/log.jsonl", b"another's\n")
        return classify(outcome)

    monkeypatch.setattr(lines, "PAUSE", 0.0)
    monkeypatch.setattr(lines, "SHARE", 0)
    monkeypatch.setattr(run, "classify", after_another_wrote)
    watcher = Notes()
    result = suite(MadeUp(), watcher=watcher)[1]
    assert [r.status for r in result.results] == ["agree", "agree"]
    assert len(watcher.lines) == 3
    assert watcher.lines[0].startswith(f"memory://b/log.jsonl: {X} could not be kept (another ")
    assert "the last verdicts could not be kept" in watcher.lines[-1]
    assert memory.cat("/b/log.jsonl") == b"another's\n"


def test_a_page_that_cannot_be_written_is_no_success(folder: Path) -> None:
    (folder / "file").write_text("")
    result = run_suite(Wanted(["models"], html="file/pages"), engine=MadeUp())
    assert [r.status for r in result.results] == ["could-not-compare"] * 2
    assert "the report could not be written: cannot write to" in result.results[0].message


def test_json_and_junit_at_a_url(folder: Path, memory: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("crosscheck.suite.run.LocalEngine", lambda jobs: MadeUp())
    places = ["--json", "memory://b/out.json", "--junit", "memory://b/out.xml"]
    done = CliRunner().invoke(main, ["suite", *places])
    assert done.exit_code == 0, done.stderr
    assert json.loads(memory.cat("/b/out.json"))["summary"]["agree"] == 2
    assert memory.cat("/b/out.xml").startswith(b"<?xml")
