"""LeNet-5 from scratch (LeCun et al., 1998, as in `models.lenet.reference`); (N, C, H, W)."""

from __future__ import annotations

import numpy as np

from models.scratch import Array, AvgPool2d, Conv2d, Layer, Linear, array_namespace


class Squash(Layer):
    """y = a tanh(s x) with a = 1.7159, s = 2/3; hence dy/dx = a s (1 - tanh²(s x))."""

    def __init__(self) -> None:
        super().__init__()
        self.amplitude, self.slope = 1.7159, 2 / 3

    def forward(self, x: Array) -> Array:
        self._t = array_namespace(x).tanh(self.slope * x)
        return self.amplitude * self._t

    def backward(self, dy: Array) -> Array:
        return dy * self.amplitude * self.slope * (1 - self._t**2)


class Subsample(Layer):
    """coefficient · mean over 2 x 2 + bias for each map; an odd last row or column is left out."""

    axes = {"weight": ("channel",), "bias": ("channel",)}

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = AvgPool2d(2, stride=2)
        self._add_parameter("weight", np.ones(channels, np.float32))
        self._add_parameter("bias", np.zeros(channels, np.float32))

    def forward(self, x: Array) -> Array:
        self._mean = self.pool.forward(x)
        return (
            self._mean * self.params["weight"][:, None, None] + self.params["bias"][:, None, None]
        )

    def backward(self, dy: Array) -> Array:
        self.accumulate("weight", (dy * self._mean).sum(axis=(0, 2, 3)))
        self.accumulate("bias", dy.sum(axis=(0, 2, 3)))
        return self.pool.backward(dy * self.params["weight"][:, None, None])


class LeNet(Layer):
    """Images (N, 1, 17, 13) -> 10 logits."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.c1 = Conv2d(1, 6, 5, rng, padding=2)
        self.squash1 = Squash()
        self.s2 = Subsample(6)
        self.squash2 = Squash()
        self.c3 = Conv2d(6, 11, 3, rng)
        self.squash3 = Squash()
        self.s4 = Subsample(11)
        self.squash4 = Squash()
        self.c5 = Linear(66, 20, rng)
        self.squash5 = Squash()
        self.f6 = Linear(20, 15, rng)
        self.squash6 = Squash()
        self.output = Linear(15, 10, rng)

    def forward(self, x: Array) -> Array:
        x = self.squash1.forward(self.c1.forward(x))  # (N, 6, 17, 13)
        x = self.squash2.forward(self.s2.forward(x))  # (N, 6, 8, 6)
        x = self.squash3.forward(self.c3.forward(x))  # (N, 11, 6, 4)
        x = self.squash4.forward(self.s4.forward(x))  # (N, 11, 3, 2)
        self._maps = x.shape
        x = self.squash5.forward(self.c5.forward(x.reshape(len(x), -1)))  # (N, 66) -> (N, 20)
        x = self.squash6.forward(self.f6.forward(x))  # (N, 15)
        return self.output.forward(x)  # (N, 10)

    def backward(self, dy: Array) -> Array:
        dy = self.f6.backward(self.squash6.backward(self.output.backward(dy)))
        dy = self.c5.backward(self.squash5.backward(dy)).reshape(self._maps)
        dy = self.c3.backward(self.squash3.backward(self.s4.backward(self.squash4.backward(dy))))
        return self.c1.backward(self.squash1.backward(self.s2.backward(self.squash2.backward(dy))))


def build() -> LeNet:
    """An untrained net, in evaluation mode."""
    net = LeNet(np.random.default_rng(0))
    net.eval()
    return net
