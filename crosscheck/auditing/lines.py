"""The loss along lines through the parameters and inputs of a model, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crosscheck.arrays import is_float
from crosscheck.auditing.subject import Arrays, Subject
from crosscheck.cotangents import ReferenceCotangents

__all__ = ["Lines", "Slope", "Tensor"]

KINK = 5e-5  # relative to the derivative
STEPS = (1e-4, 1e-5, 1e-6)  # relative to the size of the tensor
ROUNDING = 100 * float(np.finfo(np.float64).eps)
COUNTS = (1e-7, 6e-9)  # what every tensor moves the loss by, in its own size
NO_GRADIENT = 1e-12  # of the loss, for moving a tensor by its size: rounding


@dataclass(frozen=True)
class Tensor:
    """A float input (``input:x``) or parameter, and its gradient, in float64.

    Attributes:
        size: its norm, at least that of elements of 0.1.
        slope: what the loss would change by, were the tensor moved by its size along the gradient.
    """

    name: str
    value: np.ndarray
    gradient: np.ndarray

    @cached_property
    def size(self) -> float:
        rms = float(np.sqrt(np.mean(self.value**2)))
        return max(rms, 0.1) * math.sqrt(self.value.size)

    @cached_property
    def slope(self) -> float:
        return self.size * float(np.linalg.norm(self.gradient))


@dataclass(frozen=True)
class Slope:
    """A derivative as the backward pass has it and as differences have it."""

    along: str
    exact: float
    found: float
    apart: float


class Lines:
    """The loss (or the outputs against seeded cotangents) around where the model stands.

    Attributes:
        value: there.
        terms: the size of what it is the sum of, which decides how it rounds.
        precise: whether the caller's own loss is computed in float64.
        tensors: everything that a finite gradient was computed for.
    """

    def __init__(self, subject: Subject, *, eager: bool = False) -> None:
        """``eager``: by runs of the adapter, where the model could be compiled."""
        self._subject, self._eager = subject, eager
        at = subject.evaluate({}, float64=True, eager=eager)
        self._given = None
        self.precise = True
        if subject.loss is None:
            self._given = ReferenceCotangents(subject.seed)(dict(at.outputs))
        self.value, self.terms = self._value_of(at.outputs)
        found = self._tensors(at.gradients, at.inputs)
        self.tensors = [t for t in found if math.isfinite(t.slope)]
        self._total = self.terms + max((t.slope for t in self.tensors), default=0.0)

    def _tensors(self, gradients: Arrays, of_inputs: Arrays) -> Iterator[Tensor]:
        for name, value in self._subject.inputs.items():
            if is_float(value) and value.size and name in of_inputs:
                yield Tensor(f"input:{name}", *_wide(value, of_inputs[name]))
        for p in self._subject.trainable():
            if is_float(p.value) and p.value.size and p.name in gradients:
                yield Tensor(p.name, *_wide(p.value, gradients[p.name]))

    # -- many at once ------------------------------------------------------------------------------

    def groups(self) -> tuple[list[Tensor], list[Tensor]]:
        """Those that move the loss, and those whose gradient says that they do not."""
        moving: list[Tensor] = []
        still: list[Tensor] = []
        for tensor in self.tensors:
            (moving if tensor.slope > NO_GRADIENT * self._total else still).append(tensor)
        return moving, still

    def together(self, tensors: Sequence[Tensor], wrong: float) -> float | None:
        """Move all of them along their gradients, and in random directions.

        Each is moved as far as makes it count like the others, by a random share and to a random
        side, lest two mistakes cancel.

        Args:
            wrong: how much of a tensor's own derivative may be missing.

        Returns:
            The relative difference; None where it is larger than what one of them could explain.
        """
        rng = np.random.default_rng([self._subject.seed, len(tensors), *tensors[0].name.encode()])
        worst = 0.0
        for along_gradient in (True, False):
            found = (self._apart(tensors, along_gradient, c, wrong, rng) for c in COUNTS)
            apart = next((a for a in found if a is not None), None)
            if apart is None:
                return None
            worst = max(worst, apart)
        return worst

    def _apart(
        self,
        tensors: Sequence[Tensor],
        along_gradient: bool,
        count: float,
        wrong: float,
        rng: np.random.Generator,
    ) -> float | None:
        moves: dict[str, np.ndarray] = {}
        exact, counts = 0.0, []
        for tensor in tensors:
            share = rng.uniform(0.5, 1.0) * rng.choice((-1.0, 1.0))
            direction, typical = self._direction(tensor, along_gradient, rng)
            relative = min(count * self._total / typical, STEPS[0]) if typical else STEPS[0]
            moves[tensor.name] = share * relative * tensor.size * direction
            exact += float(np.sum(tensor.gradient * moves[tensor.name]))
            counts.append(abs(share) * relative * typical)
        ahead, behind = (
            self._at({t.name: t.value + side * moves[t.name] for t in tensors}) for side in (1, -1)
        )
        apart = abs((ahead - behind) / 2 - exact)
        fine = apart <= wrong * min(counts) + ROUNDING * self._total
        return apart / max(sum(counts), ROUNDING * self._total) if fine else None

    @staticmethod
    def _direction(
        tensor: Tensor, along_gradient: bool, rng: np.random.Generator
    ) -> tuple[np.ndarray, float]:
        """(of length one, what the loss typically changes by for the tensor's size along it)."""
        length = float(np.linalg.norm(tensor.gradient))
        if along_gradient and length > 0:
            return tensor.gradient / length, tensor.slope
        return _noise(tensor, rng), tensor.slope / math.sqrt(tensor.value.size)

    # -- one alone ---------------------------------------------------------------------------------

    def slopes(self, tensor: Tensor) -> Iterator[Slope]:
        """Along the gradient and along a random direction, each where no kink is met.

        Where differences at two distances disagree, or those to the left and to the right, there
        is a kink between them: shorter distances and other directions are tried.
        """
        rng = np.random.default_rng([self._subject.seed, tensor.value.size, *tensor.name.encode()])
        length = float(np.linalg.norm(tensor.gradient))
        typical = length / math.sqrt(tensor.value.size)
        if length > 0:
            towards = tensor.gradient / length
            others = (towards + 0.3 * _noise(tensor, rng) for _ in range(2))
            yield from self._first(tensor, "along it", length, [towards, *others])
        random = [_noise(tensor, rng) for _ in range(3)]
        yield from self._first(tensor, "along a random direction", typical, random)

    def _first(
        self, tensor: Tensor, along: str, typical: float, directions: list[np.ndarray]
    ) -> Iterator[Slope]:
        """The slope along the first direction without a kink, if there is one."""
        for direction in directions:
            exact = float(np.sum(tensor.gradient * direction))
            size = max(abs(exact), typical)
            found = self._derivative(tensor, direction, size)
            if found is not None:
                derivative, rounding = found
                apart = max(abs(derivative - exact) - rounding, 0.0)
                if apart > 0 and size == 0:  # no gradient at all, where there is a slope
                    size = apart
                yield Slope(along, exact, derivative, apart / size if apart else 0.0)
                return

    def _derivative(
        self, tensor: Tensor, direction: np.ndarray, size: float
    ) -> tuple[float, float] | None:
        """(By Richardson's extrapolation of central differences, its rounding); None at a kink."""
        for relative in STEPS:
            h = relative * tensor.size
            rounding = ROUNDING * max(self.terms, 1e-12) / h
            ahead, behind, near, far = (
                self._at({tensor.name: tensor.value + s * h * direction})
                for s in (1, -1, 0.5, -0.5)
            )
            wide, close = (ahead - behind) / (2 * h), (near - far) / h
            # Left and right slopes part by h f'' where the function is smooth: half at half of h.
            bend = (near + far - 2 * self.value) / (h / 2) - (
                ahead + behind - 2 * self.value
            ) / h / 2
            seen = max(size, abs(close))
            if abs(wide - close) + abs(bend) <= KINK * seen + rounding:
                return (4 * close - wide) / 3, rounding
        return None

    # -- the loss ----------------------------------------------------------------------------------

    def _at(self, moved: Mapping[str, np.ndarray]) -> float:
        """The loss where these inputs and parameters have other values."""
        of_inputs = {
            k.removeprefix("input:"): v for k, v in moved.items() if k.startswith("input:")
        }
        values = {k: v for k, v in moved.items() if not k.startswith("input:")}
        inputs = {**self._subject.inputs, **of_inputs} if of_inputs else None
        outputs = self._subject.outputs_at(values, inputs=inputs, float64=True, eager=self._eager)
        return self._value_of(outputs)[0]

    def _value_of(self, outputs: Arrays) -> tuple[float, float]:
        """The value, and the size of the terms in it."""
        if self._given is None:
            found = self._subject.loss_of(outputs, defined=True, float64=True).value
            self.precise = found.dtype == np.float64
            return float(found), abs(float(found))
        terms = [outputs[s].astype(np.float64) * g for s, g in self._given.items()]
        return float(sum(map(np.sum, terms))), float(sum(np.sum(np.abs(t)) for t in terms))


def _noise(tensor: Tensor, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.standard_normal(tensor.value.shape)
    return np.asarray(drawn / max(float(np.linalg.norm(drawn)), 1e-30))


def _wide(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(a.astype(np.float64) for a in arrays)
