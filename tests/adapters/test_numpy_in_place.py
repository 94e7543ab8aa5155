"""Layers that work in place: what they overwrite is their own, not the other side's record."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import crosscheck

from .numpy_kit import Dense


class InPlaceRelu:
    def forward(self, x: Any) -> Any:
        self.off = x <= 0
        x[self.off] = 0
        return x

    def backward(self, dy: Any) -> Any:
        dy[self.off] = 0
        return dy


class HalvingRelu(InPlaceRelu):
    """A wrong backward pass, in place too."""

    def backward(self, dy: Any) -> Any:
        dy *= 0.5
        return dy


def check(relu: Any) -> crosscheck.Report:
    rng = np.random.default_rng(0)
    layers = [torch.nn.Linear(7, 6), torch.nn.ReLU(), torch.nn.Linear(6, 5), torch.nn.ReLU()]
    reference = torch.nn.Sequential(*layers, torch.nn.Linear(5, 3))
    candidate = [Dense(7, 6, rng), InPlaceRelu(), Dense(6, 5, rng), relu, Dense(5, 3, rng)]
    return crosscheck.check(reference, candidate, {"x": "float32[4,7]"})


def test_an_honest_net_that_works_in_place_agrees() -> None:
    report = check(InPlaceRelu())
    assert report.verdict == "agree"
    assert max(site.ratio for site in report.sites) <= 8  # not excused by float64


def test_a_wrong_backward_in_place_is_found_at_its_layer() -> None:
    first = check(HalvingRelu()).first_divergence
    assert first is not None
    assert (first.reference, first.phase) == ("3", "backward")


def test_a_backward_in_place_leaves_the_cotangents_that_it_is_given() -> None:
    given = np.ones((2, 3), np.float32)
    adapter = crosscheck.adapt(InPlaceRelu())
    x = -np.ones((2, 3), np.float32)
    adapter.run({"x": x}, lambda *_: None, cotangents=lambda _: {"output": given})
    assert given.all()
    assert (x == -1).all()


@pytest.mark.parametrize("kind", ["activation", "cotangent"])
def test_what_replaces_a_value_is_not_written_to(kind: str) -> None:
    planned = np.full((2, 3), -1, np.float32)

    def observer(site: str, seen: str, _: np.ndarray) -> np.ndarray | None:
        wanted = site == {"activation": "input:x", "cotangent": "output"}[kind]
        return planned if wanted and seen == kind else None

    adapter = crosscheck.adapt(InPlaceRelu())
    x = -np.ones((2, 3), np.float32)
    adapter.run({"x": x}, observer, cotangents=lambda _: {"output": np.ones((2, 3), np.float32)})
    assert (planned == -1).all()
