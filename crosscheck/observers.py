"""The observers: record a run, compare while running, force a run onto given values.

An observer is a function of ``(site, kind, value)`` (see `crosscheck.taps`). These know arrays and
site names, and no framework.

``planned(site, kind)`` says, without side effects, what an observer is going to return there
whatever the value is. Adapters that cannot stop between two layers (ONNX) ask it before they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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

    def planned(self, site: str, kind: Kind) -> np.ndarray | None:
        """It replaces nothing."""
        return None


class Comparer:
    """Hands every value of interest to ``compare(key, value)`` and keeps only what that returns."""

    def __init__(self, compare: Callable[[Key, np.ndarray], object], wanted: set[Key]) -> None:
        self._compare = compare
        self._wanted = wanted
        self.results: dict[Key, object] = {}

    def __call__(self, site: str, kind: Kind, value: np.ndarray) -> None:
        if (kind, site) in self._wanted:
            self.results[kind, site] = self._compare((kind, site), value)

    def planned(self, site: str, kind: Kind) -> np.ndarray | None:
        """It replaces nothing."""
        return None


class Forcer:
    """Replaces the value at every key that it holds; all other values go through.

    ``values`` may compute on demand: only ``get`` is called.
    """

    def __init__(self, values: Mapping[Key, np.ndarray]) -> None:
        self._values = values

    def __call__(self, site: str, kind: Kind, value: np.ndarray) -> np.ndarray | None:
        return self._values.get((kind, site))

    def planned(self, site: str, kind: Kind) -> np.ndarray | None:
        """The same, without a value."""
        return self._values.get((kind, site))


def chain(*observers: Observer) -> Observer:
    """All observers see the value that was produced; the first replacement wins."""
    plans = [getattr(observer, "planned", None) for observer in observers]
    if None in plans:
        return _Chain(observers)
    return _PlannedChain(observers)


class _Chain:
    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def __call__(self, site: str, kind: Kind, value: np.ndarray) -> np.ndarray | None:
        replacement = None
        for observer in self._observers:
            answer = observer(site, kind, value)
            if replacement is None:
                replacement = answer
        return replacement


class _PlannedChain(_Chain):
    """All of its observers know beforehand what they replace."""

    def planned(self, site: str, kind: Kind) -> np.ndarray | None:
        answers = (observer.planned(site, kind) for observer in self._observers)  # type: ignore[attr-defined]
        return next((answer for answer in answers if answer is not None), None)
