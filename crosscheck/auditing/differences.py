"""The backward pass against central differences in float64, where no kink is in the way."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from crosscheck.auditing.lines import Lines, Slope, Tensor
from crosscheck.auditing.registry import Failure, Looked, Outcome, Skip, check
from crosscheck.auditing.subject import Subject
from crosscheck.errors import SideFailed

__all__: list[str] = []

WRONG = 1e-4  # relative to the derivative
SECONDS = 60.0


@check("wrong")
def gradients_match_differences(subject: Subject) -> Outcome:
    """The backward pass is the derivative of the forward pass, by central differences in float64.

    All inputs and parameters are moved at once, along their gradients (where a wrong factor shows)
    and along random directions (where a wrong element does), each by so little that it counts as
    much as any other and hardly a kink (a ReLU at zero) lies in between. Where the loss does not
    change as the gradients say, halves of them are moved, down to a single tensor; that one is
    looked at more closely, at several distances and in several directions. For 60 seconds at most.
    """
    if not subject.adapter.capabilities.cotangents:
        return Skip("the model has no backward pass")
    if not subject.adapter.capabilities.float64:
        return Skip("the model does not run in float64")
    subject.run()  # what it raises in float32, too, is not the matter of this check
    try:
        lines = Lines(subject)
    except SideFailed as error:
        return Skip(f"the model does not run in float64: {error.__cause__}")
    if not math.isfinite(lines.value):
        return Skip(f"the loss is {lines.value}")
    if not lines.precise:
        return Skip("your loss rounds to float32, which leaves nothing of small differences")
    search = _Search(lines, time.monotonic() + SECONDS)
    search.look_at_all()
    if search.failure is not None and subject.compiles:
        search = _by_runs(subject, search)
    if search.failure is not None:
        return search.failure
    kinks, looked, count = search.kinks, search.looked, len(search.lines.tensors)
    if not looked:
        return Skip(
            f"a kink along every direction ({kinks} tensors)" if kinks else "nothing to vary"
        )
    more = f" of {count}" if looked < count else ""
    met = f"; {kinks} stand at a kink" if kinks else ""
    text = f"{looked}{more} tensors, largest relative difference {search.worst:.2g}{met}"
    return Looked(text, search.worst)


def _by_runs(subject: Subject, compiled: _Search) -> _Search:
    """The same without a compiler, which may have rounded to float32 somewhere."""
    assert compiled.failure is not None
    search = _Search(Lines(subject, eager=True), time.monotonic() + SECONDS)
    search.look([t for t in search.lines.tensors if t.name == compiled.failure.tensor])
    if search.failure is None:
        search.looked = search.kinks = 0
        search.look_at_all()
    return search


@dataclass
class _Search:
    """For the first tensor whose gradient is not the derivative.

    Attributes:
        until: when to give up.
        looked: tensors that agree; kinks: those that stand at one.
    """

    lines: Lines
    until: float
    failure: Failure | None = None
    worst: float = 0.0
    looked: int = 0
    kinks: int = 0

    def look_at_all(self) -> None:
        for tensors in self.lines.groups():
            self.look(tensors)

    def look(self, tensors: Sequence[Tensor]) -> None:
        """Look at all of them, at halves only where they do not agree together."""
        if self.failure is not None or not tensors or time.monotonic() > self.until:
            return
        if len(tensors) == 1:
            self._closely(tensors[0])
            return
        apart = self.lines.together(tensors, WRONG)
        if apart is not None:
            self.looked += len(tensors)
            self.worst = max(self.worst, apart)
            return
        half = len(tensors) // 2
        self.look(tensors[:half])
        self.look(tensors[half:])

    def _closely(self, tensor: Tensor) -> None:
        found = list(self.lines.slopes(tensor))
        self.kinks += not found
        self.looked += bool(found)
        for slope in found:
            self.worst = max(self.worst, slope.apart)
            if slope.apart > WRONG and self.failure is None:
                self.failure = _failure(tensor, slope)


def _failure(tensor: Tensor, slope: Slope) -> Failure:
    return Failure(
        f"the gradient of `{tensor.name}` is not the derivative: {slope.exact:.6g} "
        f"{slope.along}, where finite differences give {slope.found:.6g}",
        tensor.name,
        slope.apart,
    )
