"""Closer than a layer: the first operation that departs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402, N812
from torch import nn  # noqa: E402

import crosscheck  # noqa: E402
from crosscheck.adapters.base import Operation  # noqa: E402
from crosscheck.cli import main  # noqa: E402
from crosscheck.locating.zoom import first_departure  # noqa: E402


class Mlp(nn.Module):
    """Its activation is a function between two layers."""

    def __init__(self, function: Callable[[Any], Any] = F.gelu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.function = function

    def forward(self, x: Any) -> Any:
        return x + self.down(self.function(self.up(x)))


class Attention(nn.Module):
    """No layers inside: the operations are all there is."""

    def __init__(self, scale: float | None = None, softmax_axis: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(18, 6) * 0.3)
        self.scale, self.axis = scale or 6**-0.5, softmax_axis

    def forward(self, x: Any) -> Any:
        q, k, v = (x @ self.weight.T).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) * self.scale
        return F.softmax(scores, dim=self.axis) @ v


def by_hand(x: Any) -> Any:
    return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))


def zoomed(reference: Any, candidate: Any, inputs: str = "float32[3,5,6]") -> str:
    report = crosscheck.check(reference, candidate, inputs, zoom=True, gradients=False)
    assert report.verdict == "diverge", str(report)
    notes = [note for note in report.notes if note.startswith("zoom")]
    assert len(notes) == 1, report.notes
    assert " ".join(notes[0].split()[:4]) in " ".join(str(report).split())
    return notes[0]


def net(part: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Identity(), part)


def test_the_same_function_with_another_argument() -> None:
    text = zoomed(net(Mlp()), net(Mlp(lambda x: F.gelu(x, approximate="tanh"))))
    assert "the first operation that departs is `torch.nn.functional.gelu` in `1` (" in text
    assert "test_zoom.py:" in text
    assert "passes nothing, the candidate approximate='tanh'" in text


def test_a_function_and_several_operations() -> None:
    text = zoomed(net(Mlp()), net(Mlp(by_hand)))
    assert "the reference goes on with `torch.nn.functional.gelu` in `1` (" in text
    assert "the candidate with" in text and "`torch.Tensor.pow`" in text.replace("__pow__", "pow")


def test_inside_a_layer_without_layers() -> None:
    text = zoomed(net(Attention()), net(Attention(scale=6**-1.0)))
    assert "`torch.Tensor.mul`" in text and "in `1` (" in text
    text = zoomed(net(Attention()), net(Attention(softmax_axis=-2)))
    assert "`torch.nn.functional.softmax`" in text and "dim=-1" in text and "dim=-2" in text


def test_a_small_epsilon() -> None:
    reference, candidate = nn.LayerNorm(6), nn.LayerNorm(6, eps=1e-3)
    text = zoomed(net(reference), net(candidate))
    assert "`torch.nn.functional.layer_norm`" in text
    assert "1e-05" in text and "0.001" in text


class Dense:
    def __init__(self, inputs: int, outputs: int) -> None:
        self.W, self.b = np.zeros((inputs, outputs), np.float32), np.zeros(outputs, np.float32)

    def forward(self, x: Any) -> Any:
        return x @ self.W + self.b


class Hand:
    """The same net in NumPy, with another activation."""

    def __init__(self) -> None:
        self.up, self.down = Dense(6, 8), Dense(8, 6)

    def forward(self, x: Any) -> Any:
        h = self.up.forward(x)
        return x + self.down.forward(h / (1 + np.exp(-1.702 * h)))


def test_a_candidate_that_shows_values_only() -> None:
    text = zoomed(Mlp(), Hand())
    assert "shows the value of `torch.nn.functional.linear` in `up`" in text
    assert "does not show that of `torch.nn.functional.gelu`" in text
    assert "there or after it" in text


def test_a_candidate_that_is_compiled() -> None:
    wrong = torch.compile(net(nn.GELU("tanh")), backend="eager")
    text = zoomed(net(nn.GELU()), wrong)
    assert "`torch.nn.functional.gelu`" in text and "does not show" in text


def test_a_reference_without_operations() -> None:
    text = zoomed(lambda x: x * 2, lambda x: x * 2.01)
    assert "the numpy adapter shows no operations there" in text


def test_it_is_off_by_default_and_silent_when_all_is_well() -> None:
    report = crosscheck.check(Mlp(), Mlp(by_hand), "float32[3,6]", gradients=False)
    assert not any("zoom" in note for note in report.notes)
    report = crosscheck.check(Mlp(), Mlp(), "float32[3,6]", zoom=True)
    assert report.verdict == "agree" and not any("zoom" in note for note in report.notes)
    with pytest.raises(crosscheck.InvalidArgument, match="zoom"):
        crosscheck.check(Mlp(), Mlp(), "float32[3,6]", zoom="yes")  # type: ignore[arg-type]


def test_the_command_line(tmp_path: Any) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def right(): return nn.Sequential(nn.Linear(6, 4), nn.GELU())\n"
        "def wrong(): return nn.Sequential(nn.Linear(6, 4), nn.GELU('tanh'))\n"
    )
    files = [f"{tmp_path / 'nets.py'}:{name}" for name in ("right", "wrong")]
    given = ["--reference", files[0], "--candidate", files[1], "--input", "x=float32[5,6]"]
    result = CliRunner().invoke(main, ["run", *given, "--zoom", "-q"])
    assert result.exit_code == 1, result.output
    assert "the first operation that departs is `torch.nn.functional.gelu`" in result.output


def operation(name: str, value: float, *inputs: int) -> Operation:
    return Operation(name, "net.py:1", "s", np.array([value, 1.0]), inputs)


def test_values_that_all_turn_up_are_no_answer() -> None:
    both = [operation("a", 1), operation("b", 2, 0)]
    assert "every operation's value turns up" in first_departure(both, both, tolerance=1e-6)


def test_a_detour_that_comes_back_is_not_to_blame() -> None:
    ours = [operation("a", 1), operation("b", 2, 0), operation("c", 3, 1)]
    theirs = [
        operation("a", 1),
        operation("half", 1.5, 0),  # not shared, but what is made of it is
        operation("b", 2, 1),
        operation("wrong", 4, 2),
    ]
    text = first_departure(ours, theirs, tolerance=1e-6)
    assert "goes on with `c`" in text and "`wrong`" in text and "half" not in text
