"""What a rewrite is, and how one is given to layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Array", "Rewrite", "named", "over"]

Array = Any


@dataclass(frozen=True)
class Rewrite:
    """One way to compute the same.

    Attributes:
        candidate: the framework whose layers it rewrites.
        apply: changes a freshly built model in place; returns how many layers it changed.
    """

    name: str
    candidate: str
    apply: Callable[[Any], int]


def over(
    layers: Callable[[Any], Iterator[Any]], suits: Callable[[Any], bool], method: str, made: Any
) -> Callable[[Any], int]:
    """Give every layer that ``suits`` a subclass whose ``method`` is ``made(class)``."""

    def apply(model: Any) -> int:
        chosen = [layer for layer in layers(model) if suits(layer)]
        for layer in chosen:
            cls = type(layer)
            methods = made(cls) if method == "" else {method: made(cls)}
            layer.__class__ = type(cls.__name__, (cls,), methods)
        return len(chosen)

    return apply


def named(*names: str) -> Callable[[Any], bool]:
    """Layers of a class, or of one derived from it, that has one of these names."""
    return lambda layer: any(cls.__name__ in names for cls in type(layer).__mro__)
