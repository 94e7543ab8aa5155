"""From reference parameters to one parameter of the candidate, and gradients the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from crosscheck.weights.expressions import Applied, Node, Source, Transpose, sources
from crosscheck.weights.simplify import simplified

__all__ = ["Transform"]


@dataclass(frozen=True)
class Transform:
    """How a candidate's parameter is made: one of three forms.

    Attributes:
        axes: ``candidate = reference.transpose(axes)``; None: as it is.
        function: any function of one array; gradients cannot be mapped back and are not compared.
        expression: a linear map of one or several reference parameters, by name, made of invertible
            or at least reversible steps (`crosscheck.weights.expressions`).
    """

    axes: tuple[int, ...] | None = None
    function: Callable[[np.ndarray], np.ndarray] | None = None
    expression: Node | None = None

    @classmethod
    def of(cls, node: Node) -> Transform:
        """The simplest form of an expression; a lone permutation is written as ``axes``."""
        node = simplified(node)
        if isinstance(node, Source):
            return cls()
        if not isinstance(node, Applied) or not isinstance(node.node, Source):
            return cls(expression=node)
        if isinstance(node.step, Transpose):
            return cls(axes=node.step.axes)
        return cls(expression=node)

    def node(self, name: str, shape: tuple[int, ...]) -> Node:
        """The transform as an expression of the reference parameter ``name`` (not a function)."""
        if self.expression is not None:
            return self.expression
        source = Source(name, shape)
        return source if self.axes is None else Applied(Transpose(self.axes), source)

    def to_candidate(self, reference: np.ndarray) -> np.ndarray:
        """The candidate's parameter from the reference's, where it is made of a single one."""
        if self.function is not None:
            return np.asarray(self.function(np.array(reference)))
        if self.expression is not None:
            (name,) = sources(self.expression)
            return self.expression.value({name: reference})
        return reference if self.axes is None else reference.transpose(self.axes)

    def to_reference(self, candidate: np.ndarray) -> np.ndarray | None:
        """The inverse of a permutation; None for other forms (see `Matched.pull` for gradients)."""
        if self.function is not None or self.expression is not None:
            return None
        return candidate if self.axes is None else candidate.transpose(np.argsort(self.axes))

    def make(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The candidate's parameter.

        Args:
            arrays: the reference parameters (or like arrays) that it is made of, by name; of a
                permutation or a function the only one.
        """
        if self.expression is not None:
            return self.expression.value(arrays)
        (array,) = arrays.values()
        return self.to_candidate(array)

    def pull(self, gradient: np.ndarray, name: str) -> dict[str, np.ndarray]:
        """What a gradient at the candidate's parameter is at the reference's: {name: share}.

        Args:
            gradient: in the candidate's layout.
            name: of the reference parameter, for a permutation.

        Raises:
            ValueError: the transform is a function.
        """
        if self.function is not None:
            raise ValueError("a function has no known adjoint")
        if self.expression is None:
            back = self.to_reference(gradient)
            return {} if back is None else {name: back}
        into: dict[str, np.ndarray] = {}
        self.expression.pull(gradient, into)
        return into
