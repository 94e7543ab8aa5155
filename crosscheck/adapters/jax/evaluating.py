"""A JAX model as two compiled functions: forward, and back from there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crosscheck.adapters.base import CotangentSource, call_arguments
from crosscheck.adapters.jax.adapter import JaxAdapter
from crosscheck.adapters.jax.state import computing, own_caches
from crosscheck.adapters.jax.taps import JaxSession, Shared, is_float, is_tensor
from crosscheck.auditing.evaluating import Arrays, Gradients
from crosscheck.structure import leaves

__all__ = ["JaxEvaluator"]


class JaxEvaluator:
    """``jit`` of the forward pass, which keeps what the backward pass needs, and of that one."""

    def __init__(
        self, adapter: JaxAdapter, inputs: Arrays, sites: Sequence[str], *, float64: bool, seed: int
    ) -> None:
        self._program, self._device = adapter.program, adapter.device
        self._sites, self._names = list(sites), list(inputs)
        self._float64, self._seed = float64, seed
        self._trainable = {s.name for s in adapter.program.slots() if s.trainable}
        # A cache apart from the user's own: there, casts to less than float64 are casts.
        self._session = JaxSession(
            lambda site, kind, value: None, Shared(), separator=".", root="output"
        )
        self._ahead = jax.jit(self._linearised)
        self._back = jax.jit(lambda pullback, cotangents: pullback(cotangents))
        with self._computing():
            self._own = {n: self._cast(v) for n, v in adapter.program.values().items()}

    def outputs(self, values: Arrays, inputs: Arrays) -> Arrays:
        with self._computing():
            return self._forward(values, inputs)[0]

    def gradients(self, values: Arrays, inputs: Arrays, cotangents: CotangentSource) -> Gradients:
        with self._computing():
            outputs, smooth, pullback = self._forward(values, inputs)
            wanted = cotangents(dict(outputs))
            sites = [site for site in self._sites if is_float(outputs[site])]
            sent = tuple(
                jnp.asarray(wanted[s], v.dtype) if s in wanted else jnp.zeros_like(v)
                for s, v in zip(sites, smooth, strict=True)
            )
            weights, floats = self._back(pullback, sent)
            return Gradients(outputs, _to_host(weights), _to_host(floats))

    def _forward(self, values: Arrays, inputs: Arrays) -> tuple[Arrays, Any, Any]:
        own = {**self._own, **{n: self._cast(v, self._own[n].dtype) for n, v in values.items()}}
        fed = {n: self._cast(jnp.asarray(np.asarray(inputs[n]))) for n in self._names}
        weights = {n: v for n, v in own.items() if n in self._trainable}
        rest = {n: v for n, v in own.items() if n not in self._trainable}
        floats = {n: v for n, v in fed.items() if is_float(v)}
        others = {n: v for n, v in fed.items() if not is_float(v)}
        smooth, pullback, whole = self._ahead(weights, floats, rest, others)
        made = iter(smooth)
        found = [next(made) if value is None else value for value in whole]
        outputs = {s: np.asarray(v) for s, v in zip(self._sites, found, strict=True)}
        return outputs, smooth, pullback

    def _linearised(self, weights: Any, floats: Any, rest: Any, others: Any) -> Any:
        """(float outputs, their pullback, all outputs in order: None stands for a float one)."""

        def function(weights: Any, floats: Any) -> Any:
            fed = {**floats, **others}
            tensors = {name: fed[name] for name in self._names}
            args, kwargs = call_arguments(self._program.function, tensors)
            values = {**weights, **rest}
            output, _ = self._program.call(values, args, kwargs, train=False, seed=self._seed)
            found = [value for _, value in leaves(output, is_tensor)]
            smooth = tuple(value for value in found if is_float(value))
            return smooth, [None if is_float(value) else value for value in found]

        return jax.vjp(function, weights, floats, has_aux=True)

    def _cast(self, value: Any, dtype: Any = None) -> Any:
        wide = jnp.float64 if self._float64 and is_float(jnp.asarray(value)) else None
        return jnp.asarray(value, wide or dtype)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        computed = computing(float64=self._float64, device=self._device)
        with computed, own_caches(self._session):
            yield


def _to_host(gradients: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in gradients.items()}
