"""A named optimizer at work on arrays: clipping, exclusion, accumulation, and the rule itself."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.optimizers.rules import Rounding, Rule, State

__all__ = ["BIASES_AND_NORMS", "Definition", "clip_factor", "excluded"]

BIASES_AND_NORMS = "biases and norms"
Arrays = Mapping[str, np.ndarray]


class Definition:
    """A rule with the state of every parameter.

    Args:
        rule: what to compute.
        exempt: the parameters that do not decay.
        rounded: see `crosscheck.optimizers.rules.Rounding`.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self, rule: Rule, exempt: Collection[str] = (), rounded: Rounding = lambda x: x
    ) -> None:
        self.rule, self.exempt, self._rounded = rule, frozenset(exempt), rounded
        self._state: dict[str, State] = {}
        self._t = 0

    def step(
        self, values: Arrays, gradients: Sequence[Arrays], norm: float | None = None
    ) -> dict[str, np.ndarray]:
        """The parameters after one more step.

        Args:
            values: name -> θ, float32 or float64; the same names in every step.
            gradients: of one micro-batch after the other, each name -> g, shapes as in ``values``.
            norm: ‖g‖ of the whole model, where ``values`` is only a part of it.
        """
        self._t += 1
        g = self._clipped(mean_of(gradients), norm)
        made = {}
        for name, theta in values.items():
            state = self._state.setdefault(name, self.rule.start(theta))
            made[name] = np.asarray(
                self.rule.step(
                    theta,
                    g[name],
                    state,
                    t=self._t,
                    decays=name not in self.exempt,
                    rounded=self._rounded,
                )
            )
        return made

    def _clipped(self, gradients: dict[str, np.ndarray], norm: float | None) -> Arrays:
        rule = self.rule
        if rule.clip_value is not None:
            limit = rule.clip_value
            gradients = {name: np.clip(g, -limit, limit) for name, g in gradients.items()}
        if rule.clip_norm is None:
            return gradients
        if rule.clip_each:
            return {n: g * clip_factor(rule, norm_of({n: g})) for n, g in gradients.items()}
        factor = clip_factor(rule, norm_of(gradients) if norm is None else norm)
        return {name: g * factor for name, g in gradients.items()}


def clip_factor(rule: Rule, norm: float) -> float:
    """min(1, clip_norm / norm) (Pascanu et al., On the difficulty of training RNNs, 2013)."""
    assert rule.clip_norm is not None
    return min(1.0, rule.clip_norm / (norm + rule.clip_eps)) if norm > 0.0 else 1.0


def norm_of(gradients: Arrays) -> float:
    """‖g‖₂ over all parameters together, in float64."""
    return math.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in gradients.values()))


def mean_of(gradients: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """The mean over micro-batches."""
    first = dict(gradients[0])
    if len(gradients) == 1:
        return first
    return {n: np.sum([g[n] for g in gradients], axis=0) / len(gradients) for n in first}


def excluded(patterns: Sequence[str], parameters: Sequence[Parameter]) -> frozenset[str]:
    """The reference parameters that a weight-decay exclusion list names.

    ``"biases and norms"``: biases, what norms hold, and every vector (a norm of a hand-written net
    may not be known as one).
    """
    found = set()
    for p in parameters:
        for pattern in patterns:
            plain = p.role == "bias" or p.kind == "norm" or p.value.ndim <= 1
            if plain if pattern == BIASES_AND_NORMS else fnmatch.fnmatchcase(p.name, pattern):
                found.add(p.name)
    return frozenset(found)
