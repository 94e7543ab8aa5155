"""Linear maps between parameters, as trees of named steps that can be run, reversed and printed.

A node says how an array is made:

    Source(name, shape)          the parameter of that name
    Zeros(shape)                 zeros: what one side holds and the other does not need
    Applied(step, node)          a step applied to an array: `Transpose`, `Reshape`, `Part`,
                                 `Blocks` (equal blocks in another order) or `Flip`
    Joined(how, axis, nodes)     several arrays in one: concatenated, stacked or summed

Every node is linear, so that gradients go through it backwards (`pull`): with candidate = L(r), the
chain rule gives the gradient of r as the adjoint of L applied to the candidate's gradient. For
permutations and slices that moves the elements back; to the members of a sum it gives copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "Applied",
    "Blocks",
    "Flip",
    "Joined",
    "Node",
    "Part",
    "Reshape",
    "Shape",
    "Source",
    "Step",
    "Transpose",
    "Zeros",
    "pieces_of",
    "replaced",
    "sources",
]

Shape = tuple[int, ...]


# -- steps -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transpose:
    """``array.transpose(axes)``."""

    axes: tuple[int, ...]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(self.axes)

    def shape(self, given: Shape) -> Shape:
        return tuple(given[a] for a in self.axes)

    def adjoint(self, gradient: np.ndarray, given: Shape) -> np.ndarray:
        return gradient.transpose(np.argsort(self.axes))

    def inverse(self, given: Shape) -> Step:
        return Transpose(tuple(int(a) for a in np.argsort(self.axes)))

    def __str__(self) -> str:
        if self.axes == tuple(reversed(range(len(self.axes)))):
            return "transpose"
        return "axes " + " ".join(map(str, self.axes))


@dataclass(frozen=True)
class Reshape:
    """``array.reshape(to)``, in C order."""

    to: Shape

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(self.to)

    def shape(self, given: Shape) -> Shape:
        if math.prod(given) != math.prod(self.to):
            raise ValueError(f"{given} cannot be reshaped to {self.to}")
        return self.to

    def adjoint(self, gradient: np.ndarray, given: Shape) -> np.ndarray:
        return gradient.reshape(given)

    def inverse(self, given: Shape) -> Step:
        return Reshape(given)

    def __str__(self) -> str:
        return "reshape " + " ".join(map(str, self.to))


@dataclass(frozen=True)
class Part:
    """The indices ``start`` to ``stop`` (exclusive) of one axis."""

    axis: int
    start: int
    stop: int

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return array[self._index(array.ndim)]

    def shape(self, given: Shape) -> Shape:
        if not (0 <= self.axis < len(given) and 0 <= self.start < self.stop <= given[self.axis]):
            raise ValueError(f"{given} has no part {self.start}:{self.stop} of axis {self.axis}")
        return (*given[: self.axis], self.stop - self.start, *given[self.axis + 1 :])

    def adjoint(self, gradient: np.ndarray, given: Shape) -> np.ndarray:
        padded = np.zeros(given, gradient.dtype)
        padded[self._index(len(given))] = gradient
        return padded

    def inverse(self, given: Shape) -> Step | None:
        return None

    def _index(self, ndim: int) -> tuple[slice, ...]:
        chosen = slice(self.start, self.stop)
        return tuple(chosen if a == self.axis else slice(None) for a in range(ndim))

    def __str__(self) -> str:
        return f"part {self.axis} {self.start}:{self.stop}"


@dataclass(frozen=True)
class Blocks:
    """An axis cut into ``len(order)`` equal blocks, which are put in that order (gates)."""

    axis: int
    order: tuple[int, ...]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        parts = np.split(array, len(self.order), axis=self.axis)
        return np.concatenate([parts[k] for k in self.order], axis=self.axis)

    def shape(self, given: Shape) -> Shape:
        if sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"{self.order} is no order of {len(self.order)} blocks")
        if not 0 <= self.axis < len(given) or given[self.axis] % len(self.order):
            raise ValueError(f"axis {self.axis} of {given} has no {len(self.order)} equal blocks")
        return given

    def adjoint(self, gradient: np.ndarray, given: Shape) -> np.ndarray:
        return self.inverse(given)(gradient)

    def inverse(self, given: Shape) -> Step:
        return Blocks(self.axis, tuple(int(k) for k in np.argsort(self.order)))

    def __str__(self) -> str:
        return f"blocks {self.axis} " + " ".join(map(str, self.order))


@dataclass(frozen=True)
class Flip:
    """Axes read backwards (the kernel of a transposed convolution that does not turn it)."""

    axes: tuple[int, ...]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return np.flip(array, self.axes)

    def shape(self, given: Shape) -> Shape:
        if any(not 0 <= a < len(given) for a in self.axes):
            raise ValueError(f"{given} has no axes {self.axes} to flip")
        return given

    def adjoint(self, gradient: np.ndarray, given: Shape) -> np.ndarray:
        return np.flip(gradient, self.axes)

    def inverse(self, given: Shape) -> Step:
        return self

    def __str__(self) -> str:
        return "flip " + " ".join(map(str, self.axes))


Step = Transpose | Reshape | Part | Blocks | Flip


# -- nodes -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A parameter, by name."""

    name: str
    shape: Shape

    def value(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return arrays[self.name]

    def pull(self, gradient: np.ndarray, into: dict[str, np.ndarray]) -> None:
        """Add the source's share of a gradient to ``into``, by name."""
        known = into.get(self.name)
        into[self.name] = gradient if known is None else known + gradient


@dataclass(frozen=True)
class Zeros:
    """Zeros, float32."""

    shape: Shape

    def value(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.zeros(self.shape, np.float32)

    def pull(self, gradient: np.ndarray, into: dict[str, np.ndarray]) -> None:
        """Zeros come from nowhere: nothing to add."""


@dataclass(frozen=True)
class Applied:
    """A step applied to what another node makes."""

    step: Step
    node: Node

    @property
    def shape(self) -> Shape:
        return self.step.shape(self.node.shape)

    def value(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.step(self.node.value(arrays))

    def pull(self, gradient: np.ndarray, into: dict[str, np.ndarray]) -> None:
        self.node.pull(self.step.adjoint(gradient, self.node.shape), into)


@dataclass(frozen=True)
class Joined:
    """Several arrays in one: ``"concat"`` or ``"stack"`` along ``axis``, or ``"sum"``."""

    how: str
    axis: int
    nodes: tuple[Node, ...]

    @property
    def shape(self) -> Shape:
        shapes = [node.shape for node in self.nodes]
        first = shapes[0]
        if self.how == "concat":
            rest = {(*s[: self.axis], *s[self.axis + 1 :]) for s in shapes}
            if len(rest) == 1 and all(0 <= self.axis < len(s) for s in shapes):
                total = sum(s[self.axis] for s in shapes)
                return (*first[: self.axis], total, *first[self.axis + 1 :])
        elif len(set(shapes)) == 1 and self.how == "sum":
            return first
        elif len(set(shapes)) == 1 and 0 <= self.axis <= len(first):
            return (*first[: self.axis], len(shapes), *first[self.axis :])
        listed = ", ".join(map(str, shapes))
        raise ValueError(f"arrays of shapes {listed} cannot be joined by {self}")

    def value(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        values = [node.value(arrays) for node in self.nodes]
        if self.how == "concat":
            return np.concatenate(values, axis=self.axis)
        return np.stack(values, axis=self.axis) if self.how == "stack" else np.sum(values, axis=0)

    def pull(self, gradient: np.ndarray, into: dict[str, np.ndarray]) -> None:
        start = 0
        for k, node in enumerate(self.nodes):
            if self.how == "sum":
                node.pull(gradient, into)
            elif self.how == "stack":
                node.pull(np.take(gradient, k, axis=self.axis), into)
            else:
                stop = start + node.shape[self.axis]
                node.pull(Part(self.axis, start, stop)(gradient), into)
                start = stop

    def __str__(self) -> str:
        return "sum" if self.how == "sum" else f"{self.how} {self.axis}"


Node = Source | Zeros | Applied | Joined


def sources(node: Node) -> tuple[str, ...]:
    """The names of all parameters that a node is made of, in order, each once."""
    return tuple(dict.fromkeys(s.name for s in _sources(node)))


def _sources(node: Node) -> Iterator[Source]:
    if isinstance(node, Source):
        yield node
    for child in _children(node):
        yield from _sources(child)


def _children(node: Node) -> Sequence[Node]:
    if isinstance(node, Applied):
        return (node.node,)
    return node.nodes if isinstance(node, Joined) else ()


def replaced(node: Node, by: Mapping[str, Node]) -> Node:
    """The same tree with other nodes in place of its sources.

    Raises:
        KeyError: a source that ``by`` lacks.
    """
    if isinstance(node, Source):
        return by[node.name]
    if isinstance(node, Applied):
        return Applied(node.step, replaced(node.node, by))
    if isinstance(node, Joined):
        return Joined(node.how, node.axis, tuple(replaced(n, by) for n in node.nodes))
    return node


def pieces_of(made: Node, whole: Node) -> dict[str, Node]:
    """Take a parameter apart: if ``whole`` is put together as ``made`` says, what are the sources?

    Args:
        made: without sums and parts, each source in it once.
        whole: the array that it makes.

    Returns:
        source name -> how it is made from ``whole``.
    """
    if isinstance(made, Source):
        return {made.name: whole}
    if isinstance(made, Applied):
        step = made.step.inverse(made.node.shape)
        assert step is not None, made.step
        return pieces_of(made.node, Applied(step, whole))
    found: dict[str, Node] = {}
    start = 0
    for k, node in enumerate(_children(made)):
        assert isinstance(made, Joined) and made.how != "sum", made
        if made.how == "stack":
            piece: Any = Applied(Reshape(node.shape), Applied(Part(made.axis, k, k + 1), whole))
        else:
            stop = start + node.shape[made.axis]
            piece, start = Applied(Part(made.axis, start, stop), whole), stop
        found |= pieces_of(node, piece)
    return found
