"""The observers: record a run, compare while running, force a run onto given values.

An observer is a function of ``(site, kind, value)`` (see `crosscheck.taps`). These know arrays and
site names, and no framework.

What they tell adapters beside is in `crosscheck.taps.Wishes`: adapters that cannot stop between two
layers (ONNX) ask what is ``planned`` before they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TypeVar

import numpy as np

from crosscheck.kernels.on_device import as_host, held
from crosscheck.memory import new_values
from crosscheck.taps import Kind, Observer, Wishes

__all__ = ["Comparer", "Forcer", "Key", "Recorder", "chain", "keep"]

K = TypeVar("K")
Key = tuple[Kind, str]
_ONLY_INSIDE = ("input", "cotangent")
"""Kinds of the values that a layer is given, forward and backward."""


def keep(
    values: MutableMapping[K, np.ndarray], key: K, value: np.ndarray, *, borrowed: bool = False
) -> None:
    """Put a value where it can stay: a copy, unless it is ``borrowed``; contiguous."""
    if not isinstance(values, dict):
        value = as_host(value)  # it may be written to disk
    values[key] = held(value, borrowed=borrowed)


class Recorder:
    """Keeps every value, contiguous, in the order of arrival.

    Args:
        kinds: of the values to keep; None: all.
        keys: of the values to keep; None: all. An adapter that can (`Adapter.taken_by`) may compute
            only what these take.
        borrows: keep them as they are shown, if the adapter lends them (`Capabilities.lends`). Else
            each is copied: models overwrite their tensors (operations in place, reused buffers),
            and a view would change later.
    """

    def __init__(
        self,
        kinds: frozenset[Kind] | None = None,
        *,
        keys: frozenset[Key] | None = None,
        borrows: bool = False,
    ) -> None:
        self.values: MutableMapping[Key, np.ndarray] = new_values()
        self.borrows = borrows and isinstance(self.values, dict)
        self._kinds, self._keys, self.only = kinds, keys, keys

    def restart(self) -> None:
        """Forget everything: the run is made again."""
        self.values = new_values()

    def __call__(self, site: str, kind: Kind, value: np.ndarray) -> None:
        if self._kinds is not None and kind not in self._kinds:
            return
        if self._keys is not None and (kind, site) not in self._keys:
            return
        keep(self.values, (kind, site), value, borrowed=self.borrows)

    def planned(self, site: str, kind: Kind) -> np.ndarray | None:
        """It replaces nothing."""
        return None


class Comparer:
    """Hands every value of interest to ``compare(key, value)`` and keeps only what that returns.

    Args:
        changes_only: an adapter that knows what the overrides of a run reach may show that alone.
        alone: an adapter that can (`Adapter.taken_by`) may compute only what ``wanted`` takes.
    """

    def __init__(
        self,
        compare: Callable[[Key, np.ndarray], object],
        wanted: set[Key],
        *,
        changes_only: bool = False,
        alone: bool = False,
    ) -> None:
        self._compare = compare
        self._wanted = wanted
        self.only = frozenset(wanted) if alone else None
        self.changes_only = changes_only
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

    Args:
        needless: layer calls that an adapter may leave out (`Capabilities.leaves_out`): what goes
            out of them is replaced, and nobody looks inside.
    """

    changes_only = True  # whatever the value is

    def __init__(
        self, values: Mapping[Key, np.ndarray], *, needless: frozenset[str] = frozenset()
    ) -> None:
        self._values = values
        self.needless = needless

    def __call__(self, site: str, kind: Kind, value: np.ndarray) -> np.ndarray | None:
        if kind in _ONLY_INSIDE and site.partition(":")[0] in self.needless:
            return None  # nobody computes with it
        return self._values.get((kind, site))

    def planned(self, site: str, kind: Kind) -> np.ndarray | None:
        """The same, without a value."""
        return self._values.get((kind, site))


def chain(*observers: Observer) -> Observer:
    """All observers see the value that was produced; the first replacement wins."""
    if len(observers) == 1:
        return observers[0]
    wishes = [Wishes.of(observer) for observer in observers]
    plans = [one.planned for one in wishes if one.planned is not None]
    if len(plans) < len(observers):
        return _Chain(observers, wishes)
    return _PlannedChain(observers, wishes, plans)


class _Chain:
    def __init__(self, observers: Sequence[Observer], wishes: Sequence[Wishes]) -> None:
        self._observers = observers
        self.borrows = any(one.borrows for one in wishes)
        self.changes_only = all(one.changes_only for one in wishes)
        self.only = next((one.only for one in wishes if one.only), None)
        takes = (one.takes_gradient for one in wishes if one.takes_gradient is not None)
        self.takes_gradient = next(takes, None)
        self.needless = frozenset[str]().union(*(one.needless for one in wishes))

    def __call__(self, site: str, kind: Kind, value: np.ndarray) -> np.ndarray | None:
        replacement = None
        for observer in self._observers:
            answer = observer(site, kind, value)
            if replacement is None:
                replacement = answer
        return replacement


class _PlannedChain(_Chain):
    """All of its observers know beforehand what they replace."""

    def __init__(
        self,
        observers: Sequence[Observer],
        wishes: Sequence[Wishes],
        plans: Sequence[Callable[[str, Kind], np.ndarray | None]],
    ) -> None:
        super().__init__(observers, wishes)
        self._plans = plans

    def planned(self, site: str, kind: Kind) -> np.ndarray | None:
        answers = (planned(site, kind) for planned in self._plans)
        return next((answer for answer in answers if answer is not None), None)
