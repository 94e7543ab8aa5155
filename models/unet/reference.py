"""A small U-Net in PyTorch; images are (N, C, H, W).

Ronneberger, Fischer, Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation, 2015,
with zero padding and batch normalisation. It goes up once by a transposed convolution and once by
bilinear interpolation, which reaches a size that no stride does (Odena, Dumoulin, Olah,
Deconvolution and Checkerboard Artifacts, 2016).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.seeded import randomise


class ConvBNReLU(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class UNet(nn.Module):
    """Images (N, 1, 17, 13) -> logits of three classes for each pixel, (N, 3, 17, 13)."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = ConvBNReLU(1, 6)
        self.pool1 = nn.MaxPool2d(2)
        self.down2 = ConvBNReLU(6, 10)
        self.pool2 = nn.MaxPool2d(2)
        self.bottom = ConvBNReLU(10, 14)
        self.enlarge2 = nn.ConvTranspose2d(14, 9, 3, stride=2, padding=1, output_padding=1)
        self.up2 = ConvBNReLU(10 + 9, 11)
        self.enlarge1 = nn.Upsample(size=(17, 13), mode="bilinear", align_corners=False)
        self.up1 = ConvBNReLU(6 + 11, 7)
        self.head = nn.Conv2d(7, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip1 = self.down1(x)  # (N, 6, 17, 13)
        skip2 = self.down2(self.pool1(skip1))  # (N, 10, 8, 6)
        x = self.bottom(self.pool2(skip2))  # (N, 14, 4, 3)
        x = self.up2(torch.cat([skip2, self.enlarge2(x)], dim=1))  # (N, 11, 8, 6)
        x = self.up1(torch.cat([skip1, self.enlarge1(x)], dim=1))  # (N, 7, 17, 13)
        return self.head(x)


def build() -> UNet:
    """The model with seeded weights, in evaluation mode."""
    model = UNet()
    randomise(model, seed=3)
    return model.eval()
