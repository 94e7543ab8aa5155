"""Probe inputs: each shows what a random batch hides; honest models agree on all of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import crosscheck
from crosscheck import InvalidArgument, Report, SideFailed
from crosscheck.probes.inputs import BUILT_IN
from crosscheck.results import ProbeResult
from tests.check.kit import replace, scaled
from tests.check.numpy_models import RecurrentNet
from tests.check.torch_models import Recurrent

from .models import Batched, Downsampled, Encoder, Normed, Rowwise, normed_by_hand

BIG = {"x": 300.0 * np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)}
TOKENS = {"ids": "int64[3,7] 0..12", "mask": np.ones((3, 7), np.int64)}


def check(reference: Any, candidate: Any, inputs: Any, **options: Any) -> Report:
    return crosscheck.check(reference, candidate, inputs, **options)


def of(report: Report, name: str) -> ProbeResult:
    return next(p for p in report.probes if p.name == name)


def verdicts(report: Report) -> dict[str, str]:
    return {p.name: p.verdict for p in report.probes}


def test_a_small_variance_shows_an_eps() -> None:
    assert check(Normed(), normed_by_hand(1e-4), BIG).verdict == "agree"
    report = check(Normed(), normed_by_hand(1e-4), BIG, probes=["small"])
    assert report.verdict == "diverge"
    first = report.first_divergence
    assert first is not None and first.reference == "norm" and first is of(report, "small").first
    assert "eps 0.0001 instead of 1e-05" in first.causes[0].statement
    assert "seen with probe `small` (floats of standard deviation 0.02), not without" in str(report)
    (site,) = (s for s in report.sites if s.reference == "norm" and s.kind == "activation")
    assert site.verdict == "diverge" and "with probe `small`" in site.notes


def test_another_size_shows_a_padding() -> None:
    odd_sizes = "float32[2,2,7,9]"
    assert check(Downsampled(), Downsampled(tail=True), odd_sizes).verdict == "agree"
    report = check(Downsampled(), Downsampled(tail=True), odd_sizes, probes="odd")
    assert verdicts(report) == {"odd": "diverge"}
    first = report.first_divergence
    assert first is not None and first.phase == "forward" and first.reference == "conv"


def test_padded_tokens_show_a_mask() -> None:
    assert check(Encoder(), Encoder(masked=False), TOKENS).verdict == "agree"
    report = check(Encoder(), Encoder(masked=False), TOKENS, probes=["padded"])
    assert verdicts(report) == {"padded": "diverge"}


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (Normed, "float32[5,6]"),
        (Downsampled, "float32[2,2,7,9] -1..1"),
        (Encoder, {"ids": "int64[3,7] 1..12", "mask": "bool[3,7]"}),
        (Batched, "float32[5,6]"),
    ],
)
def test_honest_models_agree_on_all(build: Any, inputs: Any) -> None:
    report = check(build(), build(), inputs, probes="all", seeds=2, randomise=True)
    assert report.verdict == "agree", str(report)
    assert set(verdicts(report).values()) <= {"agree", "not run"}
    assert list(verdicts(report)) == ["seed 1", *BUILT_IN]
    assert of(report, "odd").verdict == "agree"


def test_a_hand_written_net_agrees_on_all() -> None:
    report = check(Normed(), normed_by_hand(), "float32[5,6]", probes="all", seeds=2)
    assert report.verdict == "agree", str(report)
    assert verdicts(report)["padded"] == "not run"
    assert of(report, "padded").reason == "no input of tokens, nor a mask"


def test_saturated_units_round_as_they_like() -> None:
    """1 - tanh² of a saturated unit has few digits left, and not the same on both sides."""
    report = check(Recurrent(), RecurrentNet(), "float32[5,6]", probes="all", randomise=True)
    assert report.verdict == "agree", str(report)
    wrong = RecurrentNet()
    replace(wrong.cell, "backward", scaled(1.001))
    report = check(Recurrent(), wrong, "float32[5,6]", probes=["large"], randomise=True)
    assert verdicts(report) == {"large": "diverge"}


def test_large_values_show_a_clip() -> None:
    class Clipped(Rowwise):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.clamp(-30, 30))

    assert check(Rowwise(), Clipped(), "float32[4,6]").verdict == "agree"
    report = check(Rowwise(), Clipped(), "float32[4,6]", probes="all")
    assert {n for n, v in verdicts(report).items() if v == "diverge"} == {"large"}


def test_what_the_reference_refuses_is_not_run() -> None:
    report = check(Rowwise(fixed=4), Rowwise(), "float32[4,6]", probes=["odd", "zeros"])
    assert report.verdict == "agree"
    assert verdicts(report) == {"odd": "not run", "zeros": "agree"}
    assert of(report, "odd").reason.startswith("the reference takes no other size: RuntimeError")
    report = check(Rowwise(), Rowwise(), "float32[4,6]", probes={"wide": "float32[4,7]"})
    assert verdicts(report) == {"wide": "not run"}
    assert of(report, "wide").reason.startswith("the reference refuses: RuntimeError at `fc`")


def test_a_candidate_that_raises_loses_nothing() -> None:
    report = check(Rowwise(), Rowwise(fixed=4), "float32[4,6]", probes=["odd", "zeros"])
    assert verdicts(report) == {"odd": "failed", "zeros": "agree"}
    assert report.verdict == "suspect" and not report.divergences
    assert "suspect: the candidate fails with probe `odd`: RuntimeError" in str(report)
    with pytest.raises(SideFailed):
        check(Rowwise(), Rowwise(fixed=3), "float32[4,6]", probes="all")


def test_own_inputs_and_seeds() -> None:
    own = {"tiny": {"x": np.full((2, 6), 1e-4, np.float32) * np.arange(6, dtype=np.float32)}}
    report = check(Normed(), normed_by_hand(1e-4), BIG, probes=own, seeds=2)
    assert verdicts(report) == {"seed 1": "agree", "tiny": "diverge"}
    fed: list[int] = []

    def inputs(seed: int) -> dict[str, str]:
        fed.append(seed)
        return {"x": "float32[5,6]"}

    assert check(Normed(), Normed(), inputs, seeds=3, seed=4).verdict == "agree"
    assert fed == [4, 5, 6]


def test_json_and_html(tmp_path: Path) -> None:
    report = check(Normed(), normed_by_hand(1e-4), BIG, probes=["small", "padded"])
    report.save_json(tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    small, padded = found["probes"]
    assert small["name"] == "small" and small["verdict"] == "diverge"
    assert small["first"] == found["first_divergence"]
    assert padded == {
        "name": "padded",
        "verdict": "not run",
        "first": None,
        "what": "padding in the tail of every row, masks accordingly",
        "reason": "no input of tokens, nor a mask",
    }
    report.save_html(tmp_path / "r.html")
    assert "probes (2)" in (tmp_path / "r.html").read_text()


def test_models_are_left_as_found() -> None:
    torch.manual_seed(0)
    reference, candidate = Batched(), Batched()
    before = copy.deepcopy(reference.state_dict())
    check(reference, candidate, "float32[5,6]", probes="all", seeds=2, randomise=True, train=True)
    for model in (reference, candidate):  # the candidate holds the reference's own weights
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_unknown_probes_are_refused() -> None:
    for wrong, text in (
        ({"probes": "tiny"}, "there is no `tiny`; built in are `small`"),
        ({"probes": 3}, 'must be "all", a list of names'),
        ({"probes": {"mine": None}}, "there is no `mine`"),
        ({"seeds": 0}, "seeds=0: must be an integer"),
        ({"randomise": 1}, "randomise=1: must be True or False"),
        ({"probes": "all", "candidate_inputs": {"x": "float32[5,6]"}}, "one set of arrays"),
    ):
        with pytest.raises(InvalidArgument, match=text):
            check(Normed(), Normed(), "float32[5,6]", **wrong)
