"""Pooling over windows of an image (B, C, H, W)."""

from __future__ import annotations

import math

from models.scratch.base import Array, Layer, array_namespace
from models.scratch.window import add_windows, crop, pad, windows


class MaxPool2d(Layer):
    """The largest value of each window; the border is filled with -inf, which never wins.

    The cotangent goes to the maximum alone, to the first in row-major order among equals (one
    subgradient of many, and PyTorch's choice).
    """

    def __init__(self, size: int, *, stride: int, padding: int = 0) -> None:
        super().__init__()
        self.size, self.stride, self.padding = size, stride, padding
        self.pad_value = -math.inf

    def forward(self, x: Array) -> Array:
        padded = pad(x, self.padding, self.pad_value)
        self._shape = padded.shape
        w = windows(padded, (self.size, self.size), self.stride)  # (B, C, k, k, Ho, Wo)
        w = w.reshape(*w.shape[:2], self.size**2, *w.shape[4:])  # (B, C, k·k, Ho, Wo)
        self._winner = w.argmax(axis=2)  # (B, C, Ho, Wo)
        return w.max(axis=2)

    def backward(self, dy: Array) -> Array:
        taps = array_namespace(dy).arange(self.size**2)[:, None, None]  # (k·k, 1, 1)
        won = self._winner[:, :, None] == taps  # (B, C, k·k, Ho, Wo)
        d = (won * dy[:, :, None]).reshape(*dy.shape[:2], self.size, self.size, *dy.shape[2:])
        return crop(add_windows(d, self._shape, self.stride), self.padding)


class AvgPool2d(Layer):
    """The mean of each window; the border's zeros count only if ``count_include_pad``."""

    def __init__(
        self, size: int, *, stride: int, padding: int = 0, count_include_pad: bool = True
    ) -> None:
        super().__init__()
        self.size, self.stride, self.padding = size, stride, padding
        self.count_include_pad = count_include_pad

    def forward(self, x: Array) -> Array:
        padded = pad(x, self.padding)
        self._shape = padded.shape
        size = (self.size, self.size)
        ones = array_namespace(x).ones_like(x[:1, :1])
        inside = pad(ones, self.padding, 1.0 if self.count_include_pad else 0.0)
        self._count = windows(inside, size, self.stride).sum(axis=(2, 3))  # (1, 1, Ho, Wo)
        return windows(padded, size, self.stride).sum(axis=(2, 3)) / self._count

    def backward(self, dy: Array) -> Array:
        shape = (*dy.shape[:2], self.size, self.size, *dy.shape[2:])
        share = (dy / self._count)[:, :, None, None]  # (B, C, 1, 1, Ho, Wo)
        d = array_namespace(dy).broadcast_to(share, shape)
        return crop(add_windows(d, self._shape, self.stride), self.padding)


class GlobalAvgPool(Layer):
    """The mean over the image, (B, C, H, W) -> (B, C) (Lin et al., Network In Network, 2013)."""

    def forward(self, x: Array) -> Array:
        self._shape = x.shape
        return x.mean(axis=(2, 3))

    def backward(self, dy: Array) -> Array:
        height, width = self._shape[2:]
        return array_namespace(dy).broadcast_to(
            (dy / (height * width))[:, :, None, None], self._shape
        )
