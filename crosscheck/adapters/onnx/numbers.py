"""Which arrays a file holds the numbers of, in whatever order and under whatever name."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import numpy as np

__all__ = ["held_among"]


def held_among(
    wanted: Mapping[str, np.ndarray], names: Iterable[str], array: Callable[[str], np.ndarray]
) -> frozenset[str]:
    """Those of ``wanted`` whose numbers, rounded to the type of the file, are all those of one of
    its arrays (transposed, gates in another order), or all among those of a larger one (joined).

    Args:
        names: of the file's arrays.
        array: the values of one. Each is sorted once; in memory is one at a time.
    """
    by_size = defaultdict(set)
    for name, value in wanted.items():
        by_size[value.size].add(name)
    found: set[str] = set()
    for name in names:
        smaller = [size for size in by_size if size <= array(name).size and by_size[size]]
        if not smaller:
            continue
        whole = np.sort(array(name), axis=None)
        digest = _digest(whole)
        for size in smaller:
            fits = _same(digest) if size == whole.size else _inside(whole)
            there = {w for w in by_size[size] if fits(wanted[w].astype(whole.dtype, copy=False))}
            found |= there
            by_size[size] -= there
    return frozenset(found)


def _same(digest: bytes) -> Callable[[np.ndarray], bool]:
    return lambda value: _digest(np.sort(value, axis=None)) == digest


def _inside(whole: np.ndarray) -> Callable[[np.ndarray], bool]:
    """``whole`` is sorted."""

    def fits(value: np.ndarray) -> bool:
        flat = value.ravel()
        places = np.searchsorted(whole, flat).clip(max=whole.size - 1)
        return bool((whole[places] == flat).all())

    return fits


def _digest(ordered: np.ndarray) -> bytes:
    return hashlib.blake2b(ordered.tobytes()).digest()
