"""The table of processes, and which of them belong together."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crosscheck.suite import processes
from crosscheck.suite.processes import Process, Tree, snapshot


def row(number: int, parent: int, group: int, *, started: int = 1, memory: int = 10) -> Process:
    return Process(number, parent, group, group, started, memory)


def table(*rows: Process) -> dict[int, Process]:
    return {r.number: r for r in rows}


def numbers(tree: Tree, *rows: Process) -> set[int]:
    return {p.number for p in tree.members(table(*rows))}


LEADER, CHILD, GRANDCHILD = row(50, 1, 50), row(51, 50, 50), row(52, 51, 52)


def test_a_tree_is_found_by_parents_and_groups() -> None:
    stranger = row(60, 1, 60)
    assert numbers(Tree(50, "/none"), LEADER, CHILD, GRANDCHILD, stranger) == {50, 51, 52}
    assert numbers(Tree(50, "/none"), row(51, 1, 50), stranger) == {51}


def test_what_was_seen_is_remembered_though_its_parent_is_gone() -> None:
    tree = Tree(50, "/none")
    orphan = row(52, 1, 52)
    assert numbers(tree, LEADER, orphan) == {50}
    assert numbers(tree, LEADER, CHILD, GRANDCHILD) == {50, 51, 52}
    assert numbers(tree, orphan, row(53, 52, 52)) == {52, 53}
    assert tree.groups == {50, 52}


def test_a_number_that_is_used_again_is_another_process() -> None:
    tree = Tree(50, "/none")
    tree.members(table(LEADER, CHILD, GRANDCHILD))
    assert numbers(tree, row(52, 1, 52, started=2)) == set()


def test_memory_is_added_up() -> None:
    assert Tree(50, "/none").memory(table(LEADER, CHILD, GRANDCHILD, row(60, 1, 60))) == 30


def test_shared_pages_are_shared_out_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_proportional", lambda process: process.memory // 2)
    whole = table(LEADER, CHILD)
    assert Tree(50, "/none").memory(whole, limit=20) == 20
    assert Tree(50, "/none").memory(whole, limit=19) == 10


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    code = "import sys; block = bytearray(50 << 20); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"MARK": "/a/mark/of/its/own"},
        start_new_session=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


@pytest.mark.parametrize("source", ["_from_proc", "_from_ps"])
def test_the_table_of_this_machine(source: str, child: subprocess.Popen[bytes]) -> None:
    if source == "_from_proc" and not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    rows = {r.number: r for r in getattr(processes, source)()}
    assert rows[child.pid].parent == os.getpid()
    assert rows[child.pid].group == child.pid
    assert 50 * 2**20 < rows[child.pid].memory < 200 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_proportional_memory(child: subprocess.Popen[bytes]) -> None:
    found = snapshot()[child.pid]
    assert 50 * 2**20 < processes._proportional(found) <= found.memory


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_mark_finds_what_was_never_seen(child: subprocess.Popen[bytes]) -> None:
    assert list(processes._marked("/a/mark/of/its/own")) == [child.pid]
    Tree(2**22 + 1, "/a/mark/of/its/own").kill()  # beyond the largest number of a process
    assert child.wait(timeout=10) == -9


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_kernel_counts_what_it_ends_for_memory() -> None:
    kills = processes.kernel_oom_kills()
    assert kills is not None and kills >= 0
