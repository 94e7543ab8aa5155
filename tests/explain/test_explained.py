"""Causes as a check reports them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import crosscheck
from crosscheck.explain.fresh import fresh_inputs
from tests.check.kit import replace, run, scaled
from tests.check.numpy_models import LN, Affine, Rectifier, Stack, Tanh


def net() -> Stack:
    """A net whose norm sees small variances and has weights of its own."""
    norm, rng = LN(8), np.random.default_rng(1)
    norm.gamma = rng.normal(size=8).astype(np.float32)
    norm.beta = rng.normal(size=8).astype(np.float32)
    return Stack(Affine(6, 8), Tanh(), norm, Affine(8, 8), Rectifier(), Affine(8, 3))


def causes(candidate: Any, **options: Any) -> list[tuple[str, str, bool]]:
    """(phase, statement, verified) of every cause of every divergence."""
    report = run(net(), candidate, **options)
    assert report.verdict == "diverge"
    return [(d.phase, c.statement, c.verified) for d in report.divergences for c in d.causes]


def test_an_epsilon() -> None:
    wrong = net()
    wrong.layers[2].eps = 1e-2
    assert ("forward", "eps 0.01 instead of 1e-05", True) in causes(wrong)


def test_a_factor_in_the_vjp_of_a_layer() -> None:
    wrong = net()
    replace(wrong.layers[3], "backward", scaled(0.5))
    assert causes(wrong) == [("backward", "the gradient is scaled by 0.5", True)]


def test_a_gradient_averaged_over_the_batch() -> None:
    wrong = net()

    def averaged(self: Any, original: Any, dy: Any) -> Any:
        dx = original(dy)
        self.db = self.db / np.float32(5)
        return dx

    replace(wrong.layers[3], "backward", averaged)
    expected = "the gradient is scaled by 1/5, the batch size"
    assert causes(wrong) == [("parameter_gradient", expected, True)]


def test_a_weight_transposed_on_the_way() -> None:
    wrong = net()
    run(net(), wrong)  # copies the weights
    wrong.layers[3].W = wrong.layers[3].W.T.copy()
    found = causes(wrong, weights="keep")
    assert found[0] == ("weights", "the matrix is the transpose of the reference's", True)


def test_a_layer_that_does_something_unheard_of() -> None:
    wrong = net()

    def odd(self: Any, original: Any, x: Any) -> Any:
        y = original(x)
        return y + np.float32(0.1) * np.sin(7 * y * y)

    replace(wrong.layers[1], "forward", odd)
    report = run(net(), wrong)
    assert not any(c.verified for d in report.divergences for c in d.causes)
    assert "cause (reproduced" not in str(report)


class Shared(torch.nn.Module):
    """As encoder-decoders hold it: a table that two layers look up, and a third only owns."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.shared, *both = (torch.nn.Embedding(11, 6, padding_idx=padding) for _ in range(3))
        self.encoder, self.decoder = both
        self.encoder.weight = self.decoder.weight = self.shared.weight
        self.dense = torch.nn.Linear(6, 4)

    def forward(self, x: Any, y: Any) -> Any:
        return torch.tanh(self.dense(self.encoder(x))).sum(1) + self.dense(self.decoder(y)).sum(1)


def test_a_padding_index_of_a_table_that_is_shared() -> None:
    tokens = {"x": "int64[4,9] 0..11", "y": "int64[4,7] 0..11"}
    report = crosscheck.check(Shared(1), Shared(None), tokens)
    found = [(d.reference, c.statement, c.verified) for d in report.divergences for c in d.causes]
    statement = "looking up row 1 sends a gradient, which the reference's padding index stops"
    assert found[:1] == [("shared.weight", statement, True)], str(report)


def test_how_it_is_shown(tmp_path: Path) -> None:
    wrong = net()
    replace(wrong.layers[0], "forward", scaled(1.01))
    report = run(net(), wrong)
    assert "the output is scaled by 1.01" in str(report)
    assert "cause (reproduced" in str(report)
    report.save_json(tmp_path / "report.json")
    (cause,) = json.loads((tmp_path / "report.json").read_text())["first_divergence"]["causes"]
    assert set(cause) == {"name", "statement", "verified", "residual_ratio"}
    assert cause["verified"] is True
    report.save_html(tmp_path / "report.html")
    assert "the output is scaled by 1.01" in (tmp_path / "report.html").read_text()


def test_explain_false_names_none() -> None:
    wrong = net()
    replace(wrong.layers[0], "forward", scaled(1.01))
    report = run(net(), wrong, explain=False)
    assert [d.causes for d in report.divergences] == [()]


def test_a_reference_that_cannot_take_other_inputs_verifies_nothing() -> None:
    reference, wrong = net(), net()
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)

    def picky(self: Any, original: Any, given: Any) -> Any:
        assert np.allclose(given, x)
        return original(given)

    replace(reference.layers[0], "forward", picky)
    replace(wrong.layers[3], "forward", scaled(1.01))
    report = run(reference, wrong, x)
    (cause,) = report.divergences[0].causes
    assert not cause.verified and cause.statement == "the output is scaled by 1.01"


@pytest.mark.parametrize("weights", ["copy", "keep"])
def test_an_agreeing_check_makes_no_further_run(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: Any, **options: Any) -> None:
        raise AssertionError("nothing diverges")

    monkeypatch.setattr("crosscheck.explain.stage.on_fresh_inputs", forbidden)
    assert crosscheck.check(net(), net(), "float32[5,6]", weights=weights).verdict == "agree"


def test_explain_is_true_or_false() -> None:
    with pytest.raises(crosscheck.InvalidArgument, match="explain='yes'"):
        run(net(), net(), explain="yes")


# -- fresh inputs ----------------------------------------------------------------------------------


def test_fresh_inputs_stay_what_a_model_may_be_fed() -> None:
    rng = np.random.default_rng(0)
    given = {
        "tokens": rng.integers(3, 9, (4, 5)),
        "pixels": rng.uniform(0, 1, (2, 3, 3)).astype(np.float32),
        "mask": rng.integers(0, 2, (4, 5)).astype(bool),
    }
    made = fresh_inputs(given, seed=3)
    assert made is not None
    assert np.array_equal(np.sort(made["tokens"], None), np.sort(given["tokens"], None))
    assert not np.array_equal(made["tokens"], given["tokens"])
    assert made["pixels"].min() >= 0 and made["pixels"].max() <= 1
    assert np.abs(np.sort(made["pixels"], None) - np.sort(given["pixels"], None)).max() > 1e-3
    assert np.array_equal(made["mask"], given["mask"])
    assert {k: v.dtype for k, v in made.items()} == {k: v.dtype for k, v in given.items()}


def test_ties_stay_ties() -> None:
    made = fresh_inputs({"x": np.array([[0.5, 0.5, 0.0, -1.0, 0.0]])}, seed=0)
    assert made is not None
    assert made["x"][0, 0] == made["x"][0, 2] == 0.0 and made["x"][0, 3] == made["x"][0, 4]


def test_there_may_be_no_other_inputs() -> None:
    assert fresh_inputs({"tokens": np.full((2, 3), 7), "mask": np.ones(3, bool)}, seed=0) is None
