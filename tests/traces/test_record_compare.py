"""`crosscheck record` and `crosscheck compare`: statuses, streams, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crosscheck.cli import main

NET = """
import numpy as np
from tests.traces.kit import Net


def build():
    return Net()


def wrong():
    net = Net()
    net.act1.factor = 1.01
    return net


def broken():
    net = Net()
    net.first.W[1, 2] = np.nan
    return net


def partly_broken():
    net = Net()
    net.third.W[1, 2] = np.nan
    return net


class Raises:
    def forward(self, x):
        raise RuntimeError("out of luck")
"""
PAIR = "import crosscheck\nfrom tests.traces.kit import Net\n"
PAIR += "pair = crosscheck.Pair(Net, Net, lambda seed: 'float32[5,6]')\n"
X = ("--input", "x=float32[5,6]")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "pair.py").write_text(PAIR)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def recorded(name: str, path: str, *options: str) -> Result:
    result = call("record", f"net.py:{name}", *X, "-o", path, *options)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("options", [(), ("--sketch",)])
def test_record_warns_of_what_is_not_finite(folder: Path, options: tuple[str, ...]) -> None:
    result = recorded("broken", "broken.safetensors", *options)
    assert "warning: `first.W`, `output` hold NaN or Inf" in result.stdout
    assert "warning" not in recorded("build", "right.safetensors", *options).stdout


def test_two_recordings_say_what_is_not_finite_on_both_sides(folder: Path) -> None:
    for name in ("one.safetensors", "other.safetensors"):
        recorded("partly_broken", name)
    both = call("compare", "one.safetensors", "other.safetensors")
    assert both.exit_code == 0 and "NaN or Inf in the same places on both sides" in both.stdout
    recorded("build", "right.safetensors")
    same = call("compare", "right.safetensors", "right.safetensors")
    assert same.exit_code == 0 and "NaN" not in same.stdout


def test_record_says_what_it_kept(folder: Path) -> None:
    result = recorded("build", "ref.safetensors", "--parameters", "--seed", "4")
    assert all(line.startswith("... ") for line in result.stderr.splitlines())
    text = result.stdout
    sha = json.loads(_strings(folder / "ref.safetensors"))["inputs_sha256"]
    for phrase in (
        "ref.safetensors: numpy",
        "7 sites, 12 cotangents, 6 gradients, 6 parameters",
        "x float32[5, 6]; seed 4",
        sha,
        f"{(folder / 'ref.safetensors').stat().st_size:,} bytes",
        "measured in float64",
    ):
        assert phrase in text
    quiet = recorded("build", "b.safetensors", "-q", "--forward-only")
    assert quiet.stderr == "" and "no backward pass, parameters left out" in quiet.stdout


def _strings(path: Path) -> str:
    from crosscheck.traces.file import TensorFile

    return json.dumps(TensorFile(path).metadata)


def test_statuses_of_compare(folder: Path) -> None:
    recorded("build", "ref.safetensors", "--parameters")
    recorded("build", "same.safetensors")
    recorded("wrong", "wrong.safetensors")
    recorded("build", "other.safetensors", "--seed", "1")
    same = call("compare", "ref.safetensors", "same.safetensors")
    assert same.exit_code == 0 and same.stdout.startswith("agree")
    wrong = call("compare", "ref.safetensors", "wrong.safetensors", "--html", "r.html")
    assert wrong.exit_code == 1 and wrong.stdout.startswith("diverge: first at `act1`")
    assert "weights not compared: not both traces hold them" in wrong.stdout
    recorded("wrong", "wrong.safetensors", "--parameters")
    both = call("compare", "ref.safetensors", "wrong.safetensors")
    assert both.stdout.startswith("diverge: first at `act1`")
    assert "weights not compared" not in both.stdout
    assert "act1" in (folder / "r.html").read_text()
    other = call("compare", "ref.safetensors", "other.safetensors", "-q")
    assert other.exit_code == 2 and other.stdout == "" and other.stderr.count("\n") == 1
    assert "different inputs" in other.stderr


def test_a_side_may_be_a_model(folder: Path) -> None:
    recorded("build", "ref.safetensors", "--parameters")
    assert call("compare", "ref.safetensors", "net.py:build").exit_code == 0
    wrong = call("compare", "ref.safetensors", "net.py:wrong", "--json", "-")
    report = json.loads(wrong.stdout)
    assert wrong.exit_code == 1 and report["first_divergence"]["candidate"] == "act1"
    assert [s["verdict"] for s in report["sites"]].count("agree") == len(report["sites"]) - 1
    assert call("compare", "net.py:build", "ref.safetensors").exit_code == 0


def test_json_and_options_of_compare(folder: Path) -> None:
    recorded("build", "ref.safetensors")
    recorded("wrong", "wrong.safetensors")
    sides = ("compare", "ref.safetensors", "wrong.safetensors")
    result = call(*sides, "--json", "-")
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert report["first_divergence"]["candidate"] == "act1"
    assert len(report["divergences"]) == 1
    assert report["environment"]["inputs_sha256"]
    assert call(*sides, "--tolerance", "0.1,0.1").exit_code == 0
    forward = json.loads(call(*sides, "--json", "-", "--forward-only").stdout)
    assert {s["phase"] for s in forward["sites"]} == {"forward"}
    skipped = json.loads(call(*sides, "--json", "-", "--skip", "act1").stdout)
    assert skipped["coverage"]["skipped"] == ["act1"]


def test_a_pair_and_a_file_of_inputs_can_be_recorded(folder: Path) -> None:
    assert call("record", "pair.py", "-o", "pair.safetensors").exit_code == 0
    inputs = ("--inputs", "pair.safetensors")
    result = call("record", "net.py:build", *inputs, "-o", "net.safetensors")
    assert result.exit_code == 0, result.output
    assert call("compare", "pair.safetensors", "net.safetensors").exit_code == 0


def test_train_mode_is_recorded(folder: Path) -> None:
    assert "train mode" in recorded("build", "t.safetensors", "--train").stdout


BAD: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no input": (("record", "net.py:build", "-o", "r.safetensors"), ("--input NAME=SPEC",)),
    "inputs twice": (
        ("record", "net.py:build", *X, "--inputs", "in", "-o", "r.safetensors"),
        ("not both",),
    ),
    "no trace's name": (("record", "net.py:build", *X, "-o", "r.pt"), ("ends in .safetensors",)),
    "no such file": (("record", "no.py:build", *X, "-o", "r.safetensors"), ("no file no.py",)),
    "no pair": (("record", "nothing", *X, "-o", "r.safetensors"), ("no such pair",)),
    "a model that raises": (
        ("record", "net.py:Raises", *X, "-o", "r.safetensors"),
        ("SideFailed", "out of luck"),
    ),
    "cuda where there is none": (
        ("record", "net.py:build", *X, "-o", "r.safetensors", "--device", "cuda"),
        ("DeviceUnavailable",),
    ),
    "a folder to write to": (("record", "net.py:build", *X, "-o", "."), ("cannot write",)),
    "no trace": (("compare", "a.safetensors", "b.safetensors"), ("TraceFormatError", "no such")),
    "not a trace": (("compare", "net.py", "net.py"), ("crosscheck record",)),
    "two models": (("compare", "net.py:build", "net.py:build"), ("crosscheck run",)),
    "half a tolerance": (
        ("compare", "a.safetensors", "b.safetensors", "--tolerance", "1e-3"),
        ("TraceFormatError|RTOL,ATOL",),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_done_is_status_2_and_one_line(folder: Path, name: str) -> None:
    arguments, phrases = BAD[name]
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("... ")]
    assert len(lines) == 1 and lines[0].startswith("crosscheck: ")
    for phrase in phrases:
        assert any(choice in lines[0] for choice in phrase.split("|")), lines[0]
    assert not any(path.suffix == ".tmp" for path in folder.iterdir())


def test_both_commands_are_listed_and_explain_themselves() -> None:
    top = call("--help").stdout
    assert "record" in top and "compare" in top
    for command in ("record", "compare"):
        assert "Example" in call(command, "--help").stdout


def test_traces_without_a_finite_number(folder: Path) -> None:
    """NaN on both sides is no agreement."""
    (folder / "lost.py").write_text(
        "from tests.traces.kit import Net\n\n\ndef build():\n    net = Net()\n"
        "    net.act2.factor = float('nan')\n    return net\n"
    )
    result = call("record", "lost.py:build", *X, "-o", "lost.safetensors")
    assert result.exit_code == 0, result.output
    result = call("compare", "lost.safetensors", "lost.safetensors", "--json", "report.json", "-q")
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1 and "holds no finite number" in result.stderr
    assert not (folder / "report.json").exists()
