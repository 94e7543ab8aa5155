"""Arrays inside nested Python values: find them, name them, replace them.

Models take and return tensors inside tuples, lists, dicts, named tuples, dataclasses and mapping
classes of their own. The first array of a value has no suffix; each further one has its path:
``:1``, ``:hidden``, ``:1:0``.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["leaves", "replace_leaves"]

IsLeaf = Callable[[Any], bool]


def _children(value: Any) -> list[tuple[str, Any]] | None:
    """Named children of a container, or None for anything that is not one."""
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, (tuple, list)):
        return [(str(index), item) for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    return None


def _walk(value: Any, is_leaf: IsLeaf, path: str) -> Iterator[tuple[str, Any]]:
    if is_leaf(value):
        yield path, value
        return
    for name, item in _children(value) or ():
        yield from _walk(item, is_leaf, f"{path}:{name}")


def leaves(value: Any, is_leaf: IsLeaf) -> list[tuple[str, Any]]:
    """``[(suffix, array), ...]`` in order; the first suffix is empty."""
    found = list(_walk(value, is_leaf, ""))
    return [("" if index == 0 else path, leaf) for index, (path, leaf) in enumerate(found)]


def replace_leaves(value: Any, is_leaf: IsLeaf, function: Callable[[str, Any], Any]) -> Any:
    """Apply ``function(suffix, leaf)`` to every array; containers keep their types.

    A container in which nothing changed is returned itself, so that types we cannot rebuild pass
    through unharmed as long as nobody replaces a value inside them.
    """
    first = True

    def replaced(path: str, leaf: Any) -> Any:
        nonlocal first
        suffix, first = ("", False) if first else (path, False)
        return function(suffix, leaf)

    return _replaced(value, is_leaf, replaced, "")


def _replaced(node: Any, is_leaf: IsLeaf, function: Callable[[str, Any], Any], path: str) -> Any:
    # Not within `replace_leaves`: a function that calls itself there is a cycle, and would keep the
    # arrays in memory until it is collected.
    if is_leaf(node):
        return function(path, node)
    children = _children(node)
    if not children:
        return node
    new = [_replaced(item, is_leaf, function, f"{path}:{name}") for name, item in children]
    if all(a is b for a, (_, b) in zip(new, children, strict=True)):
        return node
    return _rebuild(node, new)


def _rebuild(node: Any, items: list[Any]) -> Any:
    if isinstance(node, Mapping):
        rebuilt = copy.copy(node)
        for key, item in zip(list(node), items, strict=True):
            rebuilt[key] = item  # type: ignore[index]  # immutable mappings raise, and say so
        return rebuilt
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return type(node)(*items)
    if isinstance(node, (tuple, list)):
        return type(node)(items)
    rebuilt = copy.copy(node)
    for field, item in zip(dataclasses.fields(node), items, strict=True):
        object.__setattr__(rebuilt, field.name, item)  # also for frozen dataclasses
    return rebuilt
