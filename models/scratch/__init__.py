"""Neural network layers from scratch: forward and backward by hand, on NumPy or CuPy arrays."""

from models.scratch.activation import GELU, Hardswish, LeakyReLU, ReLU, Softmax
from models.scratch.attention import CausalSelfAttention
from models.scratch.base import Array, Layer, array_namespace
from models.scratch.conv import Conv2d
from models.scratch.dense import Linear
from models.scratch.embedding import Embedding, TiedHead
from models.scratch.norm import BatchNorm2d, LayerNorm
from models.scratch.pool import AvgPool2d, GlobalAvgPool, MaxPool2d

__all__ = [
    "GELU",
    "Array",
    "AvgPool2d",
    "BatchNorm2d",
    "CausalSelfAttention",
    "Conv2d",
    "Embedding",
    "GlobalAvgPool",
    "Hardswish",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "MaxPool2d",
    "ReLU",
    "Softmax",
    "TiedHead",
    "array_namespace",
]
