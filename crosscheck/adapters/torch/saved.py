"""Under ``max_memory``: what PyTorch keeps of a forward pass for the backward one, kept with the
values of the run, in memory or on disk (``torch.autograd.graph.saved_tensors_hooks``).

What comes back has the bits, the shape and the strides of what was saved, so that the same kernels
compute the same numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from crosscheck.adapters.torch.taps import to_host
from crosscheck.adapters.torch.widened import Widened
from crosscheck.memory import Values, is_limited, new_values

__all__ = ["saved_within_limit"]

SMALL = 4096
"""Bytes up to which a tensor stays where it is."""


@contextmanager
def saved_within_limit(
    parameters: Iterable[torch.Tensor], casts: Widened | None = None
) -> Iterator[None]:
    """Within it, saved tensors count as values of the run; nothing changes where no limit holds.

    Args:
        parameters: which are there anyhow, and stay where they are.
        casts: of parameters, which are cast again.
    """
    if not is_limited():
        yield
        return
    values = new_values()
    assert isinstance(values, Values)
    there = {p.untyped_storage().data_ptr() for p in parameters}
    numbers = itertools.count()

    def pack(tensor: torch.Tensor) -> torch.Tensor | _Saved | _Cast:
        parameter = None if casts is None else casts.cast_of(tensor)
        if parameter is not None:
            return _Cast(parameter, tensor.shape, tensor.stride(), int(tensor.storage_offset()))
        if not _can_go(tensor) or tensor.untyped_storage().data_ptr() in there:
            return tensor
        saved = _Saved(values, next(numbers), tensor.dtype, tensor.shape, tensor.stride())
        # A copy: the model may overwrite the tensor in place once nobody else holds it.
        values[saved.key] = np.array(to_host(tensor), order="C", copy=True)
        return saved

    def unpack(saved: torch.Tensor | _Saved | _Cast) -> torch.Tensor:
        return saved if isinstance(saved, torch.Tensor) else saved.tensor()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _can_go(tensor: torch.Tensor) -> bool:
    """Whether an array can hold the tensor, and it is worth while."""
    return (
        type(tensor) is torch.Tensor
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.nbytes > SMALL
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
        and 0 not in tensor.stride()  # shown larger than it is
        and str(tensor.dtype) in _KNOWN
    )


_KNOWN = {f"torch.{np.dtype(name)}" for name in ("float64", "float32", "float16", "int64", "int32")}
_KNOWN |= {"torch.bool", "torch.uint8", "torch.int8", "torch.int16"}


@dataclass(frozen=True)
class _Cast:
    """A view of a parameter in float64."""

    parameter: torch.nn.Parameter
    shape: torch.Size
    strides: tuple[int, ...]
    offset: int

    def tensor(self) -> torch.Tensor:
        wide = self.parameter.detach().double()
        return wide.as_strided(self.shape, self.strides, self.offset)


@dataclass(frozen=True)
class _Saved:
    """A tensor that lies among the values of a run; when the graph drops it, so do they."""

    values: Values[int]
    key: int
    dtype: torch.dtype
    shape: torch.Size
    strides: tuple[int, ...]

    def tensor(self) -> torch.Tensor:
        found = torch.empty_strided(self.shape, self.strides, dtype=self.dtype)
        np.copyto(found.numpy(), self.values[self.key])
        return found

    def __del__(self) -> None:
        del self.values[self.key]
