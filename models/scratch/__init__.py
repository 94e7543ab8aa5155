"""Neural network layers from scratch: forward and backward by hand, on NumPy or CuPy arrays."""

from models.scratch.activation import GELU, Hardswish, LeakyReLU, LogSoftmax, ReLU, Softmax, Tanh
from models.scratch.attention import CausalSelfAttention
from models.scratch.base import Array, Layer, array_namespace
from models.scratch.conv import Conv2d
from models.scratch.dense import Linear
from models.scratch.depthwise import DepthwiseConv2d
from models.scratch.embedding import Embedding, TiedHead
from models.scratch.experts import MixtureOfExperts, Router
from models.scratch.gated import SiLU, SwiGLU
from models.scratch.gates import Hardsigmoid, Sigmoid
from models.scratch.graph import GraphConv
from models.scratch.heads import GroupedQueryAttention, PaddedSelfAttention, ScaledDotProduct
from models.scratch.norm import BatchNorm2d, LayerNorm
from models.scratch.patches import PatchProjection, SelfAttention
from models.scratch.pool import AvgPool2d, GlobalAvgPool, MaxPool2d
from models.scratch.recurrent import GRU, LSTM, Bidirectional, LastStates
from models.scratch.resize import BilinearResize
from models.scratch.rms import RMSNorm
from models.scratch.rotary import Rotary
from models.scratch.sharing import twin
from models.scratch.transposed import ConvTranspose2d

__all__ = [
    "GELU",
    "GRU",
    "LSTM",
    "Array",
    "AvgPool2d",
    "BatchNorm2d",
    "Bidirectional",
    "BilinearResize",
    "CausalSelfAttention",
    "Conv2d",
    "ConvTranspose2d",
    "DepthwiseConv2d",
    "Embedding",
    "GlobalAvgPool",
    "GraphConv",
    "GroupedQueryAttention",
    "Hardsigmoid",
    "Hardswish",
    "LastStates",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MaxPool2d",
    "MixtureOfExperts",
    "PaddedSelfAttention",
    "PatchProjection",
    "RMSNorm",
    "ReLU",
    "Rotary",
    "Router",
    "ScaledDotProduct",
    "SelfAttention",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "SwiGLU",
    "Tanh",
    "TiedHead",
    "array_namespace",
    "twin",
]
