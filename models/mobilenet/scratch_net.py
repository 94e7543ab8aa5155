"""A small MobileNetV3 from scratch (Howard et al., 2019, as in `models.mobilenet.reference`);
images are (N, C, H, W).
"""

from __future__ import annotations

import numpy as np

from models.scratch import (
    Array,
    BatchNorm2d,
    Conv2d,
    DepthwiseConv2d,
    GlobalAvgPool,
    Hardsigmoid,
    Hardswish,
    Layer,
    Linear,
    ReLU,
)


class ConvBNAct(Layer):
    def __init__(self, inputs: int, outputs: int, size: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.conv = Conv2d(inputs, outputs, size, rng, padding=size // 2, bias=False)
        self.bn = BatchNorm2d(outputs)
        self.act = Hardswish()

    def forward(self, x: Array) -> Array:
        return self.act.forward(self.bn.forward(self.conv.forward(x)))

    def backward(self, dy: Array) -> Array:
        return self.conv.backward(self.bn.backward(self.act.backward(dy)))


class SqueezeExcite(Layer):
    """y = x · scale, scale = gate(excite(relu(squeeze(mean x)))) for each channel.

    x reaches y twice: as the factor, and through the scale, whose cotangent is dy · x summed over
    the image.
    """

    def __init__(self, channels: int, squeezed: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.pool = GlobalAvgPool()
        self.squeeze = Linear(channels, squeezed, rng)
        self.relu = ReLU()
        self.excite = Linear(squeezed, channels, rng)
        self.gate = Hardsigmoid()

    def forward(self, x: Array) -> Array:
        squeezed = self.relu.forward(self.squeeze.forward(self.pool.forward(x)))
        scale = self.gate.forward(self.excite.forward(squeezed))  # (N, C)
        self._x, self._scale = x, scale[:, :, None, None]
        return x * self._scale

    def backward(self, dy: Array) -> Array:
        dscale = self.gate.backward((dy * self._x).sum(axis=(2, 3)))  # (N, C)
        dsqueezed = self.relu.backward(self.excite.backward(dscale))
        return dy * self._scale + self.pool.backward(self.squeeze.backward(dsqueezed))


class InvertedResidual(Layer):
    """Expand by 1 x 1, filter each channel, squeeze and excite, project by 1 x 1 (not activated);
    x is added where the shape allows it.
    """

    def __init__(
        self,
        inputs: int,
        expanded: int,
        outputs: int,
        rng: np.random.Generator,
        *,
        size: int,
        stride: int,
        squeezed: int,
    ) -> None:
        super().__init__()
        self.expand = ConvBNAct(inputs, expanded, 1, rng)
        self.depthwise = DepthwiseConv2d(expanded, size, rng, stride=stride, padding=size // 2)
        self.bn = BatchNorm2d(expanded)
        self.act = Hardswish()
        self.se = SqueezeExcite(expanded, squeezed, rng)
        self.project = Conv2d(expanded, outputs, 1, rng, bias=False)
        self.project_bn = BatchNorm2d(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Array) -> Array:
        main = self.bn.forward(self.depthwise.forward(self.expand.forward(x)))
        main = self.project.forward(self.se.forward(self.act.forward(main)))
        main = self.project_bn.forward(main)
        return x + main if self.residual else main

    def backward(self, dy: Array) -> Array:
        dmain = self.project.backward(self.project_bn.backward(dy))
        dmain = self.bn.backward(self.act.backward(self.se.backward(dmain)))
        dx = self.expand.backward(self.depthwise.backward(dmain))
        return dy + dx if self.residual else dx


class MobileNet(Layer):
    """Images (N, 1, 8, 6) -> 10 logits."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.stem = ConvBNAct(1, 8, 3, rng)
        self.block1 = InvertedResidual(8, 20, 12, rng, size=5, stride=2, squeezed=7)
        self.block2 = InvertedResidual(12, 26, 12, rng, size=3, stride=1, squeezed=9)
        self.last = ConvBNAct(12, 30, 1, rng)
        self.pool = GlobalAvgPool()
        self.fc1 = Linear(30, 17, rng)
        self.act = Hardswish()
        self.fc2 = Linear(17, 10, rng)

    def forward(self, x: Array) -> Array:
        x = self.stem.forward(x)  # (N, 8, 8, 6)
        x = self.block2.forward(self.block1.forward(x))  # (N, 12, 4, 3)
        x = self.pool.forward(self.last.forward(x))  # (N, 30)
        return self.fc2.forward(self.act.forward(self.fc1.forward(x)))  # (N, 10)

    def backward(self, dy: Array) -> Array:
        dy = self.pool.backward(self.fc1.backward(self.act.backward(self.fc2.backward(dy))))
        return self.stem.backward(
            self.block1.backward(self.block2.backward(self.last.backward(dy)))
        )


def build() -> MobileNet:
    """An untrained net, in evaluation mode."""
    net = MobileNet(np.random.default_rng(0))
    net.eval()
    return net
