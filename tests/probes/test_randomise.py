"""Other weights show what initial ones hide, and are gone afterwards."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import crosscheck
from crosscheck import Report, SideFailed
from crosscheck.adapters.base import Parameter
from crosscheck.probes.randomise import moved
from tests.check.numpy_models import Stack
from tests.check.torch_models import Mlp, Tied

from .models import Batched, Rowwise


def check(reference: Any, candidate: Any, **options: Any) -> Report:
    return crosscheck.check(reference, candidate, "float32[5,6]", **options)


def test_forgotten_statistics_show_with_other_weights() -> None:
    reference, candidate = Batched(), Batched(forgets_statistics=True)
    assert check(reference, candidate).verdict == "agree"
    before = copy.deepcopy(reference.state_dict())
    report = check(reference, candidate, randomise=True)
    assert report.verdict == "diverge"
    assert report.notes[0].startswith("weights randomised (seed 0) on both sides")
    for model in (reference, candidate):
        assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_kept_weights_move_together() -> None:
    reference = Batched()
    candidate = copy.deepcopy(reference)
    assert check(reference, candidate, weights="keep", randomise=True).verdict == "agree"
    candidate.forgets = True
    assert check(reference, candidate, weights="keep").verdict == "agree"
    before = copy.deepcopy(candidate.state_dict())
    assert check(reference, candidate, weights="keep", randomise=True).verdict == "diverge"
    assert all(torch.equal(v, before[n]) for n, v in candidate.state_dict().items())


def test_kept_weights_that_differ_still_show() -> None:
    reference = Batched()
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate.fc.bias[2] += 1e-3
    report = check(reference, candidate, weights="keep", randomise=True)
    first = report.first_divergence
    assert first is not None and (first.phase, first.reference) == ("weights", "fc.bias")


def test_other_frameworks_and_ties() -> None:
    assert check(Mlp(), Stack(), randomise=True).verdict == "agree"
    tied = Tied()
    report = crosscheck.check(tied, Tied(), "int64[3,5] 0..11", randomise=True)
    assert report.verdict == "agree"
    assert tied.head.weight is tied.emb.weight


def test_weights_are_back_after_a_failure() -> None:
    reference, candidate = Rowwise(), Rowwise(fixed=7)
    before = [copy.deepcopy(m.state_dict()) for m in (reference, candidate)]
    with pytest.raises(SideFailed):
        check(reference, candidate, randomise=True)
    for model, state in zip((reference, candidate), before, strict=True):
        assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())


def test_the_scale_of_what_is_drawn() -> None:
    def one(value: Any, role: str = "weight") -> np.ndarray:
        array = np.asarray(value, np.float32)
        return moved([Parameter("p", array, "l", role, "dense", None)], seed=1)["p"]

    ones = one(np.ones(400))
    assert (ones >= 0.5).all() and (ones <= 1.5).all() and ones.std() > 0.1
    assert (one(np.full(50, 1e-3), "variance") > 0).all()
    assert 0.05 < one(np.zeros(400), "bias").std() < 0.2
    assert 0.05 < one(np.zeros((100, 64))).std() < 0.2
    trained = np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32)
    assert np.corrcoef(trained.ravel(), one(trained).ravel())[0, 1] > 0.98
    assert np.array_equal(one(trained), one(trained.copy()))  # equal elements, equal noise
