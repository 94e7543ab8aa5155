"""What is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crosscheck
from crosscheck import CannotCompare, InvalidArgument, SideFailed
from crosscheck.losses import Own
from tests.losses.kit import Net

X, LABELS = "float32[7,6]", "int64[7] 0..4"


def check(loss: Any, targets: Any = LABELS, inputs: Any = X, **options: Any) -> Any:
    return crosscheck.check(Net(), Net(), inputs, loss=loss, targets=targets, **options)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("cross_entrop", "there is no loss `cross_entrop`. Did you mean `cross_entropy`? Known: "),
        ("l2", "Did you mean `mse`"),
        ("bogus", "there is no loss `bogus`. Known: "),
        ("mean_squared_error", "Did you mean `mse`"),
        ("quux", "there is no loss `quux`. Known: bce_with_logits, cross_entropy"),
        ("mse(reducton=sum)", "`mse` has no option `reducton`. Did you mean `reduction`?"),
        ("mse(reduction=none)", "reduction='none' must be mean or sum or batchmean"),
        ("cross_entropy(label_smoothing=1.5)", "must be a number from 0 to 1"),
        ("cross_entropy(weight=[1,-1])", "must be finite numbers ≥ 0"),
        ("cross_entropy(weight=[1,2])", r"weight has shape (2,); there are 4 classes"),
        ("cross_entropy(0.1)", "write name(option=value, ...)"),
        ("cross entropy", "cannot be read"),
        ({"output": "cross_entropy", "output:1": "mse"}, "targets: the loss of output `output`"),
        ({"out": "cross_entropy"}, "the reference has no output `out`; it has `output`"),
        ({"output": 3}, "give the text of a loss"),
        (3, "loss=3: give a text such as"),
        (np.mean, "crosscheck.losses.Own(reference=..., candidate=...)"),
        ("vae", "reads 3 floating-point outputs; the reference has `output`"),
    ],
)
def test_a_loss_that_is_none(loss: Any, said: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        targets: Any = np.zeros((7, 4), np.float32) if loss == "vae" else LABELS
        check(loss, targets)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("loss", "targets", "said"),
    [
        ("cross_entropy", None, 'needs targets: class indices, such as targets="int64[8] 0..10"'),
        ("mse", None, "needs targets: an array of the output's shape"),
        ("cross_entropy", np.array([0, 1, 2, 3, 4, 0, 1]), "label 4 at (4,) is not one of the 4"),
        ("cross_entropy", np.full(7, -100), "every label is ignore_index (-100)"),
        ("cross_entropy", "int64[6] 0..4", "have shape (6,); the output (7, 4) without its axis"),
        ("cross_entropy", "float32[7]", "for class indices give integers: targets.astype(int)"),
        ("cross_entropy", np.full((7, 4), 1.5, np.float32), "must be probabilities from 0 to 1"),
        ("cross_entropy", "bool[7]", "give class indices (integers)"),
        ("nll", "float32[7,4]", "give class indices (integers)"),
        ("mse", "float32[7]", "must be equal, since broadcasting would compare every element"),
        ("mse", "float32[7,4", "targets: `target`"),
        ("mse", {"a": "float32[7,4]", "b": "float32[7,4]"}, "takes one; there are `a`, `b`"),
        ("bce_with_logits", np.full((7, 4), 2.0), "probabilities from 0 to 1; 2.0 at (0, 0)"),
        ("mse", np.full((7, 4), np.nan), "targets: "),
        (None, LABELS, "targets= is given without loss="),
    ],
)
def test_targets_that_do_not_fit(loss: Any, targets: Any, said: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        check(loss, targets)
    assert said in str(error.value)


def test_an_axis_that_shapes_leave_open() -> None:
    with pytest.raises(InvalidArgument, match=r'"cross_entropy\(axis=1\)" or'):
        check("cross_entropy", "int64[3,4] 0..4", inputs="float32[3,4,6]")
    assert check("cross_entropy(axis=-1)", "int64[3,4] 0..4", "float32[3,4,6]").verdict == "agree"


def test_labels_of_ctc() -> None:
    tokens = "float32[2,7,6]"
    assert check("ctc", np.array([[1, 2], [3, 3]]), tokens).verdict == "agree"
    for labels, said in (
        (np.array([[1, 0], [3, 3]]), "not the blank"),
        (np.array([[1, 2]]), "which axis of the output"),
        (np.array([[1, 2, 1, 1, 1, 1]] * 2), "6 labels need 9 steps; 7 of 7 count"),
        (np.zeros((2, 2), np.float32), "give integer labels"),
    ):
        with pytest.raises(InvalidArgument) as error:
            check("ctc", labels, tokens)
        assert said in str(error.value)


def returns(*values: Any) -> Any:
    return lambda o, t: values[0] if len(values) == 1 else values


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        (returns(np.float32(1)), "must return (value, gradient)"),
        (
            returns(np.zeros(7, np.float32), np.zeros((7, 4))),
            "returned float32(7,): it must return",
        ),
        (returns(np.float32(1), np.zeros(4)), "gradient of shape (4,) for `output`"),
    ],
)
def test_what_ones_own_loss_returns(candidate: Any, said: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        check(Own("cross_entropy", candidate))
    assert "the candidate's loss" in str(error.value) and said in str(error.value)


def test_ones_own_loss_is_something_that_can_be_called() -> None:
    with pytest.raises(InvalidArgument, match=r"losses.Own\(candidate=3\)"):
        Own("mse", 3)
    with pytest.raises(InvalidArgument, match="Did you mean `mse`"):
        Own("mse", "mze")


def test_a_loss_that_raises_is_a_side_that_failed() -> None:
    def raises(o: Any, t: Any) -> Any:
        return o[99]

    with pytest.raises(
        SideFailed, match="the candidate .*raised in its loss pass at `loss`: Index"
    ):
        check(Own("cross_entropy", raises))
    with pytest.raises(SideFailed, match="the reference .*at `loss`"):
        check(Own(raises, "cross_entropy"))


def test_a_loss_that_is_not_finite() -> None:
    def infinite(o: Any, t: Any) -> Any:
        return np.float32(np.inf), np.zeros_like(o)

    with pytest.raises(CannotCompare, match="the reference's loss `own` is inf on its own outputs"):
        check(Own(infinite, infinite))
    report = check(Own("cross_entropy", infinite))
    assert report.first_divergence is not None
    assert (report.first_divergence.phase, report.first_divergence.candidate) == ("loss", "loss")


def test_a_recorded_side_has_no_loss(tmp_path: Path) -> None:
    file = tmp_path / "ref.safetensors"
    crosscheck.record(Net(), X).save(file)
    with pytest.raises(InvalidArgument, match="the reference is a recorded run"):
        crosscheck.check(str(file), Net(), X, loss="cross_entropy", targets=LABELS)


def test_a_tolerance_takes_the_place_of_the_floor() -> None:
    def slightly(o: Any, t: Any) -> Any:
        return np.float32(1.0001) * np.mean(o * o), 2 * o / np.float32(o.size)

    own = Own(lambda o, t: (np.mean(o * o), 2 * o / np.float32(o.size)), slightly)
    loose = crosscheck.Tolerance(rtol=1e-3, atol=1e-5)
    assert check(own, None, tolerance=loose).verdict == "agree"
    assert check(own, None).verdict == "diverge"


def test_an_output_without_a_counterpart_is_not_passed_over() -> None:
    class Flat(Net):
        def forward(self, x: Any) -> Any:
            return super().forward(x).reshape(-1)

        def backward(self, dy: Any) -> Any:
            return super().backward(dy.reshape(7, 4))

    report = crosscheck.check(Net(), Flat(), X, loss="cross_entropy", targets=LABELS)
    assert report.verdict == "diverge"
    assert "loss: output `output` has no counterpart of its shape" in report.coverage.not_compared
