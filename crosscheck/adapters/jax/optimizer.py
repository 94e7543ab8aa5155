"""optax on copies of a JAX model's parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from crosscheck.adapters.jax.program import TreeProgram
from crosscheck.adapters.jax.state import computing
from crosscheck.errors import InvalidArgument
from crosscheck.optimizers.rules import Adagrad, Adam, RmsProp, Rule, Sgd

__all__ = ["OptaxStepper", "Tree", "given", "is_native", "named"]

Arrays = Mapping[str, np.ndarray]


def is_native(given: Any) -> bool:
    """Whether ``given`` is a gradient transformation of optax (or has one: Flax' Optimizer)."""
    return isinstance(given, (optax.GradientTransformation, optax.MultiSteps)) or isinstance(
        getattr(given, "tx", None), optax.GradientTransformation
    )


class OptaxStepper:
    """Steps of a gradient transformation.

    Args:
        make: number of the step -> the transformation (rates may change; its state stays).
        tree: how the parameters are nested, for masks and labels; None: by name.
        wide: in float64.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        make: Callable[[int], Any],
        *,
        tree: Tree | None,
        device: str,
        wide: bool,
    ) -> None:
        self._make, self._tree, self._device, self._wide = make, tree, device, wide
        self._state: Any = None
        self._t = 0

    def step(self, values: Arrays, gradients: Sequence[Arrays]) -> dict[str, np.ndarray]:
        """See `crosscheck.optimizers.definition.Definition.step`."""
        self._t += 1
        with computing(float64=self._wide, device=self._device):
            own = self._make(self._t)
            params = self._nested(values)
            if self._state is None:
                self._state = own.init(params)
            for micro in gradients:
                like = {n: g.astype(self._dtype(values[n])) for n, g in micro.items()}
                updates, self._state = own.update(self._nested(like), self._state, params)
                params = optax.apply_updates(params, updates)
            return self._flat(params, values)

    def _dtype(self, value: np.ndarray) -> Any:
        return np.float64 if self._wide else value.dtype

    def _nested(self, values: Arrays) -> Any:
        arrays = {n: jnp.array(v, dtype=self._dtype(v)) for n, v in values.items()}
        return arrays if self._tree is None else self._tree.nested(arrays)

    def _flat(self, params: Any, values: Arrays) -> dict[str, np.ndarray]:
        found = params if self._tree is None else self._tree.flat(params)
        return {name: np.array(found[name]) for name in values}


class Tree:
    """The nesting of a model's parameters as its training code sees it."""

    def __init__(self, program: Any) -> None:
        self._program = program

    def nested(self, values: Mapping[str, Any]) -> Any:
        """{name: array} -> the tree."""
        program = self._program
        if not isinstance(program, TreeProgram):
            return _by_path(values)
        tree = program.with_values(values)
        if program.layer != "function" and isinstance(tree, Mapping) and "params" in tree:
            return tree["params"]
        return jax.tree.map(lambda leaf: leaf if _is_float(leaf) else None, tree)

    def flat(self, tree: Any) -> dict[str, Any]:
        """The tree -> {name: array}."""
        found = jax.tree_util.tree_flatten_with_path(tree)[0]
        program = self._program
        if not isinstance(program, TreeProgram):
            return {".".join(str(key.key) for key in path): leaf for path, leaf in found}
        names = program._names
        first = [path for path in names if names[path]]
        inner = {path[1:]: names[path] for path in first if getattr(path[0], "key", "") == "params"}
        return {names.get(path) or inner[path]: leaf for path, leaf in found}


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray)) and jnp.issubdtype(leaf.dtype, jnp.floating)


def _by_path(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *outer, leaf = name.split(".")
        place = nested
        for part in outer:
            place = place.setdefault(part, {})
        place[leaf] = value
    return nested


def given(own: Any) -> Callable[[int], Any]:
    """A transformation of the user's; it has no state of its own."""
    own = getattr(own, "tx", own)
    return lambda step: own


def named(rule: Rule, exempt: Collection[str]) -> Callable[[int], Any]:
    """optax' own parts for a named optimizer.

    Raises:
        InvalidArgument: they compute something else.
    """
    _refuse(rule)

    def decays(params: Any) -> Any:
        return {name: name not in exempt for name in params}

    def make(step: int) -> Any:
        parts: list[Any] = []
        if rule.clip_value is not None:
            parts.append(optax.clip(rule.clip_value))
        if rule.clip_norm is not None:
            parts.append(optax.clip_by_global_norm(rule.clip_norm))
        decay = [optax.add_decayed_weights(rule.weight_decay, decays)] if rule.weight_decay else []
        own = _scaling(rule, step)
        parts += [*own, *decay] if rule.decoupled else [*decay, *own]
        parts.append(optax.scale_by_learning_rate(rule.lr.at(step)))
        chained = optax.chain(*parts)
        return chained if rule.accumulate == 1 else _accumulating(chained, rule.accumulate)

    return make


def _accumulating(own: Any, parts: int) -> Any:
    """A step every so many micro-batches; in float64 where that is on."""
    known = inspect.signature(optax.MultiSteps).parameters
    wide = {"accumulator_dtype": jnp.result_type(float)}  # of optax 0.2.6 and later
    return optax.MultiSteps(own, parts, **(wide if "accumulator_dtype" in known else {}))


def _scaling(rule: Rule, step: int) -> list[Any]:
    if isinstance(rule, Adam):
        first, second = rule.betas
        eps = rule.eps / (1.0 - second**step) ** 0.5 if rule.eps_hat else rule.eps
        return [optax.scale_by_adam(first, second, eps)]
    if isinstance(rule, Sgd):
        return [optax.trace(rule.momentum, rule.nesterov)] if rule.momentum else []
    if isinstance(rule, Adagrad):
        return [optax.scale_by_rss(rule.initial, rule.eps)]
    assert isinstance(rule, RmsProp)
    kind = optax.scale_by_stddev if rule.centered else optax.scale_by_rms
    scaled = kind(rule.rho, rule.eps, rule.initial, eps_in_sqrt=rule.eps_inside)
    return [scaled, optax.trace(rule.momentum)] if rule.momentum else [scaled]


def _refuse(rule: Rule) -> None:
    why = ""
    if isinstance(rule, Sgd) and rule.dampening:
        why = "it has no dampening"
    if isinstance(rule, Adagrad) and not rule.eps_inside and rule.eps:
        why = "eps is added inside the root (eps_inside=True)"
    if why:
        raise InvalidArgument(
            f"optimizer={rule.name}: optax' own is another definition: {why}.\n"
            "  Fix: name what optax computes, or give each side its own: "
            "optimizer=(reference, candidate)"
        )
