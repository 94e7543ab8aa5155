"""A layer that rectifies inside, against one whose ReLU is applied in the code behind, where that
code also holds a mistake: forcing does not tell the two."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import crosscheck
from crosscheck.aligning import rectified

MISTAKES = {
    "largest": lambda x: x.amax((2, 3)),
    "doubled": lambda x: 2 * x.mean((2, 3)),
    "squared": lambda x: x.mean((2, 3)) ** 2,
}
CLIPS = {"relu": torch.relu, "relu6": nn.functional.relu6}


class Rectified(nn.Conv2d):
    clip = "relu"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return CLIPS[self.clip](super().forward(x))


class Net(nn.Module):
    """A convolution, a rectifier in the layer (``inside``), in the code behind or nowhere
    (``clip`` None), the mean, and a linear layer."""

    def __init__(self, clip: str | None, *, inside: bool, mistake: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c = (Rectified if inside else nn.Conv2d)(3, 6, 3)
        if isinstance(self.c, Rectified):
            self.c.clip = clip or ""
        self.c.weight.data *= 8  # below 0 and above 6
        self.f = nn.Linear(6, 4)
        self.inside, self.clip, self.mistake = inside, clip, mistake

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.c(x)
        if self.clip and not self.inside:
            x = CLIPS[self.clip](x)
        return self.f(MISTAKES[self.mistake](x) if self.mistake else x.mean((2, 3)))


def checked(pair: tuple[Net, Net], turned: bool) -> crosscheck.Report:
    return crosscheck.check(*(pair[::-1] if turned else pair), "float32[2,3,9,7]")


def causes(report: crosscheck.Report) -> set[str]:
    return {cause.name for one in report.divergences for cause in one.causes}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("turned", [False, True])
def test_the_layer_is_right(turned: bool, mistake: str, clip: str) -> None:
    pair = Net(clip, inside=False), Net(clip, inside=True, mistake=mistake)
    report = checked(pair, turned)
    first = report.first_divergence
    assert first is not None and (first.phase, first.site) == ("forward", "f"), str(report)
    assert sum(one.phase == "forward" for one in report.divergences) == 1
    assert not any(name.startswith("activation") for name in causes(report))
    assert ("scaled" in causes(report)) == (mistake == "doubled")
    assert "c" in report.coverage.unmatched_reference and "c" in report.coverage.unmatched_candidate


@pytest.mark.parametrize("turned", [False, True])
def test_one_that_rectifies_too_much_is_wrong(turned: bool) -> None:
    report = checked((Net(None, inside=False), Net("relu", inside=True, mistake="largest")), turned)
    first = report.first_divergence
    assert first is not None and (first.phase, first.site) == ("forward", "c"), str(report)


@pytest.mark.parametrize("turned", [False, True])
def test_honest_ones_agree(turned: bool) -> None:
    assert checked((Net("relu", inside=False), Net("relu", inside=True)), turned).verdict == "agree"


def test_so_many_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rectified, "MOST_TRIED", 0)
    pair = Net("relu", inside=False), Net("relu", inside=True, mistake="largest")
    first = checked(pair, False).first_divergence
    assert first is not None and first.site == "c"
