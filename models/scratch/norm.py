"""Normalisation layers."""

from __future__ import annotations

import numpy as np

from models.scratch.base import Array, Layer, array_namespace


class LayerNorm(Layer):
    """y = x̂ · weight + bias with x̂ = (x - mean) / √(var + eps), statistics over the last axis.

    (Ba, Kiros, Hinton, Layer Normalization, 2016). Mean and variance depend on x, so with
    d = dy · weight

        dx = (d - mean(d) - x̂ · mean(d · x̂)) / √(var + eps)
    """

    axes = {"weight": ("channel",), "bias": ("channel",)}

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self._add_parameter("weight", np.ones(channels, np.float32))
        self._add_parameter("bias", np.zeros(channels, np.float32))

    def forward(self, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        self._rstd = 1 / array_namespace(x).sqrt(variance + self.eps)
        self._xhat = centred * self._rstd
        return self._xhat * self.params["weight"] + self.params["bias"]

    def backward(self, dy: Array) -> Array:
        xhat, leading = self._xhat, tuple(range(dy.ndim - 1))
        self.accumulate("weight", (dy * xhat).sum(axis=leading))
        self.accumulate("bias", dy.sum(axis=leading))
        d = dy * self.params["weight"]
        mean, slope = d.mean(axis=-1, keepdims=True), (d * xhat).mean(axis=-1, keepdims=True)
        return (d - mean - xhat * slope) * self._rstd


class BatchNorm2d(Layer):
    """Normalises each channel of (B, C, H, W) over the batch and the image (Ioffe, Szegedy, 2015).

    Training uses the statistics of the batch and lets the running ones follow,

        running ← (1 - momentum) · running + momentum · batch

    with the unbiased variance (n - 1) as in PyTorch. Evaluation uses the running statistics; they
    are constants, so there backward is a plain scaling.
    """

    axes = {"weight": ("channel",), "bias": ("channel",)}

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self._add_parameter("weight", np.ones(channels, np.float32))
        self._add_parameter("bias", np.zeros(channels, np.float32))
        self.buffers["running_mean"] = np.zeros(channels, np.float32)
        self.buffers["running_var"] = np.ones(channels, np.float32)

    def forward(self, x: Array) -> Array:
        self._batch_statistics = self.training
        if self.training:
            mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))  # (C,)
            n = x.shape[0] * x.shape[2] * x.shape[3]
            self._follow("running_mean", mean)
            self._follow("running_var", variance * (n / (n - 1)))
        else:
            mean, variance = self.buffers["running_mean"], self.buffers["running_var"]
        self._rstd = _image(1 / array_namespace(x).sqrt(variance + self.eps))
        self._xhat = (x - _image(mean)) * self._rstd
        return self._xhat * _image(self.params["weight"]) + _image(self.params["bias"])

    def backward(self, dy: Array) -> Array:
        xhat, over = self._xhat, (0, 2, 3)
        self.accumulate("weight", (dy * xhat).sum(axis=over))
        self.accumulate("bias", dy.sum(axis=over))
        d = dy * _image(self.params["weight"])
        if not self._batch_statistics:
            return d * self._rstd
        mean, slope = d.mean(axis=over, keepdims=True), (d * xhat).mean(axis=over, keepdims=True)
        return (d - mean - xhat * slope) * self._rstd

    def _follow(self, name: str, batch: Array) -> None:
        self.buffers[name] = (1 - self.momentum) * self.buffers[name] + self.momentum * batch


def _image(v: Array) -> Array:
    """(C,) -> (C, 1, 1), to broadcast against (B, C, H, W)."""
    return v[:, None, None]
