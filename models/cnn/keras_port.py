"""The residual network in Keras 3; images are (N, H, W, C)."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers, ops


class BatchNorm(layers.BatchNormalization):
    """Keras puts the biased variance of a batch into its running variance, PyTorch the unbiased.

    Keras' momentum is the share of the old value: one minus PyTorch's.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(momentum=0.9, epsilon=1e-5, **kwargs)
        self.unbiased = True

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        kept = self.momentum * ops.convert_to_tensor(self.moving_variance)
        outputs = super().call(inputs, training=training, mask=mask)
        if training and self.trainable and self.unbiased:
            n = math.prod(inputs.shape[:-1])
            batch = self.moving_variance - kept  # (1 - momentum) · biased variance
            self.moving_variance.assign(kept + batch * (n / (n - 1)))
        return outputs


class MaxPool(layers.Layer):
    """3 x 3, stride 2, with a border that never wins on every side; "same" pads one side only."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pad_value = -math.inf

    def call(self, x: Any) -> Any:
        x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=self.pad_value)
        return ops.max_pool(x, 3, strides=2, padding="valid")


class AvgPool(layers.Layer):
    """3 x 3, stride 2, one pixel of padding that does not count."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count_include_pad = False

    def call(self, x: Any) -> Any:
        border = ((0, 0), (1, 1), (1, 1), (0, 0))
        mean = ops.average_pool(ops.pad(x, border), 3, strides=2, padding="valid")
        if self.count_include_pad:
            return mean
        inside = ops.pad(ops.ones_like(x[:1, :, :, :1]), border)
        return mean / ops.average_pool(inside, 3, strides=2, padding="valid")


class Stem(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(8, 3, padding="same", name="conv")
        self.bn = BatchNorm(name="bn")
        self.pool = MaxPool(name="pool")
        self.relu = layers.ReLU(name="relu")

    def call(self, x: Any) -> Any:
        return self.relu(self.pool(self.bn(self.conv(x))))


class Shortcut(layers.Layer):
    """Halves the image and changes the channels."""

    def __init__(self, outputs: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pool = AvgPool(name="pool")
        self.conv = layers.Conv2D(outputs, 1, use_bias=False, name="conv")
        self.bn = BatchNorm(name="bn")

    def call(self, x: Any) -> Any:
        return self.bn(self.conv(self.pool(x)))


class ResidualBlock(layers.Layer):
    """relu(main(x) + shortcut(x)) (He et al., Deep Residual Learning, 2015)."""

    def __init__(self, outputs: int, stride: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # A strided "same" convolution pads right and bottom only; PyTorch pads every side.
        self.pad1 = layers.ZeroPadding2D(1, name="pad1")
        self.conv1 = layers.Conv2D(outputs, 3, strides=stride, use_bias=False, name="conv1")
        self.bn1 = BatchNorm(name="bn1")
        self.relu1 = layers.ReLU(name="relu1")
        self.conv2 = layers.Conv2D(outputs, 3, padding="same", use_bias=False, name="conv2")
        self.bn2 = BatchNorm(name="bn2")
        self.shortcut = Shortcut(outputs, name="shortcut") if stride > 1 else None
        self.relu2 = layers.ReLU(name="relu2")

    def call(self, x: Any) -> Any:
        main = self.relu1(self.bn1(self.conv1(self.pad1(x))))
        main = self.bn2(self.conv2(main))
        side = x if self.shortcut is None else self.shortcut(x)
        return self.relu2(main + side)


class CNN(keras.Model):
    """Images (N, 8, 6, 1) -> 10 logits."""

    def __init__(self) -> None:
        super().__init__(name="cnn")
        self.stem = Stem(name="stem")
        self.block1 = ResidualBlock(12, 2, name="block1")
        self.block2 = ResidualBlock(12, 1, name="block2")
        self.pool = layers.GlobalAveragePooling2D(name="pool")
        self.fc = layers.Dense(10, name="fc")

    def call(self, x: Any) -> Any:
        x = self.stem(x)  # (N, 4, 3, 8)
        x = self.block2(self.block1(x))  # (N, 2, 2, 12)
        return self.fc(self.pool(x))  # (N, 10)


def build() -> CNN:
    """An untrained model with all of its variables."""
    model = CNN()
    model(ops.zeros((1, 8, 6, 1)))
    return model
