"""How parameters, gradients and changes pass between the sides (part of the optimizer step)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.arrays import is_complex
from crosscheck.weights import Match, Matched
from crosscheck.weights.gradients import gradient_pairs

__all__ = ["Layout"]

Arrays = Mapping[str, np.ndarray]


@dataclass
class Layout:
    """How parameters, gradients and changes pass between the two sides.

    Attributes:
        match: candidate = L(reference), parameter by parameter.
        knows_frozen: the candidate's framework can hold a parameter fast; elsewhere (NumPy, JAX, a
            graph without backward pass) all that the reference trains is trained.
        compared: trainable reference parameters whose change has one place in the candidate.
        frozen: reference parameters that the candidate trains and the reference does not.
        missing: lines on those that cannot be compared.
    """

    match: Match
    knows_frozen: bool = False
    compared: dict[str, tuple[Parameter, list[Matched]]] = field(default_factory=dict)
    frozen: dict[str, tuple[Parameter, list[Matched]]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, match: Match, knows_frozen: bool) -> Layout:
        """Sort the parameters."""
        found = cls(match, knows_frozen)
        for parameter, held in reversed(gradient_pairs(match)):
            name = parameter.name
            if parameter.buffer:
                continue
            why = _incomparable(parameter, held)
            if name in match.partial:
                why = "the candidate has no place for a part of it"
            if why and parameter.trainable:
                found.missing.append(f"update of `{name}`: {why}")
            elif parameter.trainable:
                found.compared[name] = parameter, held
            elif not why and any(m.candidate.trainable for m in held):
                if knows_frozen:
                    found.frozen[name] = parameter, held
                else:
                    found.missing.append(
                        f"update of `{name}`: frozen in the reference; whether the candidate's "
                        "training leaves it alone cannot be seen"
                    )
        return found

    def to_candidate(self, values: Arrays) -> dict[str, np.ndarray]:
        """All of the candidate's parameters that ``values`` of the reference make."""
        made = {}
        for m in self.match.pairs:
            if all(p.name in values for p in m.references):
                value = m.transform.make({p.name: values[p.name] for p in m.references})
                made[m.candidate.name] = value.astype(m.candidate.value.dtype)
        return made

    def trained(self) -> list[Matched]:
        """The pairs whose candidate parameter its optimizer is given."""
        frozen = {id(m) for _, held in self.frozen.values() for m in held}
        return [
            m
            for m in self.match.pairs
            if (m.candidate.trainable or not (self.knows_frozen or m.candidate.buffer))
            and m.transform.function is None
            and (id(m) in frozen or any(p.trainable for p in m.references))
        ]

    def gradients(self, gradients: Arrays, own: Arrays) -> dict[str, np.ndarray]:
        """The reference's gradients, laid out for the candidate's optimizer.

        Args:
            own: the candidate's, for what the reference holds frozen and so has no gradient of.
        """
        made = {}
        for m in self.trained():
            name = m.candidate.name
            if any(p.name in gradients for p in m.references):
                g = {
                    p.name: gradients.get(p.name, np.zeros(p.value.shape, np.float32))
                    for p in m.references
                }
                made[name] = m.transform.make(g)
            else:
                made[name] = own.get(name, np.zeros(m.candidate.value.shape, np.float32))
        return made

    def back(self, parameter: Parameter, held: Sequence[Matched], made: Arrays) -> np.ndarray:
        """A change of the candidate's parameters, as one of the reference's parameter."""
        total = np.zeros(parameter.value.shape)
        for m in held:
            total = total + m.transform.pull(made[m.candidate.name], parameter.name)[parameter.name]
        return total


def _incomparable(parameter: Parameter, held: Sequence[Matched]) -> str:
    """Why a reference parameter's change has no single place in the candidate; empty if it has."""
    if any(is_complex(p.value) for p in (parameter, *(m.candidate for m in held))):
        return "steps on complex numbers are not compared"
    if any(m.transform.function is not None for m in held):
        return "its weight transform has no known inverse"
    if any(m.tied for m in held):
        return "the candidate holds one parameter for two, which move apart in the reference"
    places = np.zeros(parameter.value.shape)
    for m in held:
        ones = {p.name: np.ones(p.value.shape) for p in m.references}
        if m.transform.make(ones).max(initial=0.0) > 1.0:
            return "the candidate holds a sum that it is a part of; the two move differently"
        pulled = m.transform.pull(np.ones(m.candidate.value.shape), parameter.name)
        places = places + pulled[parameter.name]
    if not (places == 1.0).all():
        return "the candidate holds (parts of) it several times, which may move apart"
    return ""
