"""Weights for references that nobody trained: no parameter keeps the value it is initialised to."""

from __future__ import annotations

import math

import torch
from torch import nn


def randomise(model: nn.Module, seed: int) -> None:
    """Draw every parameter anew from ``seed`` alone; activations stay of the order of one.

    A gain (of a norm) is uniform in ±[0.5, 1.5], a bias normal with deviation 0.2, an embedding
    normal with deviation 0.8, any other matrix normal with deviation 1/√in. Norms of gain one and
    biases of zero would hide whether a port applies them at all.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = parameter.shape
            if parameter.ndim == 1 and name.endswith("weight"):
                sign = torch.randint(2, shape, generator=generator) * 2 - 1
                parameter.copy_(sign * (0.5 + torch.rand(shape, generator=generator)))
                continue
            scale = 0.2
            if parameter.ndim > 1:
                scale = 0.8 if id(parameter) in tables else 1 / math.sqrt(fan_in(parameter))
            parameter.copy_(scale * torch.randn(shape, generator=generator))


def fan_in(weight: torch.Tensor) -> int:
    """How many numbers a weight (out, in, ...) sums into one."""
    return weight[0].numel()
