"""The operations inside one layer call of a PyTorch model, for `crosscheck.locating.zoom`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode, resolve_name

import crosscheck
from crosscheck.adapters.base import Operation
from crosscheck.adapters.torch import taps
from crosscheck.adapters.torch.taps import is_tensor, to_host
from crosscheck.structure import leaves
from crosscheck.taps import active_session

__all__ = ["OperationRecorder"]

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = os.path.dirname(crosscheck.__file__) + os.sep


class OperationRecorder(TorchFunctionMode):
    """Records what PyTorch is asked to compute while the layer call at ``site`` is in progress."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._site = site
        self._made: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []  # so that no identity is given twice

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        session = active_session()
        if session is not None and self._site in session.in_progress:
            tensors = [value for _, value in leaves(result, is_tensor)]
            if tensors and tensors[0].numel():
                self._add(func, args, kwargs or {}, tensors, session.current or self._site)
        return result

    def _add(
        self, func: Any, args: Any, kwargs: Any, results: list[torch.Tensor], site: str
    ) -> None:
        given = [value for _, value in leaves((args, kwargs), is_tensor)]
        frame = _caller(sys._getframe(2))
        file = "" if frame is None else frame.f_code.co_filename
        ours = file.startswith(_OURS)  # the caller of a model that is made of PyTorch's own layers
        operation = Operation(
            name=_name(func),
            where="" if frame is None or ours else f"{Path(file).name}:{frame.f_lineno}",
            site=site,
            value=np.array(to_host(results[0])),
            inputs=tuple(self._made[id(t)] for t in given if id(t) in self._made),
            literals=tuple(_literals(args, kwargs)),
            hidden=file == taps.__file__,
        )
        for tensor in results:
            self._made[id(tensor)] = len(self.operations)
            self._alive.append(tensor)
        self.operations.append(operation)


def _caller(frame: FrameType | None) -> FrameType | None:
    """The innermost frame that is not PyTorch's own."""
    while frame is not None and frame.f_code.co_filename.startswith((_TORCH, __file__)):
        frame = frame.f_back
    return frame


def _name(func: Any) -> str:
    name = resolve_name(func) or getattr(func, "__qualname__", None) or repr(func)
    return str(name).removeprefix("torch._C._nn.").removesuffix(".__get__")


def _literals(args: Any, kwargs: Any) -> list[str]:
    """Numbers, flags and names among the arguments."""
    plain = (bool, int, float, str, torch.dtype)
    found = [repr(a) for a in args if isinstance(a, plain)]
    return found + [f"{name}={a!r}" for name, a in kwargs.items() if isinstance(a, plain)]
