"""Taps on JAX values: where the value is at hand, and inside code that JAX stages out.

Run eagerly, and under ``jax.vjp`` of eager code too, every value is at hand: it is shown at once,
and a ``jax.custom_vjp`` identity shows its cotangent. Inside ``jit``, ``scan``, ``cond``, ``remat``
and ``vmap`` there is no value yet. There the tap is a ``custom_vjp`` whose two passes call back
with ``io_callback(ordered=True)``: its effect keeps it from being dropped where nobody uses the
result, its order is the program's, and it lives with ``grad``, ``jit``, ``scan`` and ``cond``
(``pure_callback`` may be dropped and reordered; ``debug.callback`` cannot replace a value).
``remat`` refuses such effects, so it is inlined for the run (`crosscheck.adapters.jax.state`), and
under ``vmap`` a ``custom_vmap`` shows the whole batch, the mapped axis first.

A staged tap runs as often as its code does (`Place`): it gets its name when it runs, and carries
the number of the execution to its backward pass. The compiled code outlives the run, and serves the
next ones of the same adapter: it finds the run in progress through `Shared`.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.interpreters.batching import BatchTracer
from jax._src.interpreters.partial_eval import DynamicJaxprTracer

from crosscheck.adapters.jax.callbacks import NUMBER, batchable, like, replaced, transparent
from crosscheck.adapters.jax.values import at_hand, placed, shown
from crosscheck.errors import InvalidArgument
from crosscheck.kernels.on_device import as_host, equal
from crosscheck.taps import COTANGENT_OF, Kind, Observer, Session

__all__ = ["JaxSession", "Place", "Shared", "is_float", "is_tensor"]


def is_tensor(value: Any) -> bool:
    """A JAX array or tracer with a NumPy dtype (no random keys, no trivial tangents)."""
    return (
        isinstance(value, jax.Array)
        and not jnp.issubdtype(value.dtype, jax.dtypes.extended)
        and value.dtype != jax.dtypes.float0
    )


def is_float(value: Any) -> bool:
    """Whether ``value`` is real and may be differentiated."""
    return bool(jnp.issubdtype(value.dtype, jnp.floating))


def has_cotangent(value: Any) -> bool:
    """Whether a cotangent can arrive at ``value``: complex numbers have some, too."""
    return bool(jnp.issubdtype(value.dtype, jnp.inexact))


def conjugate(cotangent: Any) -> Any:
    """Between JAX's complex cotangents and those of PyTorch and TensorFlow, which point in the
    direction of steepest ascent. Real ones are the same."""
    is_complex = jnp.issubdtype(cotangent.dtype, jnp.complexfloating)
    return jnp.conj(cotangent) if is_complex else cotangent


def _kept_compiled(value: Any) -> bool:
    """Whether code on ``value`` is traced for something that JAX keeps (jit, scan, remat).

    ``vmap`` and differentiation of eager code are not: their tracers hold arrays at the bottom.
    """
    while isinstance(value, jax.core.Tracer):
        if isinstance(value, DynamicJaxprTracer):
            return True
        value = value.val if isinstance(value, BatchTracer) else getattr(value, "primal", None)
    return value is None


@dataclass(eq=False)
class Place:
    """A layer call or a tap as it stands in the program.

    Attributes:
        staged: the values are not at hand when the call is traced.
        sites: name of its first, second, ... execution; eager code has exactly one.
        shown: how many executions each of its values has had.
        run: whose names and numbers these are.
    """

    path: str
    layer: str
    parent: Place | None = None
    staged: bool = False
    sites: list[str] = field(default_factory=list)
    shown: Counter[tuple[Kind, str]] = field(default_factory=Counter)
    run: weakref.ref[JaxSession] | None = None

    def begin(self, session: JaxSession) -> None:
        """Compiled code begins anew with every run."""
        if self.run is None or self.run() is not session:
            self.run = weakref.ref(session)
            self.sites.clear()
            self.shown.clear()


@dataclass(eq=False)
class Shared:
    """What the runs of one adapter share with the code that they leave compiled.

    Attributes:
        session: the run in progress.
        staged: something was tapped, or inlined, inside code that JAX may keep compiled.
    """

    session: JaxSession | None = None
    staged: bool = False


class JaxSession(Session):
    """One run.

    Attributes:
        shared: by the runs of its adapter.
        backward: cotangents are wanted.
        staged_last: path of the latest tap that was staged out.
    """

    def __init__(
        self,
        observer: Observer,
        shared: Shared,
        *,
        separator: str,
        root: str,
        passive: bool = False,
        backward: bool = False,
    ) -> None:
        super().__init__(observer, separator=separator, root=root, passive=passive)
        self.shared = shared
        self.backward = backward
        self.staged_last: str | None = None
        self._failure: BaseException | None = None
        self._places: list[Place] = []
        self._latest: dict[str, str] = {}  # path -> site of its latest eager call
        self._origins: dict[int, tuple[weakref.ref[Any], Place, str]] = {}

    # -- calls -------------------------------------------------------------------------------

    def open(self, path: str, layer: str, values: list[Any]) -> Place:
        """A call of the layer at ``path`` with the arrays ``values`` begins."""
        place = self._place(path, layer, values)
        if place.staged:
            self._stack.append(path)
        else:
            self.settle()
            self._named(place, self.begin(path, layer))
        self._places.append(place)
        return place

    def close(self, place: Place) -> None:
        """That call has returned. What is still open inside it raised, and the model caught it."""
        while True:
            self.end()
            if self._places.pop() is place:
                return

    def _place(self, path: str, layer: str, values: list[Any]) -> Place:
        parent = self._places[-1] if self._places else None
        staged = parent is not None and parent.staged
        return Place(path, layer, parent, staged or any(at_hand(v) is None for v in values))

    def _named(self, place: Place, site: str) -> None:
        """Eager code has one execution, and its name at once."""
        place.begin(self)
        place.sites.append(site)
        self._latest[place.path] = site

    def fed(self, value: Any, site: str) -> None:
        """Remember that this very object is the model's input at ``site``."""
        place = Place(site, "input")
        self._named(place, site)
        self.made(value, place)

    def made(self, value: Any, place: Place, suffix: str = "") -> None:
        """Remember that this very object is the activation at ``place``."""
        self._origins[id(value)] = (weakref.ref(value), place, suffix)

    def origin(self, value: Any) -> tuple[Place, str] | None:
        """Where this very object is the activation, or None."""
        known = self._origins.get(id(value))
        return known[1:] if known is not None and known[0]() is value else None

    def settle(self) -> None:
        """Wait for the callbacks under way; raise what went wrong in one of them."""
        if self.shared.staged or self.staged_last is not None:
            jax.effects_barrier()  # type: ignore[no-untyped-call]
        if self._failure is not None:
            raise self._failure

    # -- values ------------------------------------------------------------------------------

    def tap(self, name: str, value: Any) -> Any:
        if not is_tensor(value):
            return value
        place = self._place(self._scoped(name), "tap", [value])
        if not place.staged:
            self._named(place, self.new_site(place.path, "tap"))
        tapped = self.tap_at(place, "", "activation", value)
        self.made(tapped, place)
        return tapped

    def tap_at(self, place: Place, suffix: str, kind: Kind, value: Any) -> Any:
        """Tap a value of the call at ``place``; returns what the model goes on with."""
        origin = self.origin(value) if kind == "input" else None
        if place.staged or at_hand(value) is None:
            tapped = self._tap_staged(place, suffix, kind, value, origin)
        else:
            self.settle()
            site = place.sites[0] + suffix
            self._note_source(site, origin)
            tapped = self.tap_value(site, kind, value)
        if origin is not None:
            self.made(tapped, *origin)  # the same value behind a node
        return tapped

    def tap_value(self, site: str, kind: Kind, value: Any) -> Any:
        """Tap a value that is at hand."""
        array = shown(value)
        replacement = self.observe(site, kind, array)
        if replacement is not None and kind == "input" and equal(replacement, array):
            replacement = None
        if not isinstance(value, jax.core.Tracer) or not has_cotangent(value):
            return value if replacement is None else placed(replacement)
        if type(value).__name__ == "JVPTracer":  # forward mode, which a custom_vjp refuses
            if self._shows_cotangent(kind):
                self.forget_cotangent(site, kind)
            return value if replacement is None else replaced(value, replacement)
        if self._shows_cotangent(kind):
            self.expect_cotangent(site, kind, array)
        elif replacement is None:
            return value
        return self._node(site, kind, value, replacement)

    def _shows_cotangent(self, kind: Kind) -> bool:
        return self.backward and not (self.passive and kind == "input")

    def _note_source(self, site: str, origin: tuple[Place, str] | None) -> None:
        source = None if origin is None else self._present(origin[0])
        if origin is not None and source is not None:
            self.sources[site] = source + origin[1]

    def _present(self, place: Place) -> str | None:
        """Its latest execution in this run. Code compiled in an earlier run knows the places of
        that run: of eager ones, only the path still holds."""
        if place.staged:
            place.begin(self)
        elif place.run is None or place.run() is not self:
            return self._latest.get(place.path)
        return place.sites[-1] if place.sites else None

    def _node(self, site: str, kind: Kind, value: Any, replacement: np.ndarray | None) -> Any:
        """Forward: the replacement, or the identity. Backward: shows, and may replace."""

        def forward(x: Any) -> tuple[Any, None]:
            return (x if replacement is None else placed(replacement)), None

        def backward(_: None, cotangent: Any) -> tuple[Any]:
            if not self._shows_cotangent(kind):
                return (cotangent,)
            if at_hand(cotangent) is None:
                show = self._cotangent_callback(lambda _: site, kind)
                return (conjugate(show(jnp.int32(0), conjugate(cotangent))),)
            answer = self.observe(site, COTANGENT_OF[kind], shown(conjugate(cotangent)))
            return (cotangent if answer is None else conjugate(placed(answer)),)

        node = jax.custom_vjp(lambda x: forward(x)[0])
        node.defvjp(forward, backward)
        return node(value)

    # -- staged code -------------------------------------------------------------------------

    def _tap_staged(
        self,
        place: Place,
        suffix: str,
        kind: Kind,
        value: Any,
        origin: tuple[Place, str] | None,
    ) -> Any:
        self.shared.staged |= _kept_compiled(value)
        self.staged_last = place.path + suffix
        show = self._activation_callback(place, suffix, kind, origin)
        if not has_cotangent(value):
            return show(jax.lax.stop_gradient(value))[0]
        show_cotangent = self._cotangent_callback(lambda n: place.sites[n] + suffix, kind)
        shows = self._shows_cotangent(kind)

        def backward(number: Any, cotangent: Any) -> tuple[Any]:
            if not shows:
                return (cotangent,)
            return (conjugate(show_cotangent(number, conjugate(cotangent))),)

        node = jax.custom_vjp(lambda x: show(x)[0])
        node.defvjp(show, backward)
        return node(value)

    def _activation_callback(
        self, place: Place, suffix: str, kind: Kind, origin: tuple[Place, str] | None
    ) -> Any:
        """``x -> (x or its replacement, number of the execution)``."""
        shared, passive, expects = self.shared, self.passive, self._shows_cotangent(kind)

        def arrived(x: Any) -> Any:
            session, host = shared.session, np.asarray(x)
            if session is not None:
                place.begin(session)
            number = np.int32(place.shown[kind, suffix])
            place.shown[kind, suffix] += 1

            def show(session: JaxSession) -> np.ndarray | None:
                site = session._executed(place, int(number)) + suffix
                session._note_source(site, origin)
                answer = session.observe(site, kind, host)
                if expects and has_cotangent(host):
                    session.expect_cotangent(site, kind, host)
                return answer

            answer = session._guarded(lambda: show(session)) if session is not None else None
            return number if passive else (host if answer is None else as_host(answer), number)

        if passive:  # the value itself takes no part in the callback
            look = batchable(arrived, lambda x: NUMBER, False)
            return lambda x: (x, look(jax.lax.stop_gradient(x)))
        call = batchable(arrived, lambda x: (like(x), NUMBER), (True, False))
        return transparent(call, lambda sent: (sent[0],))

    def _cotangent_callback(self, site_of: Callable[[int], str], kind: Kind) -> Any:
        """``(number of the execution, cotangent) -> the cotangent or its replacement``."""
        shared, passive = self.shared, self.passive

        def arrived(number: Any, x: Any) -> Any:
            session, host = shared.session, np.asarray(x)
            site = site_of(int(number))

            def show(session: JaxSession) -> np.ndarray | None:
                session._check_shape(site, kind, host)
                return session.observe(site, COTANGENT_OF[kind], host)

            answer = session._guarded(lambda: show(session)) if session is not None else None
            if passive:
                return number
            return host if answer is None else as_host(answer)

        if passive:
            look = batchable(arrived, lambda n, x: NUMBER, False)
            return lambda n, x: (look(n, jax.lax.stop_gradient(x)), x)[1]
        call = batchable(arrived, lambda n, x: like(x), True)
        return transparent(call, lambda sent: (None, sent))

    def _executed(self, place: Place, number: int) -> str:
        """The site of the execution ``number`` of ``place``; named when it first shows a value."""
        while len(place.sites) <= number:
            site = self.new_site(place.path, place.layer)
            if place.parent is not None:
                self.parents[site] = self._present(place.parent) or self._executed(place.parent, 0)
            place.sites.append(site)
        return place.sites[number]

    def _check_shape(self, site: str, kind: Kind, cotangent: np.ndarray) -> None:
        """Under ``vmap``, what does not depend on the batch has a cotangent for each element."""
        shape, _ = self._awaiting.get((COTANGENT_OF[kind], site), (cotangent.shape, None))
        if shape != cotangent.shape:
            raise InvalidArgument(
                f"the tap at `{site}` lies inside jax.vmap, on a value of shape {shape} that is "
                f"the same for the whole batch; its cotangent has shape {cotangent.shape}, one "
                "for each element.\n  Fix: move the tap out of the vmap, or onto a value that "
                "depends on the mapped input"
            )

    def _guarded(self, action: Callable[[], np.ndarray | None]) -> np.ndarray | None:
        """On the thread of a callback: keep what is raised for `settle`, and show no more.

        Raised there, it would come back as text inside an error of the XLA runtime.
        """
        if self._failure is not None:
            return None
        try:
            return action()
        except Exception as error:  # the observer is foreign code; `settle` raises it
            self._failure = error
            return None
