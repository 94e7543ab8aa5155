"""Weights and running statistics by a seed, for convolutional references that nobody trained."""

from __future__ import annotations

import torch
from torch import nn

from models import random_weights


def randomise(model: nn.Module, seed: int) -> None:
    """Draw every parameter, and every statistic of the norms, from generators of their own.

    Parameters as in `models.random_weights`. Running means are normal with deviation 0.2, running
    variances uniform in [0.5, 1.5]: a norm that has seen nothing yet (0 and 1) would hide a port
    that forgets to load them.
    """
    random_weights.randomise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))
            elif name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
