"""What a layer returns its tensor in, so that the same can be made around a known value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Wrapping"]


@dataclass(frozen=True)
class Wrapping:
    """What a layer returns its one tensor in: nothing, or a tuple or list beside None.

    Attributes:
        kind: of the container; None: the tensor is returned as it is.
        place: of the tensor in it.
    """

    kind: type | None = None
    length: int = 1
    place: int = 0

    @classmethod
    def of(cls, output: Any) -> Wrapping | None:
        """That of what a layer has returned; None: it is something else."""
        if isinstance(output, torch.Tensor):
            return _BARE
        if type(output) not in (tuple, list):
            return None
        held = [i for i, item in enumerate(output) if item is not None]
        single = len(held) == 1 and isinstance(output[held[0]], torch.Tensor)
        return cls(type(output), len(output), held[0]) if single else None

    def around(self, tensor: torch.Tensor) -> Any:
        """The same with another tensor."""
        if self.kind is None:
            return tensor
        items = [tensor if i == self.place else None for i in range(self.length)]
        return self.kind(items)


_BARE = Wrapping()
