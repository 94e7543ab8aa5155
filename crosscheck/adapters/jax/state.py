"""What a run changes in JAX, and puts back: precision, 64 bits, remat, and which caches it uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import dtypes
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.extend.core.primitives import convert_element_type_p, remat_p

from crosscheck.adapters.jax.taps import JaxSession
from crosscheck.errors import DeviceUnavailable, InvalidArgument
from crosscheck.taps import active_session

__all__ = ["bare_caches", "computing", "device_of", "explaining", "inlining_remat", "own_caches"]

# Part of the key of all of JAX's caches. A function that the user has called before the run is
# cached without taps, one that was traced in a run with those of that run. All adapters share
# their caches until a run has left taps in them; from then on its adapter has its own, one for each
# kind of tap, and the others begin afresh.
_KEY: Any = jax.make_user_context(None)  # type: ignore[no-untyped-call]
_generation = 0
_wide: ContextVar[bool] = ContextVar("crosscheck_jax_wide", default=False)
_REINTERPRETING = {"bitcast_convert_type", "view"}  # a wider dtype would be other numbers there


def device_of(kind: str) -> Any:
    """JAX's first device of a kind, ``"cpu"`` or ``"cuda"``.

    Raises:
        DeviceUnavailable: JAX sees none; says what to do.
    """
    try:
        return jax.devices(kind)[0]
    except RuntimeError as error:
        raise DeviceUnavailable(
            f"JAX {jax.__version__} sees no {kind} device.\n  Fix: pip install 'jax[cuda12]' where "
            "there is a GPU, and see what JAX_PLATFORMS says; `crosscheck doctor` shows devices"
        ) from error


@contextmanager
def own_caches(session: JaxSession) -> Iterator[None]:
    """The run of ``session``: trace apart from the user's own code and from other taps."""
    global _generation
    shared = session.shared
    own = shared.staged
    outer, shared.session = shared.session, session
    with _KEY((shared, session.passive, session.backward) if own else _generation):
        try:
            yield
        finally:
            shared.session = outer
            _generation += shared.staged and not own


def bare_caches(session: JaxSession) -> AbstractContextManager[Any]:
    """Inside a run: trace apart from the taps that it has left."""
    shared = session.shared
    return _KEY((shared, "bare")) if shared.staged else nullcontext()


@contextmanager
def computing(*, float64: bool, device: str = "cpu") -> Iterator[None]:
    """On one device, in full float32, or with 64 bits and without casts to less."""
    with ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision("highest"))
        stack.enter_context(jax.default_device(device_of(device)))
        if float64:
            stack.enter_context(jax.enable_x64(True))
            stack.enter_context(_without_narrowing())
            stack.enter_context(_asking_for_float64())
        yield


@contextmanager
def inlining_remat(session: JaxSession) -> Iterator[None]:
    """Evaluate ``jax.checkpoint`` in place.

    It may not contain effects, and would show every value twice. Its result is the same.
    """

    def bind(bound: Callable[..., Any], *args: Any, jaxpr: Any, **params: Any) -> Any:
        if active_session() is not session:
            return bound(*args, jaxpr=jaxpr, **params)
        session.shared.staged = True  # what surrounds it may be cached without remat
        return jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))(*args)

    with _bound(remat_p, bind):
        yield


@contextmanager
def explaining(session: JaxSession) -> Iterator[None]:
    """Say what is wrong where a tap stands in code that takes no callbacks: JAX does not."""
    try:
        yield
    except (KeyError, NotImplementedError, TypeError, ValueError) as error:
        text = str(error)
        if session.staged_last is None or not ("custom_" in text or "rdered" in text):
            raise
        where = f"the tap at `{session.staged_last}`, or one before it, lies inside "
        if "custom_" in text:
            raise InvalidArgument(
                f"{where}compiled code (jit, scan, remat) that the model differentiates in forward "
                "mode (jax.jvp, jax.jacfwd, jax.hessian), which taps refuse there.\n"
                "  Fix: jax.jacrev instead of jax.jacfwd, or no jit inside the model"
            ) from error
        raise InvalidArgument(
            f"{where}code that values cannot leave: a Pallas kernel, or one that runs on several "
            "devices.\n  Fix: tap what goes into it and what comes out"
        ) from error


@contextmanager
def _without_narrowing() -> Iterator[None]:
    """Casts from float64 to less do nothing (the oracle's run).

    But for numbers of Python's: those are cast to the dtype of what stands next to them.
    """

    def bind(bound: Callable[..., Any], operand: Any, **params: Any) -> Any:
        if (
            _wide.get()
            and getattr(operand, "dtype", None) == jnp.float64
            and not dtypes.is_weakly_typed(operand)
            and jnp.issubdtype(params["new_dtype"], jnp.floating)
        ):
            return operand
        return bound(operand, **params)

    token = _wide.set(True)
    try:
        with _bound(convert_element_type_p, bind):
            yield
    finally:
        _wide.reset(token)


@contextmanager
def _asking_for_float64() -> Iterator[None]:
    """A floating ``dtype=`` that a model asks for is float64 (positions, the carry of a scan)."""
    original = dtypes.check_and_canonicalize_user_dtype

    def canonical(dtype: Any, fun_name: str | None = None) -> Any:
        asked = original(dtype, fun_name)
        widens = _wide.get() and fun_name not in _REINTERPRETING
        return jnp.dtype("float64") if widens and jnp.issubdtype(asked, jnp.floating) else asked

    dtypes.check_and_canonicalize_user_dtype = canonical
    try:
        yield
    finally:
        dtypes.check_and_canonicalize_user_dtype = original


@contextmanager
def _bound(primitive: Any, bind: Callable[..., Any]) -> Iterator[None]:
    """``bind(original, *args, **params)`` in place of the primitive's own."""
    before = vars(primitive).get("bind")
    original = primitive.bind
    primitive.bind = lambda *args, **params: bind(original, *args, **params)
    try:
        yield
    finally:
        if before is None:
            del primitive.bind
        else:
            primitive.bind = before
