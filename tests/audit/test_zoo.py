"""The audit of the zoo: each model in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from crosscheck.auditing.pairs import of_pair
from crosscheck.errors import InvalidArgument
from crosscheck.pair import load_pair
from scripts import audit_zoo

MODELS = Path(audit_zoo.__file__).parent.parent / "models"


def test_a_healthy_model_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MODELS.parent)
    report, seconds = audit_zoo.in_a_process("mlp", "numpy", 120)
    assert audit_zoo.verdict(report) == "clean", report
    line, *rest = audit_zoo.lines("mlp", "numpy", report, seconds)
    assert line.startswith("mlp           numpy       clean ") and not rest


def test_one_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MODELS.parent)
    report, _ = audit_zoo.in_a_process("mlp", "numpy", 0.01)
    assert audit_zoo.lines("mlp", "numpy", report, 0.01)[1] == "    no end after 0.01 s"


def test_what_an_audit_takes_of_a_pair() -> None:
    pair = load_pair(MODELS / "actor_critic")
    chosen = of_pair(pair, "numpy", seed=3)
    assert chosen.loss == {"output": "nll", "output:1": "0.5 * mse"}
    assert chosen.inputs["x"].shape == (7, 6) and set(chosen.targets) == set(chosen.loss)
    assert (chosen.inputs["x"] != of_pair(pair, "numpy").inputs["x"]).any()
    with pytest.raises(InvalidArgument, match="no candidate 'numpie'"):
        of_pair(pair, "numpie")


@pytest.mark.parametrize("family", audit_zoo.families())
def test_a_constructor_leaves_no_memory_as_it_is(family: str) -> None:
    """What `torch.empty` gives is filled with NaN here."""
    torch = pytest.importorskip("torch")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        model = audit_zoo.fresh(family)
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(value.isfinite().all() for value in model.state_dict().values())
