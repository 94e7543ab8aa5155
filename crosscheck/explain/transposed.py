"""Hypotheses on transposed convolution: every input element scatters the kernel over the output.

Element i of an axis lands on i·stride + k·dilation − before, k < size; what falls outside of the
output is lost, what nothing reaches holds the bias. The geometry is the one that reproduces the
reference (Dumoulin, Visin 2016).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.registry import register
from crosscheck.explain.windows import MOST_WORK

__all__ = ["Transposed"]

MOST_STRIDE = 4


@dataclass(frozen=True)
class Transposed:
    """One transposed convolution.

    Attributes:
        stride, dilation: of all inner axes.
        before: how much of the full result is cut off in front, for each inner axis.
        first: channels first.
        flip: the kernel is read backwards.
        exchange: ``"outer"``: in and out of the kernel; ``"inner"``: height and width.
        groups: of channels.
    """

    stride: int
    before: tuple[int, ...]
    first: bool
    dilation: int = 1
    flip: bool = False
    exchange: str = ""
    groups: int = 1

    def __call__(self, e: Evidence, only: int | None = None) -> np.ndarray:
        """The result for the first ``only`` examples."""
        assert e.x is not None
        x = (e.x if self.first else np.moveaxis(e.x, -1, 1))[:only]
        kernel = self._kernel(e)  # (in, out / groups, *sizes)
        out = e.reference.shape[2:] if self.first else e.reference.shape[1:-1]
        parts = [
            self._one(part, k, out)
            for part, k in zip(
                np.split(x, self.groups, axis=1), np.split(kernel, self.groups), strict=True
            )
        ]
        y = np.concatenate(parts, axis=1)
        bias = e.value("bias")
        if bias is not None:
            y = y + bias.reshape(-1, *(1 for _ in out))
        return y if self.first else np.moveaxis(y, 1, -1)

    def _one(self, x: np.ndarray, kernel: np.ndarray, out: tuple[int, ...]) -> np.ndarray:
        sizes = kernel.shape[2:]
        full = [
            max((n - 1) * self.stride + self.dilation * (k - 1) + 1, o + b)
            for n, k, o, b in zip(x.shape[2:], sizes, out, self.before, strict=True)
        ]
        y = np.zeros((x.shape[0], kernel.shape[1], *full))
        shares = np.moveaxis(np.tensordot(x, kernel, axes=(1, 0)), x.ndim - 1, 1)
        for taps in itertools.product(*map(range, sizes)):  # shares: (B, out, *in, *sizes)
            where = tuple(
                slice(t * self.dilation, t * self.dilation + (n - 1) * self.stride + 1, self.stride)
                for t, n in zip(taps, x.shape[2:], strict=True)
            )
            picked: tuple[Any, ...] = (..., *taps)
            y[(slice(None), slice(None), *where)] += shares[picked]
        kept = tuple(slice(b, b + o) for b, o in zip(self.before, out, strict=True))
        return np.asarray(y[(slice(None), slice(None), *kept)])

    def _kernel(self, e: Evidence) -> np.ndarray:
        kernel = in_out(e)
        inner = tuple(range(2, kernel.ndim))
        if self.flip:
            kernel = np.flip(kernel, inner)
        if self.exchange == "inner":
            kernel = kernel.transpose(0, 1, *reversed(inner))
        if self.exchange == "outer":
            kernel = kernel.swapaxes(0, 1)
        return kernel


def in_out(e: Evidence) -> np.ndarray:
    """The kernel as (in, out / groups, *sizes)."""
    (parameter,) = (p for p in e.parameters if p.role == "weight")
    axes = parameter.axes
    if axes is None or {"in", "out"} - set(axes):
        raise ValueError("not a plain kernel")
    inner = [i for i, axis in enumerate(axes) if axis in ("d", "h", "w")]
    return parameter.value.transpose(axes.index("in"), axes.index("out"), *inner)


@register("forward")
def transposed_convolution(e: Evidence) -> Iterator[Proposal]:
    """Shifted by a pixel, kernel flipped, its channels or inner axes exchanged."""
    weight = e.value("weight")
    if e.x is None or weight is None or weight.ndim < 3 or e.x.ndim != weight.ndim:
        return
    ours = _reference(e)
    if ours is None:
        return
    kernel = in_out(e)
    for before in _shifts(ours, kernel.shape[2:]):
        moved = [b - a for a, b in zip(before, ours.before, strict=True)]
        yield Proposal(
            "transposed_shift",
            f"the output is shifted by {', '.join(map(str, moved))} along its inner axes: "
            f"{_cut(before)} cut off in front, in the reference {_cut(ours.before)}",
            replace(ours, before=before),
        )
    yield Proposal("conv_flipped", "the kernel is flipped", replace(ours, flip=True))
    if kernel.shape[0] == kernel.shape[1]:
        text = "input and output channels of the kernel are exchanged"
        yield Proposal("conv_channels", text, replace(ours, exchange="outer"))
        text = "the kernel is flipped, and its input and output channels are exchanged"
        yield Proposal("conv_channels", text, replace(ours, exchange="outer", flip=True))
    if kernel.ndim == 4 and kernel.shape[2] == kernel.shape[3]:
        text = "height and width of the kernel are exchanged"
        yield Proposal("conv_exchanged", text, replace(ours, exchange="inner"))


def _cut(before: tuple[int, ...]) -> str:
    return ", ".join(map(str, before)) + (" pixel is" if set(before) == {1} else " pixels are")


def _shifts(ours: Transposed, sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Other cuts near the reference's, the same along every axis or along one."""
    found = []
    for step in (1, -1, 2, -2):
        choices = [(0, step) for _ in sizes]
        for steps in itertools.product(*choices):
            before = tuple(b + s for b, s in zip(ours.before, steps, strict=True))
            if any(steps) and min(before) >= 0:
                found.append(before)
    return found


def _reference(e: Evidence) -> Transposed | None:
    """The transposed convolution that the reference is; None if it is something else."""
    assert e.x is not None
    kernel = in_out(e)
    first = e.x.shape[1] == kernel.shape[0]
    lengths = e.x.shape[2:] if first else e.x.shape[1:-1]
    out = e.reference.shape[2:] if first else e.reference.shape[1:-1]
    channels = e.reference.shape[1 if first else -1]
    groups = channels // kernel.shape[1]
    if groups < 1 or kernel.shape[0] % groups or e.x.size * kernel[0].size * 16 > MOST_WORK:
        return None
    one = e.reference[:1]
    for stride, dilation in itertools.product(range(1, MOST_STRIDE + 1), (1, 2)):
        reach = [dilation * (k - 1) + 1 for k in kernel.shape[2:]]
        most = [
            (n - 1) * stride + r - o for n, r, o in zip(lengths, reach, out, strict=True)
        ]  # cut off altogether; negative: the output is padded
        if any(m >= 2 * r or -m >= stride + r for m, r in zip(most, reach, strict=True)):
            continue
        for before in itertools.product(*(range(r) for r in reach)):
            conv = Transposed(stride, before, first, dilation, groups=groups)
            apart = np.linalg.norm(conv(e, only=1) - one)
            if apart <= 1e-5 * np.linalg.norm(one) and e.fits_reference(conv(e)):
                return conv
    return None
