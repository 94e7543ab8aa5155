"""`crosscheck audit`, the pages that it writes, and the checks by name."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import crosscheck
from crosscheck import checks
from crosscheck.auditing import AuditReport, Finding
from crosscheck.auditing.registry import CHECKS
from crosscheck.cli import main
from crosscheck.errors import CannotCompare, InvalidArgument

from .kit import Net, X, Y, audit, finding

FILE = '''
import numpy as np


class Net:
    """y = x W + b, by hand."""

    def __init__(self, factor=1.0):
        self.W = np.random.default_rng(0).standard_normal((6, 3)).astype("float32") / 2
        self.b = np.zeros(3, "float32")
        self.factor = factor

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, d):
        self.dW, self.db = self.factor * self.x.T @ d, d.sum(0)
        return d @ self.W.T


def wrong():
    return Net(1.01)


class Broken(Net):
    def forward(self, x):
        if abs(self.W - Net().W).max() > 0.01:
            raise RuntimeError("the weights have moved")
        return super().forward(x)


class Raises(Net):
    def forward(self, x):
        raise RuntimeError("out of luck")


def step(net):
    def change():
        net.W = net.W - 0.1

    return change
'''
PAIR = """
import crosscheck
from net import Net, wrong

pair = crosscheck.Pair(
    reference=Net,
    candidate={"right": Net, "wrong": wrong},
    inputs={"x": "float32[8,6]"},
    loss="cross_entropy",
    targets="int64[8] 0..3",
)
"""
GIVEN = ("--input", "x=float32[8,6]", "--loss", "cross_entropy", "--targets", "int64[8] 0..3")
QUICK = ("--skip", "overfits_a_few_examples", "--skip", "inputs_matter")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command in a folder with a model and a pair."""
    (tmp_path / "net.py").write_text(FILE)
    (tmp_path / "pair.py").write_text(PAIR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def run(*arguments: str) -> Result:
        try:
            return CliRunner().invoke(main, ["audit", "-q", *arguments])
        finally:
            for name in set(sys.modules) - before:
                if name in ("net", "pair") or name.startswith("crosscheck_loaded"):
                    del sys.modules[name]

    return run


def test_status_0_and_1(call: Any) -> None:
    right = call("net.py:Net", *GIVEN, *QUICK)
    assert right.exit_code == 0, right.output
    assert right.stdout.startswith("healthy (net.py:Net): ")
    wrong = call("net.py:wrong", *GIVEN, *QUICK)
    assert wrong.exit_code == 1
    assert "WRONG: gradients_match_differences\n  the gradient of `W` is not" in wrong.stdout
    sized = (*GIVEN, *QUICK, "--optimizer", "sgd(lr=1000)")
    assert call("net.py:Net", *sized).exit_code == 0  # suspicious
    assert call("net.py:Net", *sized, "--strict").exit_code == 1


def test_a_pair_and_its_candidate(call: Any) -> None:
    assert call(".", *QUICK).exit_code == 0
    assert call(".", "--candidate", "wrong", *QUICK).exit_code == 1
    missing = call(".", "--candidate", "left")
    assert missing.exit_code == 2 and "no candidate 'left'" in missing.stderr


def test_a_step_and_what_shall_train(call: Any) -> None:
    only = ("--only", "only_these_train", "--only", "variables_train")
    given = ("net.py:Net", "--input", "x=float32[8,6]", "--step", "step", *only)
    frozen = call(*given, "--frozen", "W")
    assert frozen.exit_code == 1 and "`W` shall not train, but the training step" in frozen.stdout
    assert call(*given, "--trains", "W").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("net.py:Raises", *GIVEN), "RuntimeError: out of luck"),
        (("net.py:Net",), "give the inputs"),
        ((), "give FILE.py:NAME or a PAIR"),
        (("net.py:Net", *GIVEN, "--only", "overfit"), "no check is called 'overfit'"),
        (("net.py:Net", *GIVEN, "--frozen", "V"), "'V' names no parameter; there are `W`, `b`"),
        (("net.py:Net", *GIVEN[:4], "--targets", "int64[5] 0..3"), "targets"),
    ],
)
def test_status_2(call: Any, arguments: tuple[str, ...], says: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert says in result.stderr and result.stderr.count("\n") == 1


def test_a_check_that_raises_leaves_the_others(call: Any) -> None:
    result = call("net.py:Broken", *GIVEN, "--json", "-", "--skip", "inputs_matter")
    assert result.exit_code == 2
    report = json.loads(result.stdout)
    status = {f["check"]: f["status"] for f in report["findings"]}
    assert report["verdict"] == "incomplete"
    assert [c for c, s in status.items() if s == "error"] == [
        "loss_depends_on_the_model",
        "overfits_a_few_examples",
    ]
    assert status["gradients_match_differences"] == "pass"
    assert result.stderr.count("\n") == 1 and "the weights have moved (and 1 more)" in result.stderr


def test_list_needs_no_model(call: Any) -> None:
    result = call("--list")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(CHECKS)


def test_json_alone_on_stdout_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FILE)
    root = str(Path(crosscheck.__file__).parent.parent)
    result = subprocess.run(
        [sys.executable, "-m", "crosscheck.cli", "audit", "net.py:wrong", *GIVEN, *QUICK]
        + ["--json", "-", "--html", "page.html"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1, result.stderr
    report = json.loads(result.stdout)
    assert (report["schema"], report["verdict"]) == (1, "wrong")
    assert "... gradients match differences" in result.stderr
    assert "gradients_match_differences" in (tmp_path / "page.html").read_text()


# -- the report ------------------------------------------------------------------------------------


def test_the_page_shows_what_was_seen_and_escapes_names(tmp_path: Path) -> None:
    net = Net()
    net.add_module("<b>second", torch.nn.Linear(3, 3))
    net.forward = lambda x: net._modules["<b>second"](Net.forward(net, x))  # type: ignore[method-assign, union-attr, misc]
    report = audit(net, x=X, name="<script>")
    report.save_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<script>" not in page and "<b>" not in page
    assert "&lt;b&gt;second.weight" in page and "&lt;script&gt;" in page
    for title in (
        "Inputs, right before the net",
        "Labels",
        "Learning a few examples by heart",
        "Parameters",
        "Activations",
        "Inputs of activation functions",
        "Gradients",
    ):
        assert f"<h2>{title}</h2>" in page
    assert "http" not in page  # self-contained


def test_details_of_the_data_and_of_learning() -> None:
    report = audit(Net())
    seen = finding(report, "inputs_are_normalised").details["x"]
    assert seen["mean"] == pytest.approx(X.mean(), abs=1e-6)
    assert (seen["min"], seen["max"]) == (pytest.approx(X.min()), pytest.approx(X.max()))
    counts = finding(report, "labels_look_right").details["targets"]
    assert counts == {str(k): int((k == Y).sum()) for k in range(3)}
    learnt = finding(report, "overfits_a_few_examples").details
    assert learnt["losses"][0] > 10 * learnt["losses"][-1]
    assert len(learnt["predictions"][0]) == 5
    relu = finding(report, "units_are_alive").details["inputs"]["relu"]
    assert relu["kind"] == "relu" and sum(relu["input"]["counts"]) == 16 * 8
    drawn = finding(report, "weights_are_initialised").details
    assert sum(drawn["parameters"]["head.weight"]["counts"]) == 24
    assert {"activations", "gradients", "parameters"} == set(drawn)


def test_raise_if_wrong() -> None:
    def report(*kinds: tuple[str, str]) -> AuditReport:
        found = (Finding(f"check_{k}", s, k, f"a {s} of {k}") for s, k in kinds)  # type: ignore[arg-type]
        return AuditReport(tuple(found), "torch", "2")

    innocent = [("pass", "wrong"), ("skipped", "wrong"), ("fail", "note")]
    report(*innocent).raise_if_wrong(strict=True)
    suspicious = report(*innocent, ("fail", "suspicious"))
    suspicious.raise_if_wrong()
    with pytest.raises(AssertionError, match=r"^check_suspicious: a fail of suspicious$"):
        suspicious.raise_if_wrong(strict=True)
    wrong = report(("fail", "suspicious"), ("fail", "wrong"), ("error", "note"))
    with pytest.raises(AssertionError, match=r"^check_wrong: a fail of wrong\ncheck_note: a error"):
        wrong.raise_if_wrong()
    assert (suspicious.verdict, wrong.verdict) == ("suspicious", "wrong")


def test_raise_if_wrong_of_an_audit() -> None:
    net = Net()
    net.first.requires_grad_(False)
    shown = audit(net, only=["variables_train", "shapes_hold"], parameters=98)
    with pytest.raises(AssertionError, match="^shapes_hold: 99 parameters .* expected 98"):
        shown.raise_if_wrong()


# -- the checks by name ----------------------------------------------------------------------------


def test_every_check_is_a_function() -> None:
    own = {n: v for n, v in vars(checks).items() if inspect.isfunction(v) and n[0] != "_"}
    functions = {n for n, v in own.items() if v.__module__ == checks.__name__}
    assert sorted(functions) == checks.__all__ == sorted(CHECKS)
    assert all(getattr(checks, name).__doc__ for name in checks.__all__)


def test_a_check_passes_fails_or_could_not_look() -> None:
    found = checks.shapes_hold(Net(), X, parameters=99)
    assert (found.status, found.number) == ("pass", 99)
    with pytest.raises(AssertionError, match="shapes_hold: 99 parameters .*expected 98"):
        checks.shapes_hold(Net(), X, parameters=98)
    with pytest.raises(CannotCompare, match="initial_loss: no loss= is given"):
        checks.initial_loss(Net(), X)
    with pytest.raises(InvalidArgument, match="did you mean 'causal'"):
        checks.positions_are_causal(Net(), X, casual=True)
