"""A small MobileNetV3 in Flax NNX (Howard et al., 2019, as in `models.mobilenet.reference`);
images are (N, H, W, C).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from models.cnn.jax_port import BatchNorm, GlobalAvgPool, ReLU


class HardSwish(nnx.Module):
    """x · min(max(x + 3, 0), 6) / 6."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.hard_swish(x)


class HardSigmoid(nnx.Module):
    """min(max(x + 3, 0), 6) / 6."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.clip(x + 3, 0, 6) / 6


class ConvBNAct(nnx.Module):
    def __init__(self, inputs: int, outputs: int, size: int, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(
            inputs, outputs, (size, size), padding=size // 2, use_bias=False, rngs=rngs
        )
        self.bn = BatchNorm(outputs, rngs)
        self.act = HardSwish()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.act(self.bn(self.conv(x)))


class SqueezeExcite(nnx.Module):
    """Scales each channel by what all channels' means say; the gate is the hard sigmoid."""

    def __init__(self, channels: int, squeezed: int, rngs: nnx.Rngs) -> None:
        self.pool = GlobalAvgPool()
        self.squeeze = nnx.Linear(channels, squeezed, rngs=rngs)
        self.relu = ReLU()
        self.excite = nnx.Linear(squeezed, channels, rngs=rngs)
        self.gate = HardSigmoid()

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.gate(self.excite(self.relu(self.squeeze(self.pool(x)))))  # (N, C)
        return x * scale[:, None, None, :]


class InvertedResidual(nnx.Module):
    """Expand by 1 x 1, filter each channel, squeeze and excite, project by 1 x 1 (not activated);
    x is added where the shape allows it.
    """

    def __init__(
        self,
        inputs: int,
        expanded: int,
        outputs: int,
        rngs: nnx.Rngs,
        *,
        size: int,
        stride: int,
        squeezed: int,
    ) -> None:
        self.expand = ConvBNAct(inputs, expanded, 1, rngs)
        self.depthwise = nnx.Conv(
            expanded,
            expanded,
            (size, size),
            strides=stride,
            padding=size // 2,
            feature_group_count=expanded,
            use_bias=False,
            rngs=rngs,
        )
        self.bn = BatchNorm(expanded, rngs)
        self.act = HardSwish()
        self.se = SqueezeExcite(expanded, squeezed, rngs)
        self.project = nnx.Conv(expanded, outputs, (1, 1), use_bias=False, rngs=rngs)
        self.project_bn = BatchNorm(outputs, rngs)
        self.residual = stride == 1 and inputs == outputs

    def __call__(self, x: jax.Array) -> jax.Array:
        main = self.se(self.act(self.bn(self.depthwise(self.expand(x)))))
        main = self.project_bn(self.project(main))
        return x + main if self.residual else main


class MobileNet(nnx.Module):
    """Images (N, 8, 6, 1) -> 10 logits."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = ConvBNAct(1, 8, 3, rngs)
        self.block1 = InvertedResidual(8, 20, 12, rngs, size=5, stride=2, squeezed=7)
        self.block2 = InvertedResidual(12, 26, 12, rngs, size=3, stride=1, squeezed=9)
        self.last = ConvBNAct(12, 30, 1, rngs)
        self.pool = GlobalAvgPool()
        self.fc1 = nnx.Linear(30, 17, rngs=rngs)
        self.act = HardSwish()
        self.fc2 = nnx.Linear(17, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)  # (N, 8, 6, 8)
        x = self.block2(self.block1(x))  # (N, 4, 3, 12)
        x = self.pool(self.last(x))  # (N, 30)
        return self.fc2(self.act(self.fc1(x)))  # (N, 10)


def build() -> MobileNet:
    """An untrained model."""
    return MobileNet(nnx.Rngs(0))
