"""The residual network in PyTorch; images are (N, C, H, W)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from models.weights import load


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        # Pooled before the ReLU: the values are of both signs, so a border of zeros would show.
        return self.relu(self.pool(self.bn(self.conv(x))))  # (N, 1, 8, 6) -> (N, 8, 4, 3)


class Shortcut(nn.Module):
    """Halves the image and changes the channels; the mean keeps pixels that a stride would skip."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.pool(x)))


class ResidualBlock(nn.Module):
    """relu(main(x) + shortcut(x)) (He et al., Deep Residual Learning, 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = Shortcut(inputs, outputs) if stride > 1 else None
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        main = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        side = x if self.shortcut is None else self.shortcut(x)
        return self.relu2(main + side)


class GlobalAvgPool(nn.Module):
    """The mean over the image, (N, C, H, W) -> (N, C) (Lin et al., Network In Network, 2013)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class CNN(nn.Module):
    """Images (N, 1, 8, 6) -> 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()
        self.block1 = ResidualBlock(8, 12, stride=2)
        self.block2 = ResidualBlock(12, 12, stride=1)
        self.pool = GlobalAvgPool()
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (N, 8, 4, 3)
        x = self.block2(self.block1(x))  # (N, 12, 2, 2)
        return self.fc(self.pool(x))  # (N, 10)


def build() -> CNN:
    """The trained model, in evaluation mode."""
    model = CNN()
    load(model, Path(__file__).with_name("weights.safetensors"))
    return model.eval()
