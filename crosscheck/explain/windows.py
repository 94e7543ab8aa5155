"""Hypotheses on convolution, and the windows that pooling shares with it.

The geometry (size, stride, dilation, border) is not visible in arrays. It is the one that
reproduces the reference's own value; every other that gives the same shape is what the candidate
may have done.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.readings import Reading, readings
from crosscheck.explain.registry import register

__all__ = ["MOST_WORK", "Window", "geometries", "geometry", "scatter", "taps"]

MOST_WORK = 1_000_000_000  # multiplications of all attempts at one site together
STRIDES, DILATIONS = (1, 2, 3, 4), (1, 2, 3)


@dataclass(frozen=True)
class Window:
    """Geometry along one axis: window ``i`` starts at ``i · stride − before``."""

    size: int
    stride: int = 1
    before: int = 0
    dilation: int = 1

    @property
    def reach(self) -> int:
        """How far a window extends."""
        return self.dilation * (self.size - 1) + 1

    def after(self, length: int, out: int) -> int:
        """How much border the end needs for ``out`` windows; none where it has enough."""
        return max(0, (out - 1) * self.stride + self.reach - length - self.before)


def taps(
    x: np.ndarray, windows: tuple[Window, ...], out: tuple[int, ...], *, mode: str, value: float
) -> np.ndarray:
    """Windows of the inner axes of ``x`` (B, C, ...): (B, C, *out, *sizes)."""
    border = [(0, 0), (0, 0)]
    border += [(w.before, w.after(n, o)) for w, n, o in zip(windows, x.shape[2:], out, strict=True)]
    fill = {"constant_values": value} if mode == "constant" else {}
    padded = np.pad(x, border, mode=mode, **fill)  # type: ignore[call-overload]
    axes = tuple(range(2, x.ndim))
    seen = sliding_window_view(padded, tuple(w.reach for w in windows), axis=axes)  # type: ignore[call-overload]
    chosen = [slice(None), slice(None)]
    chosen += [
        slice(0, (o - 1) * w.stride + 1, w.stride) for w, o in zip(windows, out, strict=True)
    ]
    chosen += [slice(None, None, w.dilation) for w in windows]
    return np.asarray(seen[tuple(chosen)])


def scatter(shares: np.ndarray, shape: tuple[int, ...], windows: tuple[Window, ...]) -> np.ndarray:
    """The adjoint of `taps`: what falls on the border is lost."""
    out = shares.shape[2 : 2 + len(windows)]
    border = [(w.before, w.after(n, o)) for w, n, o in zip(windows, shape[2:], out, strict=True)]
    lengths = [n + a + b for n, (a, b) in zip(shape[2:], border, strict=True)]
    total = np.zeros((*shape[:2], *lengths))
    for offsets in itertools.product(*(range(w.size) for w in windows)):
        places = [
            slice(k * w.dilation, k * w.dilation + (o - 1) * w.stride + 1, w.stride)
            for k, w, o in zip(offsets, windows, out, strict=True)
        ]
        picked: tuple[Any, ...] = (..., *offsets)
        total[(slice(None), slice(None), *places)] += shares[picked]
    kept = [slice(a, a + n) for n, (a, _) in zip(shape[2:], border, strict=True)]
    return total[(slice(None), slice(None), *kept)]


def geometries(
    sizes: tuple[int, ...], lengths: tuple[int, ...], out: tuple[int, ...]
) -> list[tuple[Window, ...]]:
    """Those of equal stride and dilation along all axes that may give an output of that shape."""
    found = []
    for stride, dilation in itertools.product(STRIDES, DILATIONS):
        options = []
        for size, length, count in zip(sizes, lengths, out, strict=True):
            here = [Window(size, stride, before, dilation) for before in range(size * dilation)]
            options.append([w for w in here if _is_possible(w, length, count)])
        found += list(itertools.product(*options))
    return found


def _is_possible(window: Window, length: int, out: int) -> bool:
    needed = (out - 1) * window.stride + window.reach - window.before
    last = length + window.reach - 1  # the last window must still hold an element
    unused = length - needed
    return (
        0 < needed <= last
        and unused < window.stride + window.before + 1
        and window.before < window.reach
    )


def _first(windows: list[tuple[Window, ...]]) -> list[tuple[Window, ...]]:
    """The likeliest first: equal borders on all axes, as small as possible."""
    return sorted(windows, key=lambda ws: (len({w.before for w in ws}), ws[0].dilation))


# -- convolution -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Conv:
    windows: tuple[Window, ...]
    first: bool  # channels first
    groups: int = 1
    mode: str = "constant"
    flip: bool = False
    exchange: str = ""  # "inner": height and width of the kernel; "outer": its channels
    read: Reading | None = None
    bias: float = 1.0

    def __call__(self, e: Evidence, only: int | None = None) -> np.ndarray:
        """The convolution; of the first ``only`` examples."""
        assert e.x is not None
        x = e.x if self.first else np.moveaxis(e.x, -1, 1)
        x = x[:only]
        kernel = self._kernel(e)  # (out, in / groups, *sizes)
        shape = e.reference.shape[2:] if self.first else e.reference.shape[1:-1]
        seen = taps(x, self.windows, shape, mode=self.mode, value=0.0)
        inner = tuple(range(2 + len(shape), 2 + 2 * len(shape)))
        parts = [
            np.tensordot(s, k, axes=((1, *inner), tuple(range(1, k.ndim))))  # (B, *out, out)
            for s, k in zip(
                np.split(seen, self.groups, axis=1), np.split(kernel, self.groups), strict=True
            )
        ]
        y = np.concatenate(parts, axis=-1)
        bias = e.value("bias")
        y = y if bias is None else y + self.bias * bias
        return np.moveaxis(y, -1, 1) if self.first else y

    def _kernel(self, e: Evidence) -> np.ndarray:
        kernel = _out_in(e, self.read)
        inner = tuple(range(2, kernel.ndim))
        if self.flip:
            kernel = np.flip(kernel, inner)
        if self.exchange == "inner":
            kernel = kernel.transpose(0, 1, *reversed(inner))
        if self.exchange == "outer":
            kernel = kernel.swapaxes(0, 1)
        return kernel


def _out_in(e: Evidence, read: Reading | None = None) -> np.ndarray:
    """The kernel as (out, in, *sizes); of a depthwise one ``in`` is 1."""
    parameter = next(p for p in e.parameters if p.role == "weight")
    axes, value = parameter.axes, parameter.value
    if axes is None:
        raise ValueError("axes unknown")
    value = read(value) if read is not None else value
    inner = [i for i, axis in enumerate(axes) if axis in ("d", "h", "w")]
    if "mult" in axes:
        value = value.transpose(axes.index("in"), axes.index("mult"), *inner)
        return value.reshape(-1, 1, *value.shape[2:])
    if {"in", "out"} - set(axes):
        raise ValueError("not a plain convolution")
    return value.transpose(axes.index("out"), axes.index("in"), *inner)


@register("forward")
def convolution(e: Evidence) -> Iterator[Proposal]:
    """Border, stride or dilation in another way; a kernel flipped or with axes exchanged."""
    weight = e.value("weight")
    if e.x is None or weight is None or weight.ndim < 3 or e.x.ndim != weight.ndim:
        return
    found = _reference_conv(e)
    if found is None:
        return
    conv, others = found
    for windows in others:
        yield Proposal(
            "conv_geometry",
            f"{geometry(windows)} instead of {geometry(conv.windows)}",
            replace(conv, windows=windows),
        )
    for mode in ("reflect", "edge", "wrap"):
        if any(w.before for w in conv.windows):
            text = f"the border is filled by {_MODES[mode]}, not with zeros"
            yield Proposal("conv_border", text, replace(conv, mode=mode))
    yield Proposal("conv_flipped", "the kernel is flipped", replace(conv, flip=True))
    sizes = {w.size for w in conv.windows}
    if len(conv.windows) == 2 and len(sizes) == 1:
        text = "height and width of the kernel are exchanged"
        yield Proposal("conv_exchanged", text, replace(conv, exchange="inner"))
    kernel = _out_in(e)
    if kernel.shape[0] == kernel.shape[1]:
        text = "input and output channels of the kernel are exchanged"
        yield Proposal("conv_channels", text, replace(conv, exchange="outer"))
    (parameter,) = (p for p in e.parameters if p.role == "weight")
    if e.reference.size * kernel[0].size * 40 <= MOST_WORK:
        for text, reading in readings(parameter.value.shape, parameter.axes):
            yield Proposal("kernel_read", f"the kernel {text}", replace(conv, read=reading))


_MODES = {"reflect": "reflection", "edge": "repeating the edge", "wrap": "going around"}


def geometry(windows: tuple[Window, ...]) -> str:
    """Stride and the border in front, axis by axis; the border behind follows from the shape."""
    before = ", ".join(str(w.before) for w in windows)
    dilation = windows[0].dilation
    text = f"stride {windows[0].stride} with a border of {before} in front"
    return text + (f", dilation {dilation}" if dilation > 1 else "")


def _reference_conv(e: Evidence) -> tuple[_Conv, list[tuple[Window, ...]]] | None:
    """The convolution that the reference is, and the other geometries of its shape."""
    assert e.x is not None
    kernel = _out_in(e)
    first = e.reference.shape[1] == kernel.shape[0]
    channels = e.x.shape[1 if first else -1]
    groups = channels // kernel.shape[1] if channels % kernel.shape[1] == 0 else 0
    lengths = e.x.shape[2:] if first else e.x.shape[1:-1]
    out = e.reference.shape[2:] if first else e.reference.shape[1:-1]
    work = e.reference.size * kernel[0].size
    options = _first(geometries(kernel.shape[2:], lengths, out)) if groups else []
    if not options or work * 16 > MOST_WORK:
        return None
    one = e.reference[:1]
    for windows in options:
        conv = _Conv(windows, first, groups)
        made = conv(e, only=1)
        close = np.linalg.norm(made - one) <= 1e-5 * np.linalg.norm(one)
        if close and e.fits_reference(conv(e)):
            near = [w for w in options if w != windows]
            one_c = e.candidate[:1]
            near.sort(key=lambda w: float(np.linalg.norm(replace(conv, windows=w)(e, 1) - one_c)))
            return conv, near[:3]
    return None
