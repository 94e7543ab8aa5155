"""`crosscheck run --probes, --seeds, --randomise, --shrink`."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any


def test_probes_and_seeds(crosscheck: Any) -> None:
    result = crosscheck(
        "run", "port", "--probes", "small,odd", "--seeds", "2", "--randomise", "--json", "-"
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [p["name"] for p in report["probes"]] == ["seed 1", "small", "odd"]
    assert report["notes"][0].startswith("weights randomised")
    result = crosscheck("run", "port", "--probes", "all")
    assert result.exit_code == 0 and "probes (7)" in result.stdout


def test_an_unknown_probe(crosscheck: Any) -> None:
    result = crosscheck("run", "port", "--probes", "tiny")
    assert result.exit_code == 2 and result.stdout == ""
    assert "there is no `tiny`; built in are `small`, `large`" in result.stderr


def test_shrink(crosscheck: Any, folder: Path, capsys: Any) -> None:
    result = crosscheck("run", "port", "--candidate", "wrong", "--json", "-", "--shrink", "bug")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["verdict"] == "diverge"
    assert "input `x`: [5, 6] -> [1, 6]" in result.stderr
    assert "relative difference 0.01)" in result.stderr
    runpy.run_path(str(folder / "bug" / "reproduce.py"))
    assert capsys.readouterr().out.startswith("relative difference 9.99999")
    assert crosscheck("run", "port", "--shrink").exit_code == 0  # it agrees: nothing to shrink
