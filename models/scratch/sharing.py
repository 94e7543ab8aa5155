"""One layer applied twice in a forward pass."""

from __future__ import annotations

import copy
from typing import TypeVar

from models.scratch.base import Layer

AnyLayer = TypeVar("AnyLayer", bound=Layer)


def twin(layer: AnyLayer) -> AnyLayer:
    """A second instance with the very same parameters, gradients and running statistics.

    A layer remembers its last forward pass only; the twin remembers another one, and its backward
    adds to the same gradients (Bromley et al., Signature Verification using a "Siamese" Time Delay
    Neural Network, 1993).
    """
    other = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, Layer):
            setattr(other, name, twin(value))
        elif isinstance(value, list):
            setattr(other, name, [twin(v) if isinstance(v, Layer) else v for v in value])
    return other
