"""Values that a recorder may keep as they are: what was shown was the tensor's own memory.

To copy every value of a run costs as much as a layer. Nobody needs the copy unless the memory is
written to afterwards: by an operation in place, which PyTorch counts (``_version``), or by a later
run, which can only reach what the model holds. A run that lent such a value says so at its end; it
is then made again, and those values are copied.

Gradients of parameters nobody writes to. An observer may be done with them while the pass goes on:
then their memory serves the next ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from crosscheck.adapters.torch.parameters import named_modules
from crosscheck.observers import Key

__all__ = ["Loans", "copies_everything", "gradients_taken"]


class Loans:
    """What one run lent.

    Args:
        copied: what is known to be written to, and copied at once.
    """

    def __init__(self, copied: frozenset[Key]) -> None:
        self.copied = copied
        self._lent: list[tuple[Key, torch.Tensor, int]] = []
        self._changed: set[Key] = set()

    def note(self, key: Key, tensor: torch.Tensor) -> None:
        """``tensor`` was shown as it is."""
        self._lent.append((key, tensor.detach(), tensor._version))

    def end(self, keys: Collection[Key]) -> None:
        """What was lent under ``keys`` has been dropped: what is written to it from now on does
        not matter."""
        for key, alias, version in self._lent:
            if key in keys and alias._version != version:
                self._changed.add(key)
        self._lent = [one for one in self._lent if one[0] not in keys]

    def overwritten(self, model: torch.nn.Module) -> frozenset[Key]:
        """What has been written to since, or may be by the next run."""
        if not self._lent:
            return frozenset(self._changed)
        held = {_memory(tensor) for tensor in _held(model)}
        return frozenset(self._changed).union(
            key
            for key, alias, version in self._lent
            if alias._version != version or _memory(alias) in held
        )


def copies_everything(model: torch.nn.Module) -> bool:
    """Whether some layer says that it works in place: then most of what is lent is lost."""
    return any(getattr(module, "inplace", False) is True for module in model.modules())


@contextmanager
def gradients_taken(
    leaves: Mapping[str, torch.Tensor], takes: Callable[[str, torch.Tensor], bool] | None
) -> Iterator[set[str]]:
    """For the time of a backward pass, offer each gradient as soon as it is whole.

    Args:
        leaves: the parameters that get one.
        takes: whether nobody needs it any more; it stands for zeros from then on, which take no
            memory. None: nobody asks.

    Yields:
        The names of those that were taken.
    """
    taken: set[str] = set()

    def offer(name: str) -> Callable[[torch.Tensor], torch.Tensor | None]:
        def hook(gradient: torch.Tensor) -> torch.Tensor | None:
            if takes is None or gradient.layout is not torch.strided or not takes(name, gradient):
                return None
            taken.add(name)
            return gradient.new_zeros(()).expand_as(gradient)

        return hook

    with ExitStack() as stack:
        for name, leaf in leaves.items() if takes is not None else ():
            stack.callback(leaf.register_hook(offer(name)).remove)  # type: ignore[no-untyped-call]
        yield taken


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)


_OWN = frozenset(vars(torch.nn.Module()))
"""What every module has: none of it holds tensors but the parameters and buffers."""


def _held(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Parameters, buffers, and what else modules keep in their attributes."""
    for _, module in named_modules(model):
        yield from (tensor for tensor in module._parameters.values() if tensor is not None)
        yield from (tensor for tensor in module._buffers.values() if tensor is not None)
        attributes = vars(module)
        for name in attributes.keys() - _OWN:
            yield from _tensors(attributes[name])


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
