"""A small MobileNetV3 in Keras 3 (Howard et al., 2019, as in `models.mobilenet.reference`);
images are (N, H, W, C).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from models.cnn.keras_port import BatchNorm


class ConvBNAct(layers.Layer):
    def __init__(self, outputs: int, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(outputs, size, padding="same", use_bias=False, name="conv")
        self.bn = BatchNorm(name="bn")
        self.act = layers.Activation("hard_swish", name="act")

    def call(self, x: Any) -> Any:
        return self.act(self.bn(self.conv(x)))


class SqueezeExcite(layers.Layer):
    """Scales each channel by what all channels' means say; the gate is the hard sigmoid."""

    def __init__(self, channels: int, squeezed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pool = layers.GlobalAveragePooling2D(name="pool")
        self.squeeze = layers.Dense(squeezed, name="squeeze")
        self.relu = layers.ReLU(name="relu")
        self.excite = layers.Dense(channels, name="excite")
        self.gate = layers.Activation("hard_sigmoid", name="gate")

    def call(self, x: Any) -> Any:
        scale = self.gate(self.excite(self.relu(self.squeeze(self.pool(x)))))  # (N, C)
        return x * scale[:, None, None, :]


class InvertedResidual(layers.Layer):
    """Expand by 1 x 1, filter each channel, squeeze and excite, project by 1 x 1 (not activated);
    x is added where the shape allows it.
    """

    def __init__(
        self,
        expanded: int,
        outputs: int,
        *,
        size: int,
        stride: int,
        squeezed: int,
        residual: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.expand = ConvBNAct(expanded, 1, name="expand")
        # A strided "same" convolution pads right and bottom only; PyTorch pads every side.
        self.pad = layers.ZeroPadding2D(size // 2, name="pad")
        self.depthwise = layers.DepthwiseConv2D(
            size, strides=stride, use_bias=False, name="depthwise"
        )
        self.bn = BatchNorm(name="bn")
        self.act = layers.Activation("hard_swish", name="act")
        self.se = SqueezeExcite(expanded, squeezed, name="se")
        self.project = layers.Conv2D(outputs, 1, use_bias=False, name="project")
        self.project_bn = BatchNorm(name="project_bn")
        self.residual = residual

    def call(self, x: Any) -> Any:
        main = self.depthwise(self.pad(self.expand(x)))
        main = self.project(self.se(self.act(self.bn(main))))
        main = self.project_bn(main)
        return x + main if self.residual else main


class MobileNet(keras.Model):
    """Images (N, 8, 6, 1) -> 10 logits."""

    def __init__(self) -> None:
        super().__init__(name="mobilenet")
        self.stem = ConvBNAct(8, 3, name="stem")
        self.block1 = InvertedResidual(
            20, 12, size=5, stride=2, squeezed=7, residual=False, name="block1"
        )
        self.block2 = InvertedResidual(
            26, 12, size=3, stride=1, squeezed=9, residual=True, name="block2"
        )
        self.last = ConvBNAct(30, 1, name="last")
        self.pool = layers.GlobalAveragePooling2D(name="pool")
        self.fc1 = layers.Dense(17, name="fc1")
        self.act = layers.Activation("hard_swish", name="act")
        self.fc2 = layers.Dense(10, name="fc2")

    def call(self, x: Any) -> Any:
        x = self.stem(x)  # (N, 8, 6, 8)
        x = self.block2(self.block1(x))  # (N, 4, 3, 12)
        x = self.pool(self.last(x))  # (N, 30)
        return self.fc2(self.act(self.fc1(x)))  # (N, 10)


def build() -> MobileNet:
    """An untrained model with all of its variables."""
    model = MobileNet()
    model(ops.zeros((1, 8, 6, 1)))
    return model
