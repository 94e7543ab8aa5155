"""No false alarms: honest ports in the styles in which people write them, over several seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import crosscheck

from .kit import agrees, run
from .numpy_models import (
    LN,
    Affine,
    ConvNet,
    ForwardOnly,
    FusedNet,
    Rectifier,
    RecurrentNet,
    Stack,
    function_net,
    split,
)
from .torch_models import (
    Attention,
    Chain,
    Convolutional,
    Mlp,
    Normed,
    Outputs,
    Recurrent,
    Residual,
    Tied,
    TwoBranches,
)

SEEDS = (0, 1, 2, 3, 4)
SQUARE = (6, 6, 6, 6)
IDS = "int64[2,5] 0..11"
TWO = {"a": "float32[5,6]", "b": "float32[5,6]"}

PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any], Any]] = {
    "torch-torch mlp": (Mlp, lambda: Mlp(seed=1), "float32[5,6]"),
    "torch-torch residual": (Residual, Residual, "float32[3,7,4]"),
    "torch-torch attention": (Attention, Attention, IDS),
    "torch-torch shared": (Recurrent, Recurrent, "float32[5,6]"),
    "torch-torch two inputs": (TwoBranches, TwoBranches, TWO),
    "torch-torch batchnorm, dropout": (Normed, Normed, "float32[5,6]"),
    "torch-torch tied": (Tied, Tied, IDS),
    "torch-numpy layer list": (Mlp, Stack, "float32[5,6]"),
    "torch-numpy shared": (Recurrent, RecurrentNet, "float32[5,6]"),
    "torch-numpy fused": (lambda: Chain(6, 8, 5, 3), lambda: FusedNet(6, 8, 5, 3), "float32[5,6]"),
    "torch-numpy square split": (lambda: Chain(*SQUARE), lambda: split(*SQUARE), "float32[5,6]"),
    "torch-numpy functions": (lambda: Chain(6, 8, 8, 3), function_net, "float32[5,6]"),
    "numpy-numpy": (lambda: split(6, 8, 3), lambda: split(6, 8, 3), "float32[5,6]"),
    "numpy-numpy fused": (lambda: FusedNet(6, 8, 5, 3), lambda: split(6, 8, 5, 3), "float32[5,6]"),
    "numpy-torch": (Stack, Mlp, "float32[5,6]"),
    "numpy-torch split of fused": (
        lambda: FusedNet(6, 8, 5, 3),
        lambda: Chain(6, 8, 5, 3),
        "float32[5,6]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_an_honest_port_agrees_on_every_seed(name: str) -> None:
    reference, candidate, inputs = PAIRS[name]
    for seed in SEEDS:
        report = run(reference(), candidate(), inputs, seed=seed)
        assert agrees(report)
        assert report.seed == seed
        assert not report.coverage.not_compared


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (lambda: Chain(*SQUARE), lambda: FusedNet(*SQUARE)),
        (lambda: Chain(6, 6, 6), lambda: FusedNet(6, 6, 6)),
        (lambda: FusedNet(*SQUARE), lambda: split(*SQUARE)),
        (lambda: split(*SQUARE), lambda: FusedNet(*SQUARE)),
    ],
    ids=["torch split", "two layers", "numpy fused reference", "numpy fused candidate"],
)
def test_a_fused_layer_is_not_compared_at_its_input(reference: Any, candidate: Any) -> None:
    """All widths are equal: what a ReLU is given has the shape of what a Dense+ReLU is given."""
    for seed in SEEDS:
        assert agrees(run(reference(), candidate(), seed=seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_channels_last_against_channels_first(seed: int) -> None:
    report = run(
        Convolutional(),
        ConvNet(),
        "float32[2,3,7,9]",
        candidate_inputs=lambda given: given["x"].transpose(0, 2, 3, 1),
        seed=seed,
    )
    assert agrees(report)
    assert report.coverage.parameters_matched == 6


@pytest.mark.parametrize("train", [False, True])
def test_batchnorm_behind_a_bias(train: bool) -> None:
    """The bias has the true gradient zero: what float32 leaves of it is no finding."""
    for seed in SEEDS:
        report = run(Normed(p=0.0), Normed(p=0.0), train=train, seed=seed)
        assert agrees(report)
        names = {s.reference for s in report.sites if s.phase == "parameter_gradient"}
        assert "fc.bias" in names
        buffers = {s.reference for s in report.sites if s.phase == "buffer"}
        assert buffers == ({"bn.running_mean", "bn.running_var"} if train else set())


def test_dropout_is_off_in_evaluation_mode() -> None:
    model = Normed().train()
    assert agrees(run(Normed(), model))
    assert model.training and model.drop.training


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("tuple", "tuple"),
        ("tuple", "list"),
        ("dict", "dict"),
        ("tuple", "dict"),
        ("with integer", "with integer"),
        ("with text", "with text"),
        ("scalar", "scalar"),
    ],
)
def test_outputs_in_containers(ours: str, theirs: str) -> None:
    assert agrees(run(Outputs(ours), Outputs(theirs)))


def test_integer_outputs_alone_need_gradients_off() -> None:
    report = run(Outputs("integer"), Outputs("integer"), gradients=False)
    assert agrees(report)
    assert report.coverage.not_compared == ("backward: gradients=False",)
    assert {s.phase for s in report.sites} == {"weights", "forward"}


def test_outputs_in_another_order_are_paired_by_hand() -> None:
    pairs = {"output": "output:1", "output:1": "output"}
    assert agrees(run(Outputs("tuple"), Outputs("reversed"), sites=pairs))


def test_an_output_may_be_skipped() -> None:
    report = run(Outputs("three"), Outputs("tuple"), skip=["output:2"])
    assert agrees(report)
    assert report.coverage.skipped == ("output:2",)


def test_a_candidate_without_backward_is_judged_forward_only() -> None:
    report = run(Mlp(), ForwardOnly())
    assert agrees(report)
    assert report.coverage.not_compared == ("backward: the candidate (numpy) has no backward pass",)
    assert "backward" in str(report)


def test_extra_identity_sites() -> None:
    model = Mlp()
    model.relu = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Identity())
    model.head = nn.Sequential(nn.Identity(), model.head)
    report = run(Mlp(), model)
    assert agrees(report)
    assert report.coverage.unmatched_reference == report.coverage.unmatched_candidate == ()


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (torch.float64, torch.float64),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float32),
        (torch.float32, torch.float16),
        (torch.float32, torch.bfloat16),
    ],
    ids=str,
)
def test_precisions(reference: torch.dtype, candidate: torch.dtype) -> None:
    """The floor is that of the wider-rounding side."""
    names = {torch.float64: "float64", torch.float32: "float32", torch.float16: "float16"}
    ours = names.get(reference, "bfloat16")
    kind: Any = names.get(candidate)
    if kind is None:
        kind = pytest.importorskip("ml_dtypes").bfloat16
    for seed in SEEDS:
        report = run(
            Outputs().to(reference),
            Outputs().to(candidate),
            f"{ours}[5,6]",
            candidate_inputs=lambda given: given["x"].astype(kind),
            seed=seed,
        )
        assert agrees(report)


def test_numpy_inputs_and_torch_inputs_are_the_same() -> None:
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    given = [x, torch.tensor(x), {"x": x}, {"anything": torch.tensor(x, requires_grad=True)}]
    ratios = {max(s.ratio for s in run(Mlp(), Stack(), one).sites) for one in given}
    assert len(ratios) == 1


def test_inputs_by_name_or_in_order() -> None:
    for names in ("ab", "ba", "xy"):
        inputs = dict.fromkeys(names, "float32[5,6]")
        assert agrees(run(TwoBranches(), TwoBranches(), inputs))


def test_untrained_numpy_layers_of_unknown_type() -> None:
    """A norm that is no class of a known name, gradients that appear only in backward."""
    net = Stack(Affine(6, 4), LN(4), Rectifier(), Affine(4, 3))
    reference = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 3))
    assert agrees(run(reference, net))
    assert not hasattr(net.layers[0], "dW")


def test_adapted_and_bare_models_are_the_same() -> None:
    assert agrees(run(crosscheck.adapt(Mlp()), crosscheck.adapt(Stack())))
