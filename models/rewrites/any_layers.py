"""Rewrites that suit the layers of every framework: the batch in another order, or in pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models.rewrites.base import Array

__all__ = ["WITHOUT_STATISTICS", "by_example", "reversed_batch"]

WITHOUT_STATISTICS = (
    *("Linear", "Conv2d", "LayerNorm", "GELU", "RMSNorm", "ConvTranspose2d"),  # PyTorch
    *("Dense", "Conv2D", "LayerNormalization", "RMSNormalization", "Conv2DTranspose"),  # Keras
    *("Conv", "ConvTranspose", "Einsum", "LinearGeneral"),  # Flax
)


def reversed_batch(method: str, flip: Callable[[Array], Array]) -> Callable[[type], Any]:
    def made(cls: type) -> Any:
        def call(self: Any, x: Array, *args: Any, **options: Any) -> Array:
            return flip(getattr(cls, method)(self, flip(x), *args, **options))

        return call

    return made


def by_example(
    method: str, split: Callable[[Array], list[Array]], join: Callable[[list[Array]], Array]
) -> Callable[[type], Any]:
    """One example at a time: products of other sizes, so other routines and other sums."""

    def made(cls: type) -> Any:
        def call(self: Any, x: Array, *args: Any, **options: Any) -> Array:
            return join([getattr(cls, method)(self, part, *args, **options) for part in split(x)])

        return call

    return made
