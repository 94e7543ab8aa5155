"""A side that raises: a crash is never a divergence, and what was compared before it is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import crosscheck
from crosscheck import SideFailed

from .kit import replace, run, scaled
from .numpy_models import Stack
from .torch_models import Mlp, Residual


def boom(self: Any, original: Any, *args: Any) -> Any:
    raise KeyError("no such gate")


def failure(reference: Any, candidate: Any, *args: Any, **options: Any) -> SideFailed:
    with pytest.raises(SideFailed) as error:
        run(reference, candidate, *args, **options)
    assert isinstance(error.value.__cause__, KeyError)
    return error.value


@pytest.mark.parametrize("index", range(1, 6))
def test_a_candidate_half_way_forward(index: int) -> None:
    net = Stack()
    replace(net.layers[index], "forward", boom)
    failed = failure(Mlp(), net)
    assert (failed.side, failed.site, failed.stage) == ("candidate", f"layers.{index}", "forward")
    sites = [s.candidate for s in failed.compared if s.kind == "activation"]
    assert sites == [f"layers.{i}" for i in range(index)]
    assert all(s.verdict == "agree" for s in failed.compared)
    text = str(failed)
    assert f"the candidate (numpy) raised in its forward pass at `layers.{index}`" in text
    assert "KeyError: 'no such gate'" in text
    assert "compared before that agree" in text and f"`layers.{index - 1}`" in text


def test_at_the_first_layer() -> None:
    net = Stack()
    replace(net.layers[0], "forward", boom)
    failed = failure(Mlp(), net)
    assert failed.compared == ()
    assert str(failed).endswith(
        ": KeyError: 'no such gate'.\n  Nothing had been compared before that."
    )


@pytest.mark.parametrize("defect", ["small", "large"])
def test_a_defect_before_the_crash_is_shown(defect: str) -> None:
    net = Stack()
    if defect == "small":
        net.layers[2].eps = 1e-3
    else:
        replace(net.layers[2], "forward", scaled(1.5))
    replace(net.layers[4], "forward", boom)
    failed = failure(Mlp(), net)
    bad = [s.candidate for s in failed.compared if s.verdict != "agree"]
    assert bad[0] == "layers.2"
    good = {s.candidate for s in failed.compared if s.verdict == "agree"}
    assert {"layers.0", "layers.1"} <= good
    assert "the first that does not is `layers.2`" in str(failed)


@pytest.mark.parametrize("index", range(6))
def test_a_candidate_half_way_backward(index: int) -> None:
    net = Stack()
    replace(net.layers[index], "backward", boom)
    failed = failure(Mlp(), net)
    assert (failed.side, failed.site, failed.stage) == ("candidate", f"layers.{index}", "backward")
    assert {f"layers.{i}" for i in range(6)} <= {s.candidate for s in failed.compared}
    assert run(Mlp(), net, gradients=False).verdict == "agree"


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_a_reference(method: str) -> None:
    net = Stack()
    replace(net.layers[3], method, boom)
    failed = failure(net, Mlp())
    assert (failed.side, failed.site, failed.stage) == ("reference", "layers.3", method)
    assert failed.framework == "numpy" and failed.compared == ()
    assert "compared" not in str(failed)


def test_inside_a_nested_torch_model() -> None:
    model = Residual()
    replace(model.blocks[1].act, "forward", boom)
    failed = failure(Residual(), model, "float32[3,7,4]")
    assert failed.site == "blocks.1.act"
    assert failed.compared[-1].candidate == "blocks.1.up"


def test_in_the_code_between_layers() -> None:
    model = Residual()
    replace(model.blocks[1], "forward", lambda self, original, x: self.norm(x)["missing"])
    with pytest.raises(SideFailed) as error:
        run(Residual(), model, "float32[3,7,4]")
    assert error.value.site == "blocks.1"
    assert error.value.compared[-1].candidate == "blocks.1.norm"


def test_in_an_autograd_function() -> None:
    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            raise KeyError("no such gate")

    model = Mlp()
    replace(model.norm, "forward", lambda self, original, x: Backward.apply(original(x)))
    failed = failure(Mlp(), model)
    assert failed.side == "candidate" and failed.stage == "backward"
    assert len(failed.compared) >= 6


def test_it_is_a_crosscheck_error_and_no_assertion() -> None:
    model = nn.Sequential(nn.Linear(6, 3))
    replace(model, "forward", boom)
    failed = failure(Mlp(), model, weights="keep")
    assert isinstance(failed, crosscheck.CrosscheckError)
    assert not isinstance(failed, AssertionError)


def test_what_is_no_error_passes_through() -> None:
    def stop(self: Any, original: Any, *args: Any) -> Any:
        raise KeyboardInterrupt

    model = Mlp()
    replace(model.fc2, "forward", stop)
    with pytest.raises(KeyboardInterrupt):
        run(Mlp(), model)


class Doubles(nn.Module):
    """PyTorch cannot go back through a ReLU whose result is overwritten."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.fc, self.act, self.in_place = nn.Linear(12, 5), nn.ReLU(), in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.act(self.fc(x))
        return h.mul_(2.0) if self.in_place else h * 2.0


@pytest.mark.parametrize("effort", ["quick", "thorough"])
def test_a_backward_pass_that_fails_only_without_taps(effort: str) -> None:
    with pytest.raises(SideFailed) as error:
        crosscheck.check(Doubles(False), Doubles(True), "float32[7,12]", effort=effort)
    failed = error.value
    assert (failed.side, failed.stage) == ("candidate", "backward")
    assert "modified by an inplace operation" in str(failed)
    assert any(s.candidate == "output" and s.verdict == "agree" for s in failed.compared)


def test_an_operation_in_place_that_autograd_can_undo() -> None:
    class Fine(Doubles):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.fc(x).mul_(2.0))

    assert crosscheck.check(Doubles(False), Fine(False), "float32[7,12]").verdict == "agree"


class Image:
    """Takes channels last."""

    def __init__(self, wrong: type[Exception] = ValueError) -> None:
        self.wrong = wrong

    def forward(self, x: Any) -> Any:
        if x.shape[-1] != 3:
            raise self.wrong(f"expected 3 channels, found {x.shape[-1]}")
        return x.sum((1, 2))


def test_inputs_in_another_layout_are_suggested_where_nothing_was_compared() -> None:
    def check(candidate: Image, **options: Any) -> str:
        reference = torch.nn.Sequential(nn.AvgPool2d((5, 7), divisor_override=1), nn.Flatten())
        with pytest.raises(SideFailed) as error:
            run(reference, candidate, "float32[2,3,5,7]", **options)
        return str(error.value)

    advice = "it was given the reference's inputs as they are, (2, 3, 5, 7)"
    assert advice in check(Image())
    assert advice not in check(Image(NameError))  # the code itself is wrong
    assert advice not in check(Image(), candidate_inputs=lambda inputs: inputs)
