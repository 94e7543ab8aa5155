"""A small MobileNetV3 in PyTorch; images are (N, C, H, W).

Howard et al., Searching for MobileNetV3, 2019: inverted residual blocks (Sandler et al.,
MobileNetV2, 2018) with squeeze and excitation (Hu, Shen, Sun, 2017) and hard swish.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.seeded import randomise


class ConvBNAct(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class GlobalAvgPool(nn.Module):
    """The mean over the image, (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class SqueezeExcite(nn.Module):
    """Scales each channel by what all channels' means say; the gate is the hard sigmoid."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = GlobalAvgPool()
        self.squeeze = nn.Linear(channels, squeezed)
        self.relu = nn.ReLU()
        self.excite = nn.Linear(squeezed, channels)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gate(self.excite(self.relu(self.squeeze(self.pool(x)))))  # (N, C)
        return x * scale[:, :, None, None]


class InvertedResidual(nn.Module):
    """Expand by 1 x 1, filter each channel, squeeze and excite, project by 1 x 1 (not activated);
    x is added where the shape allows it.
    """

    def __init__(
        self, inputs: int, expanded: int, outputs: int, size: int, stride: int, squeezed: int
    ) -> None:
        super().__init__()
        self.expand = ConvBNAct(inputs, expanded, 1)
        self.depthwise = nn.Conv2d(
            expanded, expanded, size, stride, size // 2, groups=expanded, bias=False
        )
        self.bn = nn.BatchNorm2d(expanded)
        self.act = nn.Hardswish()
        self.se = SqueezeExcite(expanded, squeezed)
        self.project = nn.Conv2d(expanded, outputs, 1, bias=False)
        self.project_bn = nn.BatchNorm2d(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        main = self.se(self.act(self.bn(self.depthwise(self.expand(x)))))
        main = self.project_bn(self.project(main))
        return x + main if self.residual else main


class MobileNet(nn.Module):
    """Images (N, 1, 8, 6) -> 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBNAct(1, 8, 3)
        self.block1 = InvertedResidual(8, 20, 12, size=5, stride=2, squeezed=7)
        self.block2 = InvertedResidual(12, 26, 12, size=3, stride=1, squeezed=9)
        self.last = ConvBNAct(12, 30, 1)
        self.pool = GlobalAvgPool()
        self.fc1 = nn.Linear(30, 17)
        self.act = nn.Hardswish()
        self.fc2 = nn.Linear(17, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (N, 8, 8, 6)
        x = self.block2(self.block1(x))  # (N, 12, 4, 3)
        x = self.pool(self.last(x))  # (N, 30)
        return self.fc2(self.act(self.fc1(x)))  # (N, 10)


def build() -> MobileNet:
    """The model with seeded weights, in evaluation mode."""
    model = MobileNet()
    randomise(model, seed=7)
    return model.eval()
