"""The observers: record a run, compare while running, force a run onto given values.

An observer is a function of ``(site, kind, value)`` (see `crosscheck.taps`). These know arrays and
site names, and no framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from crosscheck.taps import Kind, Observer

__all__ = ["Comparer", "Forcer", "Key", "Recorder", "chain"]

Key = tuple[Kind, str]


class Recorder:
    """Keeps a private, contiguous copy of every value, in the order of arrival."""

    def __init__(self) -> None:
        self.values: dict[Key, np.ndarray] = {}

    def __call__(self, site: str, kind: Kind, value: np.ndarray) -> None:
        # Models overwrite their tensors (in-place ops, reused buffers): a view would change later.
        self.values[kind, site] = np.array(value, order="C", copy=True)


class Comparer:
    """Hands every value of interest to ``compare(key, value)`` and keeps only what that returns."""

    def __init__(self, compare: Callable[[Key, np.ndarray], object], wanted: set[Key]) -> None:
        self._compare = compare
        self._wanted = wanted
        self.results: dict[Key, object] = {}

    def __call__(self, site: str, kind: Kind, value: np.ndarray) -> None:
        if (kind, site) in self._wanted:
            self.results[kind, site] = self._compare((kind, site), value)


class Forcer:
    """Replaces the value at every key that it holds; all other values go through.

    ``values`` may compute on demand: only ``get`` is called.
    """

    def __init__(self, values: Mapping[Key, np.ndarray]) -> None:
        self._values = values

    def __call__(self, site: str, kind: Kind, value: np.ndarray) -> np.ndarray | None:
        return self._values.get((kind, site))


def chain(*observers: Observer) -> Observer:
    """All observers see the value that was produced; the first replacement wins."""

    def observe(site: str, kind: Kind, value: np.ndarray) -> np.ndarray | None:
        replacement = None
        for observer in observers:
            answer = observer(site, kind, value)
            if replacement is None:
                replacement = answer
        return replacement

    return observe
