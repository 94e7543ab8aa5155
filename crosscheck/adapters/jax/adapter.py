"""JAX: Flax NNX and Linen modules, Equinox modules, and plain functions of (params, *inputs).

Whatever the model is, a run is ``jax.vjp`` of a pure function of its parameters and inputs, with
taps at the calls of its layers (`crosscheck.adapters.jax.taps`). The model's inputs and outputs are
shown outside of that function, so they take no node.

A passive run is two: the one that is shown, with an identity at every activation, and a bare one
whose outputs, gradients and buffers are reported. An identity can change the order in which
cotangents are summed, and inside ``jit`` what XLA fuses; the bare run has none. A forward pass that
runs eagerly takes no nodes at all, and is not repeated.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crosscheck.adapters.base import (
    Adapter,
    Capabilities,
    CotangentSource,
    Parameter,
    call_arguments,
    guarded,
    input_site,
)
from crosscheck.adapters.jax.program import FunctionProgram, Program, TreeProgram
from crosscheck.adapters.jax.state import (
    bare_caches,
    computing,
    device_of,
    explaining,
    inlining_remat,
    own_caches,
)
from crosscheck.adapters.jax.taps import JaxSession, Shared, is_float, is_tensor
from crosscheck.adapters.jax.values import placed, shown
from crosscheck.errors import DeviceUnavailable, InvalidArgument
from crosscheck.structure import leaves
from crosscheck.taps import Observer
from crosscheck.trace import RunInfo

__all__ = ["JaxAdapter", "find"]

Arrays = dict[str, Any]


@dataclass
class _Forward:
    """What one evaluation of the model has given.

    Attributes:
        outputs: (suffix, array) in order.
        pullback: cotangents of the float outputs, in order -> gradients by parameter, by input.
    """

    outputs: list[tuple[str, Any]]
    buffers: Arrays
    pullback: Callable[[tuple[Any, ...]], tuple[Arrays, Arrays]] | None


class JaxAdapter(Adapter):
    """A JAX model, on the CPU or on a CUDA device."""

    framework = "jax"

    def __init__(self, program: Program) -> None:
        self.program = program
        self.version = jax.__version__ + (f" ({program.library})" if program.library else "")
        self.capabilities = Capabilities(cuda=True)
        self._shared = Shared()
        self._root = "model_output" if "output" in program.top_level() else "output"

    def use(self, device: str) -> None:
        device_of(device)
        self.device = device

    @property
    def environment(self) -> dict[str, Any]:
        if self.device == "cpu":
            return {}
        flags = os.environ.get("XLA_FLAGS", "not set")
        kind = device_of(self.device).device_kind
        return {"device": kind, "matmul_precision": "highest", "XLA_FLAGS": flags}

    @property
    def params(self) -> Any:
        """The pytree in use: params, Linen variables, or the Equinox module. `load` replaces it
        here and leaves the one that was given alone; an NNX module is written to in place."""
        program = self.program
        return program.tree if isinstance(program, TreeProgram) else program.values()

    def parameters(self) -> tuple[Parameter, ...]:
        return self.program.parameters()

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        self.program.load(values)

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        observer: Observer,
        *,
        cotangents: CotangentSource | None = None,
        float64: bool = False,
        overrides: Mapping[str, np.ndarray] | None = None,
        train: bool = False,
        seed: int = 0,
        passive: bool = False,
    ) -> RunInfo:
        session = JaxSession(
            observer,
            self._shared,
            separator=self.separator,
            root=self._root,
            passive=passive,
            backward=cotangents is not None,
        )
        with computing(float64=float64, device=self.device), own_caches(session):
            run = _Run(self.program, self._values(overrides or {}, float64), session, train, seed)
            fed = {n: run.tap_input(n, _feed(a, float64=float64)) for n, a in inputs.items()}
            watched = bare = run.forward(fed)
            if passive and (session.backward or self._shared.staged):
                bare = run.forward_bare(fed)
            outputs = run.tap_outputs(bare)
            _require_device(outputs, self.device)
            gradients: dict[str, np.ndarray] = {}
            if cotangents is not None:
                wanted = cotangents({site: shown(value) for site, value in outputs.items()})
                gradients = run.backward(watched, bare, wanted, outputs, fed)
            buffers = {name: np.array(value) for name, value in bare.buffers.items()}
        return RunInfo.of(
            session,
            inputs=tuple(input_site(name) for name in inputs),
            outputs=tuple(outputs),
            parameter_gradients=gradients,
            buffers=buffers if train else None,
        )

    def _values(self, overrides: Mapping[str, np.ndarray], float64: bool) -> Arrays:
        """The values to run with, on the device of the run."""
        values, device = {}, device_of(self.device)
        for name, own in self.program.values().items():
            dtype = jnp.float64 if float64 else own.dtype
            value = jnp.array(overrides[name]) if name in overrides else own
            value = value if value.devices() == {device} else jax.device_put(value, device)
            values[name] = value.astype(dtype)
        return values


def _require_device(outputs: Arrays, device: str) -> None:
    """An output that lies elsewhere was computed elsewhere."""
    for site, value in outputs.items():
        elsewhere = [str(d) for d in value.devices() if d != device_of(device)]
        if elsewhere:
            raise DeviceUnavailable(
                f"`{site}` was computed on {elsewhere[0]}, not on {device}.\n"
                "  Fix: leave it to the check where the model runs (no jax.device_put inside)"
            )


@dataclass
class _Run:
    """One run in progress."""

    program: Program
    values: Arrays
    session: JaxSession
    train: bool
    seed: int

    def tap_input(self, name: str, value: Any) -> Any:
        site = input_site(name)
        self.session.layers[site] = "input"
        return self._observed(site, value)

    def tap_outputs(self, forward: _Forward) -> Arrays:
        root = self.session.root
        return {root + s: self._observed(root + s, value) for s, value in forward.outputs}

    def _observed(self, site: str, value: Any) -> Any:
        array = shown(value)
        answer = self.session.observe(site, "activation", array)
        if self.session.backward and is_float(value):
            self.session.expect_cotangent(site, "activation", array)
        return value if answer is None else placed(answer)

    def forward(self, fed: Arrays) -> _Forward:
        """Evaluate with taps."""
        session = self.session
        with ExitStack() as stack:
            stack.enter_context(self.program.tapping(session))
            stack.enter_context(inlining_remat(session))
            stack.enter_context(session.active())
            stack.enter_context(guarded(session, "forward"))
            stack.enter_context(explaining(session))
            result = self._evaluate(fed, tapped=True)
            session.settle()
            return result

    def forward_bare(self, fed: Arrays) -> _Forward:
        """Evaluate as if nobody looked."""
        with bare_caches(self.session), guarded(self.session, "forward"):
            return self._evaluate(fed, tapped=False)

    def _evaluate(self, fed: Arrays, *, tapped: bool) -> _Forward:
        trainable = {slot.name for slot in self.program.slots() if slot.trainable}
        suffixes: list[tuple[str, bool]] = []

        def function(weights: Arrays, floats: Arrays) -> Any:
            tensors = {**fed, **floats}
            output, buffers = self._call({**self.values, **weights}, tensors, tapped=tapped)
            found = leaves(output, is_tensor)
            suffixes[:] = [(suffix, is_float(value)) for suffix, value in found]
            smooth = tuple(value for _, value in found if is_float(value))
            return smooth, ([value for _, value in found if not is_float(value)], buffers)

        weights = {n: v for n, v in self.values.items() if n in trainable}
        floats = {n: v for n, v in fed.items() if is_float(v)}
        pullback = None
        if self.session.backward:
            smooth, pullback, (rest, buffers) = jax.vjp(function, weights, floats, has_aux=True)
        else:
            smooth, (rest, buffers) = function(weights, floats)
        smooth, rest = iter(smooth), iter(rest)
        outputs = [(suffix, next(smooth if has else rest)) for suffix, has in suffixes]
        return _Forward(outputs, buffers, pullback)

    def _call(self, values: Arrays, tensors: Arrays, *, tapped: bool) -> tuple[Any, Arrays]:
        args, kwargs = call_arguments(self.program.function, tensors)
        if not tapped:
            return self.program.call(values, args, kwargs, train=self.train, seed=self.seed)
        session = self.session
        for name, tensor in tensors.items():
            session.fed(tensor, input_site(name))
        place = session.open(session.root, self.program.layer, [])
        result = self.program.call(values, args, kwargs, train=self.train, seed=self.seed)
        session.close(place)
        return result

    def backward(
        self,
        watched: _Forward,
        bare: _Forward,
        wanted: Mapping[str, np.ndarray],
        outputs: Arrays,
        fed: Arrays,
    ) -> dict[str, np.ndarray]:
        """Send the cotangents back; gives the gradients by parameter."""
        session = self.session
        arrived = {}
        for site, value in outputs.items():
            if site in wanted and is_float(value):
                given = placed(np.asarray(wanted[site], value.dtype))
                answer = session.observe(site, "cotangent", shown(given))
                arrived[site] = given if answer is None else placed(answer)
        floats = [(s, value) for s, value in outputs.items() if is_float(value)]
        into = tuple(arrived.get(s, jnp.zeros_like(value)) for s, value in floats)
        weights: Arrays = {}
        if arrived:
            with guarded(session, "backward"):
                weights, sent = _pull(watched, into)
                session.settle()
                if bare is not watched:
                    with bare_caches(session):
                        weights, _ = _pull(bare, into)
            for name, value in sent.items():
                session.observe(input_site(name), "cotangent", shown(value))
        session.flush()
        trainable = [slot.name for slot in self.program.slots() if slot.trainable]
        return {n: np.array(weights.get(n, np.zeros_like(self.values[n]))) for n in trainable}


def _pull(forward: _Forward, cotangents: tuple[Any, ...]) -> tuple[Arrays, Arrays]:
    assert forward.pullback is not None
    gradients = forward.pullback(cotangents)
    jax.block_until_ready(gradients)  # type: ignore[no-untyped-call]
    return gradients


def _feed(array: np.ndarray, *, float64: bool) -> Any:
    value = jnp.array(np.asarray(array))
    return value.astype(jnp.float64) if float64 and is_float(value) else value


def find(
    model: Any, *, params: Any = None, variables: Any = None, batched: bool = False
) -> JaxAdapter | None:
    """An adapter if ``model`` is a JAX model, else None.

    Args:
        model: a Flax NNX module; a Flax Linen module, with ``variables``; an Equinox module; or a
            function ``function(params, *inputs)``, with ``params``: a pytree that holds JAX arrays
            (a function with NumPy arrays only is left to the NumPy adapter, unless it is jitted).
        params: of a function. `load` does not write into it: see `JaxAdapter.params`.
        variables: of a Linen module: ``{"params": ..., "batch_stats": ...}``.
        batched: call an Equinox module under ``jax.vmap`` over the first axis of every input.

    Raises:
        InvalidArgument: a Linen module without variables, a module with parameters of its own and
            others given.
    """
    program = _program(model, params, variables, batched)
    return None if program is None else JaxAdapter(program)


def _program(model: Any, params: Any, variables: Any, batched: bool) -> Program | None:
    def loaded(name: str) -> Any:
        return getattr(sys.modules.get(name), "Module", None) or type(None)

    if isinstance(model, type) or model is None:
        return None
    if isinstance(model, loaded("flax.nnx")):
        from crosscheck.adapters.jax.nnx import NnxProgram

        _refuse(model, "NNX", params=params, variables=variables)
        return NnxProgram(model)
    if isinstance(model, loaded("flax.linen")):
        from crosscheck.adapters.jax.linen import LinenProgram

        if variables is None:
            raise InvalidArgument(
                f"adapt: the Flax Linen module {type(model).__name__} holds no parameters.\n"
                "  Fix: adapt(module, variables=module.init(key, x))"
            )
        return LinenProgram(model, variables)
    if isinstance(model, loaded("equinox")):
        from crosscheck.adapters.jax.equinox import EquinoxProgram

        _refuse(model, "Equinox", params=params, variables=variables)
        return EquinoxProgram(model, batched=batched)
    given = params if variables is None else variables
    if not callable(model) or given is None:
        return None
    ours = variables is not None or hasattr(model, "lower")  # jitted
    arrays = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(given))
    return FunctionProgram(model, given) if ours or arrays else None


def _refuse(model: Any, kind: str, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise InvalidArgument(
                f"adapt: the {kind} module {type(model).__name__} has its parameters inside; "
                f"leave out {name}="
            )
