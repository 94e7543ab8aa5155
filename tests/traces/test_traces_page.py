"""What docs/traces.md shows is what happens."""

from __future__ import annotations

import json
import re
import shlex
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner

import crosscheck
from crosscheck.cli import main
from crosscheck.traces.records import KINDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "traces.md").read_text()
NET = "from tests.traces.kit import Net\n"
PORT = "from tests.traces.kit import Net as Port\n"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "port.py").write_text(PORT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_work(folder: Path) -> None:
    for line in blocks("sh")[0].splitlines():
        name, *arguments = shlex.split(line)
        assert name == "crosscheck"
        assert CliRunner().invoke(main, arguments).exit_code == 0, line


def test_the_python_works(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys
    import types

    from tests.traces.kit import Net

    for module, attribute in (("net", "Net"), ("port", "Port")):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        setattr(sys.modules[module], attribute, Net)
    exec(blocks("python")[0], {})
    assert capsys.readouterr().out.split() == ["agree", "agree"]


def test_the_inputs_of_the_program_are_written_as_shown(folder: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    exec(next(block for block in blocks("python") if "save_inputs" in block), {})
    assert (folder / "inputs.safetensors").exists() and (folder / "reference.safetensors").exists()


def test_the_least_header_is_a_trace(folder: Path) -> None:
    header = blocks("json")[0].encode()
    json.loads(header)
    (folder / "least.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(32))
    trace = crosscheck.load_trace("least.safetensors")
    assert list(trace.activations()) == ["fc1", "output"] and trace.info.outputs == ("output",)


def test_the_cpp_is_that_of_the_program() -> None:
    source = (ROOT / "models" / "mlp" / "trace.cpp").read_text()
    assert len(blocks("cpp")) == 4
    for block in blocks("cpp"):
        assert block in source, block


def test_every_kind_and_key_is_in_the_tables(folder: Path) -> None:
    from crosscheck.traces.file import TensorFile
    from tests.traces.kit import Net

    crosscheck.record(Net(), "float32[5,6]").save("t.safetensors")
    for kind in KINDS:
        assert f"`{kind}/" in PAGE
    file = TensorFile("t.safetensors")
    for key in set(file.metadata) - set(file):
        assert f"`{key}`" in PAGE, key
