"""The tap: an identity at a site, with an observer that may look at a value or replace it.

Everything that crosscheck does to a model goes through this one operation::

    observer(site, kind, value) -> None | replacement

``kind`` is one of

* ``"activation"``: what a layer returned (forward pass),
* ``"input"``: what a layer was given (forward pass),
* ``"cotangent"``: the gradient of the loss with respect to an activation, summed over everything
  that consumed it (backward pass),
* ``"input_cotangent"``: the gradient that one layer sends back through one of its inputs, which is
  that layer's own VJP and nobody else's (backward pass).

Values are NumPy arrays; an adapter converts them from and to its framework. Recording, comparing
and forcing are observers (`crosscheck.observers`); adapters install taps and know nothing of them.

`tap` and `tap_cotangent` are the public half, for code that has no layers. Outside a run they
return their argument.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, cast

import numpy as np

from crosscheck.kernels.on_device import DeviceArray

__all__ = ["Kind", "Observer", "Session", "Wishes", "active_session", "tap", "tap_cotangent"]

Kind = Literal["activation", "input", "cotangent", "input_cotangent"]
Observer = Callable[[str, Kind, np.ndarray], "np.ndarray | None"]
T = TypeVar("T")

_ACTIVE: ContextVar[Session | None] = ContextVar("crosscheck_session", default=None)

FORWARD: tuple[Kind, Kind] = ("activation", "input")
COTANGENT_OF: dict[Kind, Kind] = {"activation": "cotangent", "input": "input_cotangent"}


def tap(name: str, value: T) -> T:
    """Make ``value`` visible as the site ``name`` while a check runs; else return it as it is.

    Works on PyTorch, TensorFlow, JAX and NumPy values. Inside a layer that is a site itself the
    name is relative to it: ``tap("scores", s)`` in ``blocks.0.attn`` is the site
    ``blocks.0.attn.scores``.
    """
    session = _ACTIVE.get()
    return value if session is None else session.tap(name, value)


def tap_cotangent(name: str, value: T) -> T:
    """In a hand-written backward pass: the cotangent of the activation tapped as ``name``."""
    session = _ACTIVE.get()
    return value if session is None else session.tap_cotangent(name, value)


def active_session() -> Session | None:
    """The session of the run in progress in this context, or None."""
    return _ACTIVE.get()


@dataclass(frozen=True)
class Wishes:
    """What an observer tells adapters beside its answers, as attributes that it may have or not.

    Attributes:
        planned: (site, kind) -> what it is going to return there, whatever the value is, found
            without side effects; None: it cannot say.
        keeps: (kind, value) -> whether it holds on to a value; None: to whatever it is shown.
        takes_gradient: (parameter, gradient) -> whether it has dealt with the gradient, so that
            the run need not hand it back; None: it never does.
        borrows: it may be lent tensors of the model; see `Capabilities.lends`.
        changes_only: values that the overrides of a run do not reach need not be shown.
        only: the only values that have to be shown; None: all.
        needless: layer calls that may be left out; see `Capabilities.leaves_out`.
    """

    planned: Callable[[str, Kind], np.ndarray | None] | None = None
    keeps: Callable[[Kind, np.ndarray], bool] | None = None
    takes_gradient: Callable[[str, np.ndarray], bool] | None = None
    borrows: bool = False
    changes_only: bool = False
    only: frozenset[tuple[Kind, str]] | None = None
    needless: frozenset[str] = frozenset()

    @classmethod
    def of(cls, observer: Observer) -> Wishes:
        """Those of an observer, which may be a plain function."""
        names = (field.name for field in fields(cls))
        return cls(**{name: getattr(observer, name) for name in names if hasattr(observer, name)})


class Session:
    """The bookkeeping of one run of one model: site names, order, edges, absent cotangents.

    Adapters subclass it with their framework's way to tap a tensor (`tap_value`).

    Attributes:
        layers: site -> name of the layer's type (``"Linear"``), for the report and alignment.
        sources: site of an input -> site of the activation that it is (the same object, which
            nobody has written to since).
        unobservable: (kind, site) whose cotangent the framework cannot show (values overwritten
            in place behind a view); they are left out of the comparison and listed.
    """

    def __init__(
        self, observer: Observer, *, separator: str, root: str, passive: bool = False
    ) -> None:
        self.observer = observer
        self.passive = passive
        self.separator = separator
        self.root = root
        self.layers: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        self.parents: dict[str, str] = {}
        self.unobservable: set[tuple[Kind, str]] = set()
        self._calls: Counter[str] = Counter()
        self._stack: list[str] = []
        self._producers: dict[int, tuple[weakref.ref[Any], str, Any]] = {}
        self._awaiting: dict[tuple[Kind, str], tuple[tuple[int, ...], np.dtype]] = {}

    # -- one run -----------------------------------------------------------------------------

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this session the one that the public `tap` speaks to."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    def begin(self, path: str, layer: str) -> str:
        """A call of the layer at ``path`` begins; gives the name of its site."""
        site = self.new_site(path, layer)
        self._stack.append(site)
        return site

    def end(self) -> None:
        """The innermost call has returned. After an exception nobody calls this, so that
        `current` still names the site at which the model failed."""
        self._stack.pop()

    def enter(self, site: str) -> None:
        """Work on ``site`` begins again (its hand-written backward)."""
        self._stack.append(site)

    def new_site(self, path: str, layer: str) -> str:
        """Name the next call of ``path``: the path itself, then ``path#2``, ``path#3``, ..."""
        count = self._calls[path] = self._calls.get(path, 0) + 1
        site = path if count == 1 else f"{path}#{count}"
        self.layers[site] = layer
        if self._stack:
            self.parents[site] = self._stack[-1]
        return site

    @property
    def current(self) -> str | None:
        """The innermost site in progress; after an exception, the one at which it was raised."""
        return self._stack[-1] if self._stack else None

    @property
    def in_progress(self) -> tuple[str, ...]:
        """The calls in progress, outermost first."""
        return tuple(self._stack)

    # -- one value ---------------------------------------------------------------------------

    def observe(self, site: str, kind: Kind, value: np.ndarray) -> np.ndarray | None:
        """Show ``value`` to the observer; a replacement has its shape and dtype, or is refused."""
        self._awaiting.pop((kind, site), None)
        replacement = self.observer(site, kind, value)
        if replacement is None:
            return None
        if self.passive:
            raise AssertionError(f"a passive run was asked to replace the {kind} of {site}")
        if replacement.shape != value.shape:
            raise AssertionError(
                f"replacement for {kind} of {site}: shape {replacement.shape}, not {value.shape}"
            )
        if isinstance(replacement, DeviceArray):
            return cast(np.ndarray, replacement.astype(value.dtype, copy=False))
        if replacement.dtype == value.dtype:
            return np.asarray(replacement, order="C")  # a scalar stays one
        with np.errstate(over="ignore"):  # a mask of the lowest float64 is minus infinity below it
            return np.asarray(replacement, dtype=value.dtype, order="C")

    def expect_cotangent(self, site: str, kind: Kind, value: np.ndarray) -> None:
        """A cotangent may arrive here; if none does, `flush` reports a zero."""
        self._awaiting[COTANGENT_OF[kind], site] = (value.shape, value.dtype)

    def forget_cotangent(self, site: str, kind: Kind) -> None:
        """The framework cannot show the cotangent at this place after all."""
        self._awaiting.pop((COTANGENT_OF[kind], site), None)
        self.unobservable.add((COTANGENT_OF[kind], site))

    def let_go(self, keys: Collection[tuple[Kind, str]]) -> None:
        """The observer has dropped what it was shown under ``keys``."""

    def flush(self) -> None:
        """Report every cotangent that never arrived as the zero that it is."""
        for (kind, site), (shape, dtype) in list(self._awaiting.items()):
            self.observe(site, kind, np.zeros(shape, dtype))

    def content(self, value: Any) -> Any:
        """What is another one when somebody has written to ``value``; where nobody can, nothing."""
        return None

    def produced(self, value: Any, site: str) -> None:
        """Remember that the object ``value`` is the activation at ``site``."""
        try:
            known = weakref.ref(value)
        except TypeError:  # a type without weak references is not followed
            return
        self._producers[id(value)] = (known, site, self.content(value))

    def producer(self, value: Any) -> str | None:
        """The site whose activation this very object still is, or None."""
        known = self._producers.get(id(value))
        if known is None or known[0]() is not value or known[2] != self.content(value):
            return None
        return known[1]

    # -- the public taps ---------------------------------------------------------------------

    def tap(self, name: str, value: Any) -> Any:
        site = self.new_site(self._scoped(name), "tap")
        tapped = self.tap_value(site, "activation", value)
        self.produced(tapped, site)
        return tapped

    def tap_cotangent(self, name: str, value: Any) -> Any:
        raise TypeError(
            f"tap_cotangent({name!r}): only a hand-written backward pass (NumPy) needs it; "
            "here the framework carries the cotangent through crosscheck.tap by itself"
        )

    def _scoped(self, name: str) -> str:
        here = (self.current or self.root).partition("#")[0]
        return name if here == self.root else f"{here}{self.separator}{name}"

    def tap_value(self, site: str, kind: Kind, value: Any) -> Any:
        """Tap one tensor of the framework; returns what the model goes on with."""
        raise NotImplementedError
