"""Fewer blocks: lists of like blocks on both sides, with only those left that it takes.

A list is an ``nn.ModuleList`` or ``nn.Sequential``, or an attribute of a hand-written net that is
a Python list. Frameworks are not imported: a module is known by what it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["BlockList", "block_lists", "choices", "only", "renamed"]


@dataclass(frozen=True)
class BlockList:
    """A list of like blocks in a model.

    Attributes:
        path: of the list, as in the names of sites.
        holder: the container (a module with ``_modules``) or the Python list itself.
    """

    path: str
    holder: Any

    @property
    def blocks(self) -> list[Any]:
        """The blocks, in order."""
        return list(self.holder) if isinstance(self.holder, list) else list(_children(self.holder))

    def index_of(self, site: str | None) -> int | None:
        """Which block a site lies in; None where in none."""
        start = f"{self.path}." if self.path else ""
        if site is None or not site.startswith(start):
            return None
        first = site[len(start) :].partition(".")[0].partition("#")[0].partition(":")[0]
        return int(first) if first.isdecimal() and int(first) < len(self.blocks) else None


def block_lists(model: Any) -> list[BlockList]:
    """All lists of two or more blocks of one class, outermost first."""
    found: list[BlockList] = []
    seen: set[int] = set()

    def visit(value: Any, path: str) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        items = _items(value)
        if _is_list(value) and _alike(list(items.values())):
            found.append(BlockList(path, value))
        for name, item in items.items():
            visit(item, f"{path}.{name}" if path else name)

    visit(model, "")
    return found


def _children(module: Any) -> list[Any]:
    return list(module._modules.values())


def _items(value: Any) -> dict[str, Any]:
    if isinstance(getattr(value, "_modules", None), dict):
        return {name: child for name, child in value._modules.items() if child is not None}
    if isinstance(value, list):
        return {str(i): item for i, item in enumerate(value) if callable_layer(item)}
    held = getattr(value, "__dict__", {})
    return {
        name: item
        for name, item in held.items()
        if not name.startswith("_") and (isinstance(item, list) or callable_layer(item))
    }


def callable_layer(value: Any) -> bool:
    """Whether it computes something: a layer by hand, or a module."""
    return callable(getattr(value, "forward", None)) and not isinstance(value, type)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or type(value).__name__ in ("ModuleList", "Sequential")


def _alike(items: Sequence[Any]) -> bool:
    return len(items) > 1 and len({type(item) for item in items}) == 1


def choices(count: int, index: int | None) -> Iterator[list[int]]:
    """Which blocks to keep, fewest first: the one that it is in, what leads up to it, the rest."""
    if index is None:
        yield [0]
        yield list(range((count + 1) // 2))
        return
    yield [index]
    if 0 < index < count - 1:
        yield list(range(index + 1))
    if index:
        yield list(range(index, count))


@contextmanager
def only(lists: Sequence[BlockList], kept: Sequence[int]) -> Iterator[None]:
    """Leave only the blocks ``kept`` in each list; put the others back at the end."""
    whole = [one.blocks for one in lists]
    names = [None if isinstance(o.holder, list) else list(o.holder._modules) for o in lists]
    try:
        for one, blocks in zip(lists, whole, strict=True):
            _fill(one.holder, [blocks[i] for i in kept], None)
        yield
    finally:
        for one, blocks, keys in zip(lists, whole, names, strict=True):
            _fill(one.holder, blocks, keys)


def _fill(holder: Any, blocks: Sequence[Any], names: Sequence[str] | None) -> None:
    if isinstance(holder, list):
        holder[:] = blocks
        return
    holder._modules.clear()
    for i, block in enumerate(blocks):
        holder._modules[str(i) if names is None else names[i]] = block


def renamed(site: str | None, blocks: BlockList, kept: Sequence[int]) -> str | None:
    """What a site is called once only the blocks ``kept`` are there."""
    index = blocks.index_of(site)
    if site is None or index is None:
        return site
    start = f"{blocks.path}." if blocks.path else ""
    rest = site[len(start) + len(str(index)) :]
    return f"{start}{list(kept).index(index)}{rest}" if index in kept else None
