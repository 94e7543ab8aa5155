"""Sketches on the command line."""

from __future__ import annotations

import re
import shlex
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import crosscheck
from crosscheck.cli import main
from tests.traces.kit import Net, X
from tests.traces.test_traces_page import PAGE

BIG = "float32[300,6]"  # activations of 2400 elements, of which a sketch keeps a part
NET = "from tests.traces.kit import Net\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "bad.py").write_text(
        NET + "def build():\n    net = Net()\n    net.act1.factor = 1.001\n    return net\n"
    )
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def test_on_the_command_line(run: Callable[..., Any]) -> None:
    file = "golden.safetensors"
    made = run("record", "net.py:Net", "--input", f"x={BIG}", "--sketch", "12kB", "-o", file, "-q")
    assert made.exit_code == 0 and "a sketch, of at most 12,000 bytes" in made.output
    assert Path(file).stat().st_size <= 12_000
    fed = ("--input", f"x={BIG}", "-q")
    assert run("compare", file, "net.py:Net", *fed).exit_code == 0
    differs = run("compare", file, "bad.py:build", *fed)
    assert differs.exit_code == 1 and "diverge: first at `act1`" in differs.output
    refused = run("compare", file, "net.py:Net", "-q")
    assert refused.exit_code == 2 and "give inputs" in refused.output


def test_a_size_may_be_left_out(run: Callable[..., Any]) -> None:
    made = run("record", "net.py:Net", "--input", f"x={X}", "-o", "g.safetensors", "-q", "--sketch")
    assert made.exit_code == 0, made.output
    assert run("compare", "g.safetensors", "net.py:Net", "-q").exit_code == 0


def test_what_the_page_shows_works(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = PAGE[PAGE.index("## Sketches") :]
    commands, code = (
        re.search(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
        for language in ("sh", "python")
    )
    assert commands is not None and code is not None
    for line in commands[1].splitlines():
        assert run(*shlex.split(line)[1:]).exit_code == 0, line
    monkeypatch.setitem(sys.modules, "net", types.ModuleType("net"))
    monkeypatch.setattr(sys.modules["net"], "Net", Net, raising=False)
    exec(code[1], {})
    assert capsys.readouterr().out.split() == ["agree"]


def test_show_says_what_a_sketch_holds_and_sees(run: Callable[..., Any]) -> None:
    record = ("record", "net.py:Net", "--input", f"x={BIG}", "--seed", "7", "-q")
    assert run(*record, "--sketch", "12kB", "-o", "golden.safetensors").exit_code == 0
    shown = run("show", "golden.safetensors")
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert re.match(r"golden\.safetensors: numpy \S+ on cpu, eval mode", lines[0])
    assert lines[1].startswith("  seed 7; written by crosscheck 0.")
    size = f"{Path('golden.safetensors').stat().st_size:,} bytes"
    assert lines[3].startswith("  a sketch: 31 values, each value is 72 proj") and size in lines[3]
    assert "at 32 times the floor passes for agreement (8 times) with a probability" in lines[4]
    assert "found, and at its place, but for a probability of 2e-24" in lines[5], lines[5]
    table = [line.split() for line in lines]
    assert "inputs (not in the file: give them to compare): none" in lines
    site = next(row for row in table if row and row[0] == "output")
    assert site[1:4] == ["(300,", "3)", "float32"] and all(float(n) > 0 for n in site[4:7])
    weight = next(row for row in table if row and row[0] == "first.W")
    assert weight[1:4] == ["(6,", "8)", "float32"] and all(float(n) > 0 for n in weight[4:7])


def test_a_sketch_without_weights_and_with_inputs_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    crosscheck.record(Net(), X).sketch(30_000).save(path)
    text = CliRunner().invoke(main, ["show", str(path)]).stdout
    rows = [line.split() for line in text.splitlines()]
    assert next(row for row in rows if row and row[0] == "x")[1:4] == ["(5,", "6)", "float32"]
    weight = next(row for row in rows if row and row[0] == "first.W")
    assert weight[4:6] == ["-", "-"] and float(weight[6]) > 0


def test_inputs_are_taken_from_a_sketch(run: Callable[..., Any]) -> None:
    made = run("record", "net.py:Net", "--input", f"x={X}", "-o", "g.safetensors", "-q", "--sketch")
    assert made.exit_code == 0
    again = run("record", "bad.py:build", "--inputs", "g.safetensors", "-o", "b.safetensors", "-q")
    assert again.exit_code == 0, again.output
    compared = run("compare", "g.safetensors", "b.safetensors", "-q")
    assert compared.exit_code == 1 and "diverge: first at `act1`" in compared.output
    swapped = run("compare", "b.safetensors", "g.safetensors", "-q")
    assert swapped.exit_code == 2 and "give it as the reference" in swapped.output
    small = ("record", "net.py:Net", "--input", f"x={BIG}", "-o", "s.safetensors", "-q")
    assert run(*small, "--sketch", "12kB").exit_code == 0
    refused = run("record", "net.py:Net", "--inputs", "s.safetensors", "-o", "c.safetensors", "-q")
    assert refused.exit_code == 2 and "too small to hold its inputs" in refused.output
