"""The backward pass against central differences in float64, where no kink is in the way."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from crosscheck.arrays import is_float
from crosscheck.auditing.registry import Failure, Looked, Outcome, Skip, check
from crosscheck.auditing.subject import Step, Subject
from crosscheck.cotangents import ReferenceCotangents

__all__: list[str] = []

WRONG, KINK = 1e-4, 5e-5  # relative to the derivative
TENSORS, SECONDS = 48, 60.0
STEPS = (1e-4, 1e-5, 1e-6)  # relative to the size of the tensor
ROUNDING = 100 * float(np.finfo(np.float64).eps)


@check("wrong")
def gradients_match_differences(subject: Subject) -> Outcome:
    """The backward pass is the derivative of the forward pass, by central differences in float64.

    For every input and parameter along its gradient (where a wrong factor shows) and along a random
    direction (where a wrong element does). Where differences at two distances disagree, or those to
    the left and to the right, there is a kink (a ReLU at zero) between them: shorter distances and
    other directions are tried. At most 48 tensors and 60 seconds.
    """
    if not subject.adapter.capabilities.cotangents:
        return Skip("the model has no backward pass")
    if not subject.adapter.capabilities.float64:
        return Skip("the model does not run in float64")
    line = _Line(subject)
    if not math.isfinite(line.value):
        return Skip(f"the loss is {line.value}")
    if not line.precise:
        return Skip("your loss rounds to float32, which leaves nothing of small differences")
    tensors = list(line.tensors())
    chosen = tensors[:: max(1, math.ceil(len(tensors) / TENSORS))]
    worst, looked, kinks, begun = 0.0, 0, 0, time.monotonic()
    for tensor in chosen:
        if time.monotonic() - begun > SECONDS:
            break
        found = list(line.slopes(tensor))
        kinks += not found
        looked += bool(found)
        for slope in found:
            worst = max(worst, slope.apart)
            if slope.apart > WRONG:
                return Failure(
                    f"the gradient of `{tensor.name}` is not the derivative: {slope.exact:.6g} "
                    f"{slope.along}, where finite differences give {slope.found:.6g}",
                    tensor.name,
                    slope.apart,
                )
    if not looked:
        return Skip(
            f"a kink along every direction ({kinks} tensors)" if kinks else "nothing to vary"
        )
    more = f" of {len(tensors)}" if looked < len(tensors) else ""
    met = f"; {kinks} stand at a kink" if kinks else ""
    return Looked(f"{looked}{more} tensors, largest relative difference {worst:.2g}{met}", worst)


@dataclass(frozen=True)
class _Tensor:
    """A float input (``input:x``) or parameter, and its gradient, in float64."""

    name: str
    value: np.ndarray
    gradient: np.ndarray


@dataclass(frozen=True)
class _Slope:
    """A derivative as the backward pass has it and as differences have it."""

    along: str
    exact: float
    found: float
    apart: float


class _Line:
    """The loss (or the outputs against seeded cotangents) along lines through one tensor."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.step = subject.run(float64=True)
        self.given, self.precise = None, True
        if subject.loss is None:
            self.given = ReferenceCotangents(subject.seed)(self.step.outputs)
        self.value, self.terms = self._value_of(self.step)

    def tensors(self) -> Iterator[_Tensor]:
        for name, value in self.subject.inputs.items():
            gradient = self.step.trace.values.get(("cotangent", f"input:{name}"))
            if is_float(value) and value.size and gradient is not None:
                yield _Tensor(f"input:{name}", *_wide(value, gradient))
        for p in self.subject.trainable():
            gradient = self.step.gradients.get(p.name)
            if is_float(p.value) and p.value.size and gradient is not None:
                yield _Tensor(p.name, *_wide(p.value, gradient))

    def slopes(self, tensor: _Tensor) -> Iterator[_Slope]:
        """Along the gradient and along a random direction, each where no kink is met."""
        rng = np.random.default_rng([self.subject.seed, tensor.value.size, *tensor.name.encode()])
        length = float(np.linalg.norm(tensor.gradient))

        def noise(size: float = 1.0) -> np.ndarray:
            drawn = rng.standard_normal(tensor.value.shape)
            return size * drawn / max(float(np.linalg.norm(drawn)), 1e-30)

        typical = length / math.sqrt(tensor.value.size)
        if length > 0:
            towards = tensor.gradient / length
            yield from self._first(
                tensor, "along it", length, [towards, *(towards + noise(0.3) for _ in range(2))]
            )
        yield from self._first(
            tensor, "along a random direction", typical, [noise() for _ in range(3)]
        )

    def _first(
        self, tensor: _Tensor, along: str, typical: float, directions: list[np.ndarray]
    ) -> Iterator[_Slope]:
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
                yield _Slope(along, exact, derivative, apart / size if apart else 0.0)
                return

    def _derivative(
        self, tensor: _Tensor, direction: np.ndarray, size: float
    ) -> tuple[float, float] | None:
        """(By Richardson's extrapolation of central differences, its rounding); None at a kink."""
        scale = max(float(np.sqrt(np.mean(tensor.value**2))), 0.1) * math.sqrt(tensor.value.size)
        for relative in STEPS:
            h = relative * scale
            rounding = ROUNDING * max(self.terms, 1e-12) / h
            ahead, behind, near, far = (
                self._at(tensor, tensor.value + s * h * direction) for s in (1, -1, 0.5, -0.5)
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

    def _at(self, tensor: _Tensor, value: np.ndarray) -> float:
        run = self.subject.run
        if tensor.name.startswith("input:"):
            inputs = {**self.subject.inputs, tensor.name.removeprefix("input:"): value}
            step = run(inputs=inputs, float64=True, backward=False)
        else:
            step = run(overrides={tensor.name: value}, float64=True, backward=False)
        return self._value_of(step)[0]

    def _value_of(self, step: Step) -> tuple[float, float]:
        """The value, and the size of the terms in it."""
        if self.given is None:
            found = self.subject.loss_of(step.outputs, float64=True).value
            self.precise = found.dtype == np.float64
            return float(found), abs(float(found))
        terms = [step.outputs[s].astype(np.float64) * g for s, g in self.given.items()]
        return float(sum(map(np.sum, terms))), float(sum(np.sum(np.abs(t)) for t in terms))


def _wide(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(a.astype(np.float64) for a in arrays)
