"""One side's loss: its framework's own, or the caller's, evaluated at given outputs.

It runs outside the model, on arrays: what the loss does is judged on right outputs, and what the
model does behind it on right cotangents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

import numpy as np

from crosscheck.adapters.base import Adapter
from crosscheck.errors import CrosscheckError, InvalidArgument, SideFailed
from crosscheck.losses.evaluate import LossValue, arguments, evaluate
from crosscheck.losses.targets import Outputs, Resolved, Targets

__all__ = ["SideLoss", "wide"]

_FRAMEWORKS = ("torch", "keras", "tensorflow", "jax")  # the others use the definitions


@dataclass(frozen=True)
class SideLoss:
    """The loss of one side.

    Attributes:
        own: the caller's; None for named terms, which `value` is then given.
    """

    side: Literal["reference", "candidate"]
    adapter: Adapter
    own: Any = None

    def value(
        self,
        terms: Sequence[Resolved],
        outputs: Outputs,
        targets: Targets = None,
        *,
        float64: bool = False,
    ) -> LossValue:
        """The loss and its gradient by every float output.

        Args:
            terms: named ones, in this side's names and layouts; none for the caller's own.
            outputs: in the order of the model's results.
            targets: of the caller's own loss.

        Raises:
            InvalidArgument: the caller's loss does not return what it should.
            SideFailed: it raised.
        """
        known = self.adapter.framework in _FRAMEWORKS
        name = self.adapter.framework if known else "numpy"
        try:
            module = import_module(f"crosscheck.adapters.{name}.losses")
            fed: Any = {str(i): term.target for i, term in enumerate(terms)}
            function = _named(terms, module.NAMED, known)
            if self.own is not None:
                fed, function = targets, _own(module.own(self.own, float64=float64))
            value, gradients = module.differentiate(
                function, outputs, fed, float64=float64, device=self.adapter.device
            )
        except InvalidArgument as error:
            raise InvalidArgument(f"the {self.side}'s loss: {error}") from error.__cause__
        except CrosscheckError:
            raise
        except Exception as error:  # the loss is foreign code: anything may come out of it
            raise SideFailed(
                self.side, "loss", stage="loss", framework=self.adapter.framework, cause=error
            ) from error
        return self._checked(LossValue(value, gradients), outputs)

    def _checked(self, found: LossValue, outputs: Outputs) -> LossValue:
        if found.value.size != 1 or found.value.dtype.kind not in "fV":
            raise InvalidArgument(
                f"the {self.side}'s loss returned {found.value.dtype}{found.value.shape}: it must "
                "return one floating-point number; take the mean or the sum"
            )
        for site, gradient in found.gradients.items():
            if gradient.shape != outputs[site].shape:
                raise InvalidArgument(
                    f"the {self.side}'s loss returned a gradient of shape {gradient.shape} for "
                    f"`{site}`, whose shape is {outputs[site].shape}"
                )
        return LossValue(found.value.reshape(()), found.gradients)


def _named(
    terms: Sequence[Resolved], named: Mapping[str, Callable[..., Any]], differentiable: bool
) -> Callable[[Any, Any], Any]:
    if not differentiable:

        def definition(outputs: Any, targets: Any) -> Any:
            cast = [replace(t, target=targets[str(i)]) for i, t in enumerate(terms)]
            found = evaluate(cast, outputs)
            return found.value, found.gradients

        return definition

    def total(outputs: Any, targets: Any) -> Any:
        values = [
            term.factor
            * named[term.name](*arguments(term, outputs, targets[str(i)]), **term.options)
            for i, term in enumerate(terms)
        ]
        return sum(values[1:], start=values[0])

    return total


def _own(loss: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """A single output is passed as it is, several as a dict."""

    def call(outputs: dict[str, Any], targets: Any) -> Any:
        single = next(iter(outputs.values())) if len(outputs) == 1 else outputs
        return loss(single, targets)

    return call


def wide(outputs: Outputs) -> dict[str, np.ndarray]:
    """Floats in float64."""
    return {s: v.astype(np.float64) if v.dtype.kind in "fV" else v for s, v in outputs.items()}
