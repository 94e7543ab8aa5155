"""Blocks that add next to nothing, each scaled by a parameter of its own (ConvNeXt): the block's on
one side, of a layer behind the last one in it on the other."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import crosscheck  # noqa: E402

WIDTHS, DEPTH = (8, 16, 32), 3


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))
        self.conv_dw = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.fc1, self.fc2 = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Any) -> Any:
        y = self.fc2(nn.functional.gelu(self.fc1(self.conv_dw(x))))
        return x + y * self.gamma[:, None, None]


class Stage(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.downsample = nn.Sequential(nn.GroupNorm(1, before), nn.Conv2d(before, width, 2, 2))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(DEPTH)))

    def forward(self, x: Any) -> Any:
        return self.blocks(self.downsample(x))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (3, *WIDTHS)
        self.stages = nn.Sequential(*map(Stage, widths[:-1], widths[1:]))
        self.head = nn.Linear(WIDTHS[-1], 4)

    def forward(self, x: Any) -> Any:
        return self.head(self.stages(x).mean((2, 3)))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.variable = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Any) -> Any:
        return x * self.variable[:, None, None]


class Flat(nn.Module):
    """Names like those of keras.applications."""

    def __init__(self) -> None:
        super().__init__()
        for s, (before, width) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False)):
            down = nn.Sequential(nn.GroupNorm(1, before), nn.Conv2d(before, width, 2, 2))
            self.add_module(f"downsampling_block_{s}", down)
            for b in range(DEPTH):
                parts = {
                    "depthwise_conv": nn.Conv2d(width, width, 3, padding=1, groups=width),
                    "pointwise_conv_1": nn.Conv2d(width, 2 * width, 1),
                    "gelu": nn.GELU(),
                    "pointwise_conv_2": nn.Conv2d(2 * width, width, 1),
                    "layer_scale": LayerScale(width),
                }
                for name, part in parts.items():
                    self.add_module(f"stage_{s}_block_{b}_{name}", part)
        self.names, self.dense = list(parts), nn.Linear(WIDTHS[-1], 4)

    def forward(self, x: Any) -> Any:
        for s in range(len(WIDTHS)):
            x = getattr(self, f"downsampling_block_{s}")(x)
            for b in range(DEPTH):
                y = x
                for name in self.names:
                    y = getattr(self, f"stage_{s}_block_{b}_{name}")(y)
                x = x + y
        return self.dense(x.mean((2, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_it_agrees(seed: int) -> None:
    """All scales hold the same, so that only their gradients tell which belong together; and what
    a stage begins with is what it ends with, but for a millionth."""
    torch.manual_seed(seed)
    report = crosscheck.check(Nested(), Flat(), "float32[2,3,32,32]")
    pairs = {s.reference: s.candidate for s in report.sites if s.phase == "weights"}
    for s in range(len(WIDTHS)):
        for b in range(DEPTH):
            scale = pairs[f"stages.{s}.blocks.{b}.gamma"]
            assert scale == f"stage_{s}_block_{b}_layer_scale.variable"
    partners = {s.reference: s.candidate for s in report.sites if s.kind == "activation"}
    for s in range(len(WIDTHS)):
        assert partners.get(f"stages.{s}.blocks") != f"downsampling_block_{s}"
    assert report.verdict == "agree", str(report)
