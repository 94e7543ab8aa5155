"""Gradients of the candidate's parameters, as those of the reference's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.weights.match import Match, Matched
from crosscheck.weights.transform import Transform

__all__ = ["Pullback", "gradient_map", "gradient_pairs"]


@dataclass(frozen=True)
class Pullback:
    """How gradients at the candidate's parameters become that of a reference parameter.

    With candidate = L(reference), the chain rule: the adjoint of L, summed over all parameters of
    the candidate that hold (a part of) it. Where the candidate ties what the reference does not,
    the reference's gradients are summed instead.
    """

    references: tuple[str, ...]
    terms: tuple[tuple[str, Transform], ...]  # (candidate parameter, how it is made)

    def of_reference(self, gradients: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The sum over tied parameters; None where one has no gradient."""
        return _total([gradients.get(name) for name in self.references])

    def of_candidate(self, gradients: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The candidate's gradients, in the reference's layout; None where one is missing."""
        name = self.references[0]
        return _total(
            [
                None if (g := gradients.get(twin)) is None else transform.pull(g, name).get(name)
                for twin, transform in self.terms
            ]
        )


def _total(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    there = [array for array in arrays if array is not None]
    return np.sum(there, axis=0) if there and len(there) == len(arrays) else None


def gradient_pairs(match: Match) -> list[tuple[Parameter, list[Matched]]]:
    """(reference parameter, the candidate's parameters that hold it), in backward order."""
    holders: dict[str, list[Matched]] = {}
    for m in match.pairs:
        for name in m.feeds():
            holders.setdefault(name, []).append(m)
    found: dict[str, Parameter] = {}
    for m in reversed(match.pairs):
        for parameter in reversed(m.references):
            if parameter.name in holders:
                found.setdefault(parameter.name, parameter)
    return [(parameter, holders[name]) for name, parameter in found.items()]


def gradient_map(
    parameter: Parameter, held: Sequence[Matched]
) -> tuple[Transform, Pullback | None]:
    """(layout, pullback) of a gradient: a permutation where that is all, else a `Pullback`."""
    tied = tuple(p.name for m in held for p in m.tied)
    if len(held) == 1 and held[0].is_permutation and not tied:
        return held[0].transform, None
    terms = tuple((m.candidate.name, m.transform) for m in held)
    return Transform(), Pullback((parameter.name, *tied), terms)
