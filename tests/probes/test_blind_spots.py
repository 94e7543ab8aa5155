"""What an agreement could not have shown is listed, exactly, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import crosscheck
from crosscheck import Report
from crosscheck.probes import reach
from tests.check.numpy_models import Stack
from tests.check.torch_models import Mlp, Residual, Tied

from .models import Batched, Encoder, Idle, IdleByHand

IDS = {"ids": np.array([[0, 2, 5], [5, 7, 2]])}
LEFT_OUT = "is 0 throughout: a port that leaves it out would agree"
ONES = "is 1 throughout: a port that leaves it out or permutes it would agree"


def check(reference: Any, candidate: Any, inputs: Any = "float32[64,6]", **options: Any) -> Report:
    report = crosscheck.check(reference, candidate, inputs, **options)
    assert report.verdict == "agree", str(report)
    return report


def spots(report: Report) -> dict[str, str]:
    pieces = (line.removeprefix("`").partition("`: ") for line in report.coverage.blind_spots)
    return {name: why for name, _, why in pieces}


def test_exactly_what_could_not_be_seen() -> None:
    found = spots(check(Idle(), IdleByHand(), IDS, weights="copy"))
    assert found == {
        "square.weight": "is symmetric: a port that transposes it would agree",
        "square.bias": LEFT_OUT,
        "norm.weight": ONES,
        "norm.bias": LEFT_OUT,
        "embed.weight": "nothing compared depends on 5 of its 9 rows: 1, 3, 4, 6, 8",
        "spare.weight": "nothing compared depends on it",
        "spare.bias": "nothing compared depends on it",
    }


def test_gradients_by_autograd_tell_how_a_parameter_is_used() -> None:
    found = spots(check(Idle(), Idle(), IDS))
    assert set(found) == {"embed.weight", "spare.weight", "spare.bias"}


def test_initial_statistics_and_what_closes_them() -> None:
    found = spots(check(Batched(), Batched()))
    assert found == {"bn.running_mean": LEFT_OUT, "bn.running_var": ONES}
    assert spots(check(Batched(), Batched(), randomise=True)) == {}


def test_probes_close_what_they_reach() -> None:
    whole = {"all": {"ids": np.arange(9).reshape(3, 3)}}
    found = spots(check(Idle(), Idle(), IDS, probes=whole))
    assert set(found) == {"spare.weight", "spare.bias"}


def test_constant_and_unread_inputs() -> None:
    class Deaf(Encoder):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return super().forward(ids, torch.ones_like(mask))

    inputs = {"ids": "int64[3,7] 0..12", "mask": np.ones((3, 7), bool)}
    found = spots(check(Encoder(), Encoder(), inputs))
    assert found["input:mask"] == "is the same throughout: a port that ignores it would agree"
    found = spots(check(Deaf(), Deaf(), {**inputs, "mask": "bool[3,7]"}))
    assert found["input:mask"] == "was altered, and nothing compared moved"
    assert "input:ids" not in found


def test_silent_sites() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.dead, self.cut, self.b = (nn.Linear(6, 6) for _ in range(4))
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            gate = self.relu(self.dead(x).abs() * -1)
            return self.b(x + gate) + self.cut(x).detach().mean()

    found = spots(check(Silent(), Silent()))
    assert found["relu"] == "its value is 0 throughout: what is computed from it was not tested"
    assert found["cut"].startswith("its cotangent is 0 throughout")
    assert not {"a", "b", "a.weight", "b.weight", "cut.weight"} & set(found)


def test_an_annihilated_cotangent() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 1)
            self.soft = nn.Softmax(-1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.fc(x)
            return self.soft(h), h

    found = spots(check(Alone(), Alone()))
    assert found["soft"].startswith("what it sends back is 0 but for rounding")


def test_ordinary_models_have_none() -> None:
    assert spots(check(Mlp(), Stack())) == {}
    assert spots(check(Residual(), Residual(), "float32[5,4]")) == {}
    assert spots(check(Tied(), Tied(), {"ids": np.arange(10).reshape(2, 5)})) == {}


def test_without_gradients_only_what_was_not_reached() -> None:
    found = spots(check(Idle(), Idle(), IDS, gradients=False))
    assert set(found) >= {"embed.weight", "spare.weight", "spare.bias", "norm.weight"}
    assert not {"out.weight", "out.bias"} & set(found)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(3000, 4), nn.Linear(4, 3)
        with torch.no_grad():
            self.embed.weight[7] = self.embed.weight[8]
            self.embed.weight[9] = 0.0

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.out(self.embed(ids))
        return out


def test_rows_that_were_read_are_told_by_what_came_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients, and more of them than could be altered one by one. What another row holds
    as well, or one number throughout, has to be altered."""
    monkeypatch.setattr("crosscheck.probes.reach._gradients", lambda evidence: {})
    runs = []
    run = reach._Search._run
    monkeypatch.setattr(
        reach._Search, "_run", lambda self, batch: runs.append(batch) or run(self, batch)
    )
    torch.manual_seed(0)
    net, ids = Words(), np.array([[5, 8, 2999, 9, 5]])
    found = spots(check(net, net, {"ids": ids}, gradients=False))
    assert found["embed.weight"] == (
        "nothing compared depends on 2996 of its 3000 rows: 0, 1, 2, 3, 4, 6, 7, 10, ..."
    )
    assert len(runs) < reach.MOST_RUNS


def test_they_are_shown_and_can_be_left_out(tmp_path: Path) -> None:
    report = check(Batched(), Batched())
    text = str(report)
    assert "blind spots (2)" in text and "`bn.running_mean`: is 0 throughout" in text
    assert "--randomise" in text
    report.save_json(tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())["coverage"]["blind_spots"]
    assert found == [f"`bn.running_mean`: {LEFT_OUT}", f"`bn.running_var`: {ONES}"]
    report.save_html(tmp_path / "r.html")
    assert "blind spots (2)" in (tmp_path / "r.html").read_text()
    assert check(Batched(), Batched(), blind_spots=False).coverage.blind_spots == ()
