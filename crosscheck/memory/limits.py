"""The limit: how it is written, and where it holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from crosscheck.errors import InvalidArgument
from crosscheck.memory.budget import Budget
from crosscheck.memory.values import Values

if TYPE_CHECKING:
    from crosscheck.trace import RunInfo

__all__ = [
    "is_limited",
    "limited",
    "new_values",
    "parse_bytes",
    "portions",
    "spilled",
    "within_limit",
]

_BUDGET: ContextVar[Budget | None] = ContextVar("crosscheck_memory", default=None)
_UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}{i}b": 1024**n for n, letter in enumerate("kmgt", 1) for i in ("i",)},
    **{f"{letter}b": 1000**n for n, letter in enumerate("kmgt", 1)},
}
LEAST = 2**20
AT_ONCE = 1 << 24
"""Elements that are compared in one call, and so held at once where a layout takes a copy."""
T = TypeVar("T")


def parse_bytes(limit: int | str) -> int:
    """Bytes of ``"2GiB"``, ``"500 MB"``, ``"1.5gib"`` or a number.

    Raises:
        InvalidArgument: nothing of that kind, or less than 1 MiB.
    """
    found = None
    if isinstance(limit, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", limit.lower())
        if match is not None and match[2] in _UNITS:
            found = int(float(match[1]) * _UNITS[match[2]])
    elif isinstance(limit, (int, np.integer)) and not isinstance(limit, bool):
        found = int(limit)
    if found is None or found < LEAST:
        raise InvalidArgument(
            f'max_memory={limit!r}: give bytes, or a text such as "2GiB" or "500MB"; at least 1 MiB'
        )
    return found


@contextmanager
def limited(max_memory: int | str | None) -> Iterator[None]:
    """Within it, what runs leave behind takes no more memory than that; None: as it comes.

    Raises:
        InvalidArgument: no such limit.
        CannotCompare: no scratch file can be made, or there is no more room for it.
    """
    if max_memory is None:
        yield
        return
    budget = Budget(parse_bytes(max_memory))
    token = _BUDGET.set(budget)
    try:
        yield
    finally:
        _BUDGET.reset(token)
        budget.close()


def is_limited() -> bool:
    """Whether a limit holds here."""
    return _BUDGET.get() is not None


def new_values() -> MutableMapping[Any, np.ndarray]:
    """An empty mapping for the values of a run, within the limit that holds here."""
    budget = _BUDGET.get()
    return {} if budget is None else Values(budget)


def within_limit(most: int, nbytes: int) -> int:
    """How many things of so many bytes may be looked at together: ``most``, or as many as an eighth
    of the limit that holds here takes."""
    budget = _BUDGET.get()
    return most if budget is None else min(most, budget.limit // 8 // nbytes)


def portions(things: Iterable[T], elements: Callable[[T], int], nbytes: int) -> Iterator[list[T]]:
    """As many things as are looked at together.

    Args:
        elements: how many a thing has.
        nbytes: what each element may take.
    """
    most = within_limit(AT_ONCE, nbytes)
    some: list[T] = []
    held = 0
    for thing in things:
        some.append(thing)
        held += elements(thing)
        if held > most:
            yield some
            some, held = [], 0
    if some:
        yield some


def spilled(info: RunInfo) -> RunInfo:
    """``info`` with its gradients in the keeping of the limit that holds here."""
    if not is_limited() or not info.parameter_gradients:
        return info
    return replace(info, parameter_gradients=_kept(info.parameter_gradients))


def _kept(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    kept = new_values()
    for name, array in arrays.items():
        kept[name] = np.ascontiguousarray(array).reshape(array.shape)  # a scalar stays one
    return kept
