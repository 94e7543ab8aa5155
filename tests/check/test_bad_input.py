"""What cannot be compared is refused in words: subject, what was given, what would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import crosscheck
from crosscheck import (
    CannotCompare,
    CrosscheckError,
    DeviceUnavailable,
    InvalidArgument,
    SideFailed,
)

from .kit import found, run
from .numpy_models import Affine, FusedNet, Stack
from .torch_models import Mlp, Outputs, Tied, TwoBranches


class Extra(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(2, 2)


class Wider(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.fc2, self.head = nn.Linear(8, 9), nn.Linear(9, 3)


REFUSED: dict[str, tuple[Callable[[], Any], type[CrosscheckError], tuple[str, ...]]] = {
    # options
    "seed below zero": (lambda: run(Mlp(), Mlp(), seed=-1), InvalidArgument, ("seed=-1", "≥ 0")),
    "seed of no integer": (lambda: run(Mlp(), Mlp(), seed=1.5), InvalidArgument, ("seed=1.5",)),
    "weights": (
        lambda: run(Mlp(), Mlp(), weights="foo"),
        InvalidArgument,
        ("weights='foo'", '"copy"', '"keep"'),
    ),
    "weights of a parameter that does not exist": (
        lambda: run(Mlp(), Stack(), weights={"layers.9.W": "fc1.weight"}),
        InvalidArgument,
        ("candidate parameter `layers.9.W`", "nearest"),
    ),
    "weights from a parameter that does not exist": (
        lambda: run(Mlp(), Stack(), weights={"layers.0.W": "fc9.weight"}),
        InvalidArgument,
        ("reference parameter `fc9.weight`", "nearest", "`fc1.weight`"),
    ),
    "weights with an unknown transform": (
        lambda: run(Mlp(), Stack(), weights={"layers.0.W": ("fc1.weight", "flip")}),
        InvalidArgument,
        ("'flip'", '"transpose"'),
    ),
    "weights of another shape": (
        lambda: run(Mlp(), Stack(), weights={"layers.0.W": "fc2.weight"}),
        InvalidArgument,
        ("(8, 8)", "(6, 8)"),
    ),
    # PyTorch refuses where there is no GPU, and NumPy where there is one.
    "cuda": (lambda: run(Mlp(), Stack(), device="cuda"), DeviceUnavailable, ('device="cuda"',)),
    "a device": (lambda: run(Mlp(), Mlp(), device="tpu"), InvalidArgument, ("'tpu'", '"cpu"')),
    "a loss": (lambda: run(Mlp(), Mlp(), loss="mse"), InvalidArgument, ("loss='mse'", "targets")),
    "targets": (
        lambda: run(Mlp(), Mlp(), targets=np.zeros(3)),
        InvalidArgument,
        ("targets=", "without loss="),
    ),
    "an optimizer": (
        lambda: run(Mlp(), Mlp(), optimizer="sdg(lr=0.1)"),
        InvalidArgument,
        ("optimizer='sdg(lr=0.1)'", "did you mean `sgd`?"),
    ),
    "steps": (lambda: run(Mlp(), Mlp(), steps=3), InvalidArgument, ("steps=3",)),
    "a tolerance": (
        lambda: run(Mlp(), Mlp(), tolerance=1e-3),
        InvalidArgument,
        ("tolerance=0.001", "crosscheck.Tolerance(rtol=..., atol=...)"),
    ),
    "a negative tolerance": (
        lambda: crosscheck.Tolerance(rtol=-1, atol=0),
        InvalidArgument,
        ("rtol", "-1"),
    ),
    "train": (lambda: run(Mlp(), Mlp(), train="yes"), InvalidArgument, ("train='yes'", "True")),
    "gradients": (lambda: run(Mlp(), Mlp(), gradients=None), InvalidArgument, ("gradients=None",)),
    # sites
    "sites of the reference": (
        lambda: run(Mlp(), Stack(), sites={"fc9": "layers.0"}),
        InvalidArgument,
        ("sites=", "`fc9`", "nearest", "`fc1`"),
    ),
    "sites of the candidate": (
        lambda: run(Mlp(), Stack(), sites={"fc1": "layers.9"}),
        InvalidArgument,
        ("sites=", "`layers.9`", "nearest", "`layers."),
    ),
    "sites twice": (
        lambda: run(Mlp(), Stack(), sites={"fc1": "layers.0", "fc2": "layers.0"}),
        InvalidArgument,
        ("`layers.0`", "one counterpart"),
    ),
    "sites in a list": (
        lambda: run(Mlp(), Stack(), sites=["fc1"]),
        InvalidArgument,
        ("sites=['fc1']", "{reference site: candidate site}"),
    ),
    "a site to skip": (
        lambda: run(Mlp(), Mlp(), skip=["fc9"]),
        InvalidArgument,
        ("skip=", "`fc9`", "`fc1`"),
    ),
    "a name to skip": (
        lambda: run(Mlp(), Mlp(), skip="fc1"),
        InvalidArgument,
        ("skip=['fc1']",),
    ),
    "every output skipped": (
        lambda: run(Mlp(), Mlp(), skip=["output"]),
        CannotCompare,
        ("not skipped", "gradients=False"),
    ),
    # models
    "nothing": (lambda: run(None, Mlp()), InvalidArgument, ("the reference", "None")),
    "a path": (
        lambda: run(Mlp(), "model.pt"),
        InvalidArgument,
        ("the candidate", "'model.pt'", "nn.Module"),
    ),
    "a class": (
        lambda: run(Mlp(), Stack),
        InvalidArgument,
        ("the candidate", "the class Stack", "instance"),
    ),
    "a torch class": (lambda: run(Mlp, Mlp()), InvalidArgument, ("the class Mlp", "instance")),
    "weights alone": (
        lambda: run(Mlp(), Mlp().state_dict()),
        InvalidArgument,
        ("OrderedDict", "Weights alone cannot be run"),
    ),
    "a tensor": (lambda: run(Mlp(), torch.zeros(3)), InvalidArgument, ("torch.Tensor",)),
    "a module": (lambda: run(Mlp(), np), InvalidArgument, ("a module",)),
    "a list of anything": (
        lambda: run(Mlp(), [Affine(6, 3), 3]),
        InvalidArgument,
        ("A list must hold layers",),
    ),
    "options that a model does not take": (
        lambda: crosscheck.adapt(Stack(), params={}),
        InvalidArgument,
        ("plain function", "Stack"),
    ),
    "options that no model takes": (
        lambda: crosscheck.adapt(lambda x: x, colour="red"),
        InvalidArgument,
        ("colour",),
    ),
    # parameters
    "a parameter too many": (
        lambda: run(Mlp(), Extra()),
        CannotCompare,
        ("candidate parameter `extra.weight` (2, 2)", "8 of 10", 'weights="keep"'),
    ),
    "a parameter too few": (
        lambda: run(Extra(), Mlp()),
        CannotCompare,
        ("reference parameter `extra.weight` (2, 2)", "`extra.bias`"),
    ),
    "another width": (
        lambda: run(Mlp(), Wider()),
        CannotCompare,
        ("`fc2.weight`", "(9, 8)", "(8, 8)"),
    ),
    # outputs
    "no result of the reference": (
        lambda: run(Outputs("none"), Outputs()),
        CannotCompare,
        ("the reference returned no array", "return"),
    ),
    "no result of the candidate": (
        lambda: run(Outputs(), Outputs("none")),
        CannotCompare,
        ("the candidate returned no array", "return"),
    ),
    "an output too few": (
        lambda: run(Outputs("three"), Outputs("tuple")),
        CannotCompare,
        ("the reference has 3 outputs", "`output:2`", "skip=['output:2']"),
    ),
    "an output too many": (
        lambda: run(Outputs("tuple"), Outputs("three")),
        CannotCompare,
        ("the candidate has 3 outputs", "`output:2`", "skip=['output:2']"),
    ),
    "integers only": (
        lambda: run(Outputs("integer"), Outputs("integer")),
        CannotCompare,
        ("no floating-point output", "int64", "gradients=False"),
    ),
    "an empty batch": (
        lambda: run(Mlp(), Mlp(), "float32[0,6]"),
        CannotCompare,
        ("empty", "[0, 3]", "batch"),
    ),
    # inputs
    "no spec": (
        lambda: run(Mlp(), Mlp(), "five by six"),
        InvalidArgument,
        ("'five by six'", "float32[2,3,33,47]"),
    ),
    "an unknown dtype": (
        lambda: run(Mlp(), Mlp(), "float[5,6]"),
        InvalidArgument,
        ("'float'", "float32"),
    ),
    "integers without a range": (
        lambda: run(Tied(), Tied(), "int64[2,5]"),
        InvalidArgument,
        ("needs a range", "int64[2,5] 0..200"),
    ),
    "an empty range": (
        lambda: run(Tied(), Tied(), "int64[2,5] 5..5"),
        InvalidArgument,
        ("low < high",),
    ),
    "no inputs": (lambda: run(Mlp(), Mlp(), {}), InvalidArgument, ("inputs is empty",)),
    "inputs of nothing": (lambda: run(Mlp(), Mlp(), None), InvalidArgument, ("None", "array or")),
    "inputs of text": (
        lambda: run(Mlp(), Mlp(), np.array(["a"])),
        InvalidArgument,
        ("dtype <U1", "numbers"),
    ),
    "inputs of NaN": (
        lambda: run(Mlp(), Mlp(), np.full((5, 6), np.nan, np.float32)),
        InvalidArgument,
        ("nan at (0, 0)",),
    ),
    "candidate inputs": (
        lambda: run(Mlp(), Mlp(), candidate_inputs=lambda given: None),
        InvalidArgument,
        ("candidate_inputs", "None"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    call, kind, phrases = REFUSED[name]
    with pytest.raises(kind) as error:
        call()
    text = str(error.value)
    for phrase in phrases:
        assert phrase in text, text
    assert text.count("\n") <= 5 and "  \n" not in text
    assert not isinstance(error.value, AssertionError)


RAISING: dict[str, tuple[Callable[[], Any], str, str | None]] = {
    "input shape": (lambda: run(Mlp(), Mlp(), "float32[5,7]"), "reference", "fc1"),
    "input shape of the candidate": (
        lambda: run(Mlp(), Stack(), candidate_inputs="float32[5,7]"),
        "candidate",
        "layers.0",
    ),
    "input dtype": (lambda: run(Mlp(), Mlp(), "int64[5,6] 0..3"), "reference", "fc1"),
    "float for integer": (lambda: run(Tied(), Tied(), "float32[2,5]"), "reference", "emb"),
    "index out of range": (lambda: run(Tied(), Tied(), "int64[2,5] 0..99"), "reference", "emb"),
    "too many inputs": (
        lambda: run(Mlp(), Mlp(), {"a": "float32[5,6]", "b": "float32[5,6]"}),
        "reference",
        "output",
    ),
    "too few inputs": (lambda: run(TwoBranches(), TwoBranches()), "reference", "output"),
}


@pytest.mark.parametrize("name", RAISING)
def test_what_the_model_itself_refuses(name: str) -> None:
    call, side, site = RAISING[name]
    with pytest.raises(SideFailed) as error:
        call()
    assert (error.value.side, error.value.site, error.value.stage) == (side, site, "forward")
    assert f"the {side} (" in str(error.value) and f"at `{site}`" in str(error.value)
    assert error.value.__cause__ is not None
    assert str(error.value.__cause__).splitlines()[0] in str(error.value)


def test_outputs_of_another_shape_are_a_divergence() -> None:
    """Of shape first: nothing is said about values, nor about what was never sent backward."""
    report = run(Outputs("column"), Outputs("flat"))
    assert found(report) == [("forward", "output", "output")]
    first = report.divergences[0]
    assert first.metrics is None and first.ratio == np.inf
    assert "reference (5, 1), candidate (5,)" in first.statement
    assert any("another shape" in line for line in report.coverage.not_compared)


def test_outputs_of_another_kind_are_a_divergence() -> None:
    report = run(Outputs("tuple"), Outputs("with integer"), gradients=False)
    assert [d.site for d in report.divergences] == ["output:1"]


def test_more_parameters_are_listed_when_weights_are_kept() -> None:
    report = run(Mlp(), Extra(), weights="keep")
    assert report.verdict == "agree"
    assert report.coverage.unmatched_candidate_parameters == ("extra.weight", "extra.bias")
    assert "extra.weight" in str(report)


def test_an_error_is_of_the_kinds_that_python_users_catch() -> None:
    for kind, base in (
        (InvalidArgument, ValueError),
        (crosscheck.MissingFramework, ImportError),
        (DeviceUnavailable, RuntimeError),
        (SideFailed, RuntimeError),
        (crosscheck.TraceFormatError, ValueError),
        (crosscheck.Diverged, AssertionError),
    ):
        assert issubclass(kind, base)
        assert issubclass(kind, CrosscheckError) == (kind is not crosscheck.Diverged)


def test_unrelated_models_with_their_own_weights() -> None:
    report = run(Mlp(), FusedNet(6, 3), weights="keep")
    assert report.verdict == "diverge"
