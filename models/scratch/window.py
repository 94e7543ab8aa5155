"""Sliding windows over an image, and their adjoint: all that convolution and pooling need."""

from __future__ import annotations

from models.scratch.base import Array, array_namespace


def pad(x: Array, padding: int, value: float = 0.0) -> Array:
    """Surround the images of ``x`` (B, C, H, W) by ``padding`` rows and columns of ``value``."""
    border = (padding, padding)
    return array_namespace(x).pad(x, ((0, 0), (0, 0), border, border), constant_values=value)


def crop(x: Array, padding: int) -> Array:
    """The adjoint of `pad`: what falls on the border is lost."""
    return x[:, :, padding : x.shape[2] - padding, padding : x.shape[3] - padding]


def windows(x: Array, size: tuple[int, int], stride: int) -> Array:
    """All windows of an image: (B, C, H, W) -> (B, C, kh, kw, Ho, Wo).

    out[..., i, j, p, q] = x[..., p·stride + i, q·stride + j], a strided slice for each tap (i, j)
    ("im2col": Chellapilla et al., High Performance Convolutional Neural Networks, 2006).
    """
    xp = array_namespace(x)
    kh, kw = size
    return xp.stack(
        [xp.stack([x[_tap(x, i, j, size, stride)] for j in range(kw)], axis=2) for i in range(kh)],
        axis=2,
    )


def add_windows(d: Array, shape: tuple[int, ...], stride: int) -> Array:
    """The adjoint of `windows`: (B, C, kh, kw, Ho, Wo) -> (B, C, H, W), overlaps are summed."""
    x = array_namespace(d).zeros(shape, dtype=d.dtype)
    kh, kw = size = d.shape[2:4]
    for i in range(kh):
        for j in range(kw):
            x[_tap(x, i, j, size, stride)] += d[:, :, i, j]
    return x


def _tap(x: Array, i: int, j: int, size: tuple[int, int], stride: int) -> tuple[slice, ...]:
    """Where tap (i, j) of the kernel lands as the window moves over ``x``: Ho x Wo positions."""
    height, width = x.shape[2] - size[0] + 1, x.shape[3] - size[1] + 1
    everything = slice(None)
    return everything, everything, slice(i, i + height, stride), slice(j, j + width, stride)
