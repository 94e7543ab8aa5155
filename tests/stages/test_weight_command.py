"""`crosscheck weights`: a map that is printed, edited and read back."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import crosscheck
from crosscheck.cli import main
from crosscheck.weights import Match, match_parameters
from crosscheck.weights.listing import map_text

pytest.importorskip("torch")

MODELS = """
import numpy as np
import torch
from torch import nn
from tests.adapters.layer_kit import First, Projections, Words, scattered
from tests.stages.recurrent_nets import LSTM, Dense

def fused():
    return scattered(Projections(fused=True))

def separate():
    return Projections().eval()

def narrow():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))

def wide():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6))

def recurrent():
    return scattered(First(nn.LSTM(3, 5, batch_first=True)))

def by_hand():
    return LSTM(3, 5, order="iofg")

class Named(nn.Module):  # layers of one shape, called in the order of ``called``
    def __init__(self, defined, called):
        super().__init__()
        self.called = called
        for name in defined:
            setattr(self, name, nn.Linear(6, 6))

    def forward(self, x):
        for name in self.called:
            x = getattr(self, name)(x).tanh()
        return x

def in_order():
    return Named("abcdefgh", "abcdefgh")

def out_of_order():
    return Named("stuvwxyz", "zyxwvuts")

def leaves():
    raise SystemExit(0)

import crosscheck
pair = crosscheck.Pair(fused, {"three": separate, "one": fused}, "float32[2,5,8]")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(MODELS)
    return path


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def as_pairs(match: Match) -> dict[str, Any]:
    return {m.candidate.name: (m.reference_name, m.transform) for m in match.pairs}


def test_a_pair_prints_a_map_that_reads_back(file: Path, tmp_path: Path) -> None:
    result = run("weights", file, "-q")
    assert result.exit_code == 0, result.output
    written = tmp_path / "map.txt"
    written.write_text(result.stdout)
    given = ast.literal_eval(result.stdout)
    assert given["q_proj.weight"] == ("c_attn.weight", "part 0 0:8")
    assert given["o_proj.bias"] == "o_proj.bias"
    checked = run("run", file, "--weights-map", written, "-q", "--json", "-")
    assert checked.exit_code == 0, checked.output
    clash = run("run", file, "--weights-map", written, "--weights", "keep", "-q")
    assert clash.exit_code == 2 and "not both" in clash.stderr


def test_an_edited_map_is_what_is_loaded(file: Path, tmp_path: Path) -> None:
    text = run("weights", file, "-q").stdout
    edited = tmp_path / "map.txt"
    edited.write_text(text.replace("'part 0 8:16'", "'part 0 16:24'"))
    assert edited.read_text() != text
    result = run("run", file, "--weights-map", edited, "-q")
    assert result.exit_code in (1, 2)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("fused", "separate"), ("separate", "fused"), ("recurrent", "by_hand")]
)
def test_every_match_survives_its_text(file: Path, ours: str, theirs: str) -> None:
    from crosscheck.pair import load_model

    sides = [crosscheck.adapt(load_model(f"{file}:{name}")).parameters() for name in (ours, theirs)]
    match = match_parameters(*sides)
    settled = match.choosing({m.candidate.name: m.transform for m in match.ambiguous()})
    again = match_parameters(*sides, given=ast.literal_eval(map_text(settled)))
    assert as_pairs(again) == as_pairs(settled)
    assert again.complete and again.ambiguous() == []


def test_what_is_left_over_is_listed_with_its_nearest(file: Path) -> None:
    result = run("weights", f"{file}:narrow", f"{file}:wide", "-q")
    assert result.exit_code == 1
    assert ast.literal_eval(result.stdout) == {"0.weight": "0.weight", "0.bias": "0.bias"}
    comment = "# candidate parameter `1.weight` (6, 4) has no counterpart; nearest free: "
    assert f"{comment}`1.weight` (5, 4)" in result.stdout
    assert "# reference parameter `1.bias` (5,) has no counterpart" in result.stdout
    assert result.stderr == "crosscheck: 2 matched, 4 without a counterpart, 0 open\n"


def test_what_is_open_takes_an_input(file: Path) -> None:
    sides = (f"{file}:recurrent", f"{file}:by_hand")
    result = run("weights", *sides, "-q")
    assert result.exit_code == 1 and result.stdout.count("# open: ") == 3
    decided = run("weights", *sides, "--input", "x=float32[2,4,3]", "-q")
    assert decided.exit_code == 0 and "# open" not in decided.stdout
    assert ast.literal_eval(decided.stdout)["W_x"] == (
        "inner.weight_ih_l0",
        "blocks 0 0 3 1 2 | transpose",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{file}:fused"], "no such pair"),
        (["{file}:fused", "{file}:none"], "defines no `none`"),
        (["{file}:fused", "{file}:leaves"], "called sys.exit(0)"),
        (["{file}", "--candidate", "two"], "has no candidate `two`"),
        (["{file}", "--input", "x=float32[2]"], "leave --input out"),
        (["{file}:fused", "{file}:fused", "{file}:fused"], "got 3 arguments"),
        (["{file}:fused", "{file}:fused", "--candidate", "one"], "belongs to a PAIR"),
    ],
)
def test_what_cannot_be_done(file: Path, arguments: list[str], message: str) -> None:
    result = run("weights", *(a.format(file=file) for a in arguments), "-q")
    assert result.exit_code == 2 and result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_the_map_is_the_one_that_a_check_finds(file: Path) -> None:
    """Which of the equal layers runs first decides, once there is an input to run them with."""
    made = f"{file}:in_order", f"{file}:out_of_order"
    result = run("weights", *made, "--input", "x=float32[3,6]", "-q")
    assert result.exit_code == 0, result.output
    found = ast.literal_eval(result.stdout)
    assert {name: found[f"{name}.weight"] for name in "stuvwxyz"} == {
        name: f"{twin}.weight" for name, twin in zip("zyxwvuts", "abcdefgh", strict=True)
    }
    both = "--reference", made[0], "--candidate", made[1]
    checked = run("run", *both, "--input", "x=float32[3,6]")
    assert checked.exit_code == 0, checked.output
