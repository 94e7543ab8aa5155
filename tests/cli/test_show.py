"""`crosscheck show`, and the renderings that run and compare can write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

X = ("--input", "x=float32[5,6]")


def test_a_saved_report_is_shown_as_it_was(crosscheck: Any) -> None:
    run = crosscheck("run", "port", "--candidate", "wrong", "--json", "r.json")
    shown = crosscheck("show", "r.json")
    assert run.exit_code == 1 and shown.exit_code == 0
    assert shown.stdout == run.stdout
    assert shown.stderr == ""


def test_verbose_shows_every_comparison(crosscheck: Any) -> None:
    result = crosscheck("run", "port", "--candidate", "wrong", "--json", "r.json", "--verbose")
    sites = json.loads(Path("r.json").read_text())["sites"]
    assert f"all comparisons ({len(sites)})" in result.stdout
    assert crosscheck("show", "r.json", "-v").stdout == result.stdout
    table = result.stdout.partition("all comparisons")[2].partition("\n\n")[0]
    assert all(site["reference"] in table for site in sites)


def test_markdown_alone_on_stdout_and_junit_in_a_file(crosscheck: Any, folder: Path) -> None:
    result = crosscheck(
        "run", "port", "--candidate", "wrong", "--markdown", "-", "--junit", "j.xml", "-q"
    )
    assert result.exit_code == 1
    assert result.stdout.startswith("### ❌ diverge") and result.stdout.endswith("</details>\n")
    root = ET.parse(folder / "j.xml").getroot()
    assert root.get("failures") != "0"
    crosscheck("run", "port", "--json", "r.json", "--markdown", "r.md")
    crosscheck("show", "r.json", "--markdown", "again.md")
    assert (folder / "again.md").read_text() == (folder / "r.md").read_text()
    both = crosscheck("run", "port", "--json", "-", "--markdown", "-", "-q")
    assert both.exit_code == 2 and both.stdout == ""
    assert "stdout holds one" in both.stderr


def test_compare_writes_them_too(crosscheck: Any, folder: Path) -> None:
    crosscheck("record", "net.py:Net", *X, "-o", "ref.safetensors", "-q")
    crosscheck("record", "net.py:wrong", *X, "-o", "port.safetensors", "-q")
    result = crosscheck("compare", "ref.safetensors", "port.safetensors", "--markdown", "-")
    assert result.exit_code == 1 and result.stdout.startswith("### ❌ diverge")


def test_no_color_is_respected(crosscheck: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from crosscheck.report.terminal import print_report
    from tests.report.samples import forward_divergence

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for value, coloured in (("1", False), ("", True)):
        monkeypatch.setenv("NO_COLOR", value)
        monkeypatch.setenv("TERM", "xterm")
        out = Terminal()
        print_report(forward_divergence(), out, verbose=True)
        assert ("\x1b[" in out.getvalue()) is coloured


def test_a_trace(crosscheck: Any) -> None:
    crosscheck("record", "net.py:Net", *X, "-o", "ref.safetensors", "--seed", "7", "-q")
    result = crosscheck("show", "ref.safetensors")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("ref.safetensors: numpy ") and lines[0].endswith("cpu, eval mode")
    assert lines[1].startswith("  seed 7; written by crosscheck 0.")
    table = [line.split() for line in lines]
    inputs = table[lines.index("inputs (1)") + 2]
    assert inputs[:4] == ["x", "(5,", "6)", "float32"]
    site = next(row for row in table if row and row[0] == "output")
    assert site[1:4] == ["(5,", "3)", "float32"] and all(float(n) > 0 for n in site[4:7])
    weight = next(row for row in table if row and row[0] == "W")
    assert weight[4:6] == ["-", "-"] and float(weight[6]) > 0


def test_norms_of_a_trace_are_right(crosscheck: Any) -> None:
    import numpy as np

    from crosscheck.commands.show import CHUNK, _size

    value = np.arange(CHUNK + 5, dtype=np.float32)
    assert _size(value) == (f"{np.linalg.norm(value.astype(float)):.4g}", f"{CHUNK + 4:.4g}")
    assert _size(np.array([3.0, np.nan, -4.0, -np.inf])) == ("5", "4 (2 not finite)")
    assert _size(np.zeros((0, 3))) == ("0", "0")
    assert _size(np.array(True)) == ("1", "1")


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.safetensors", b"nothing", "TraceFormatError"),
        ("a.safetensors", b"\xff" * 64, "TraceFormatError"),
        ("a.safetensors", None, "there is no such file"),
        ("a.json", b"{}", 'it has no "schema"'),
        ("a.json", None, "No such file"),
        ("a.json", b'{"schema": 7}', "schema 7"),
    ],
)
def test_what_cannot_be_shown(
    crosscheck: Any, folder: Path, name: str, data: bytes | None, text: str
) -> None:
    if data is not None:
        (folder / name).write_bytes(data)
    result = crosscheck("show", name)
    assert result.exit_code == 2 and result.stdout == ""
    assert text in result.stderr and len(result.stderr.splitlines()) == 1


def test_options_of_reports_are_refused_for_traces(crosscheck: Any) -> None:
    result = crosscheck("show", "a.safetensors", "--markdown", "-")
    assert result.exit_code == 2 and "are for reports" in result.stderr
