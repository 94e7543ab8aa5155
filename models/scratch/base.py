"""The layer protocol: a forward, a backward, and a tree of named children."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, ClassVar

Array = Any  # numpy.ndarray or cupy.ndarray


def array_namespace(x: Array) -> Any:
    """The module that ``x`` comes from: ``numpy``, or ``cupy`` if it has been imported already."""
    return sys.modules[type(x).__module__.partition(".")[0]]


class Layer:
    """A differentiable function whose derivative is written by hand.

    ``forward`` keeps what ``backward`` will need in private attributes, so a layer runs once per
    forward pass. ``backward`` takes the cotangent of the output, adds the gradients of the
    parameters to ``grads`` and returns the cotangent of the input: a tuple for several inputs,
    None for integers. Everything is computed in the dtype of the input and the parameters.

    Children are the public attributes that are layers or lists of layers. A private reference to
    another layer (a tied head's embedding) owns nothing.
    """

    axes: ClassVar[dict[str, tuple[str, ...]]] = {}  # what each axis of a parameter runs over

    def __init__(self) -> None:
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.training = True

    def forward(self, *inputs: Array) -> Array:
        raise NotImplementedError

    def backward(self, dy: Array) -> Any:
        raise NotImplementedError

    def children(self) -> Iterator[tuple[str, Layer]]:
        """Direct children and their names in attribute order; ``blocks.0`` in a list."""
        for name, value in vars(self).items():
            if name.startswith("_"):
                continue
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, list):
                yield from ((f"{name}.{i}", v) for i, v in enumerate(value) if isinstance(v, Layer))

    def named_layers(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """This layer and all below it with their paths, parents first."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_layers(f"{prefix}.{name}" if prefix else name)

    def train(self, mode: bool = True) -> Layer:
        for _, layer in self.named_layers():
            layer.training = mode
        return self

    def eval(self) -> Layer:
        return self.train(False)

    def zero_grad(self) -> None:
        for _, layer in self.named_layers():
            for name, value in layer.params.items():
                layer.grads[name] = array_namespace(value).zeros_like(value)

    def accumulate(self, name: str, gradient: Array) -> None:
        # Not `+=`, which would round a float64 gradient into a float32 array.
        self.grads[name] = self.grads[name] + gradient

    def _add_parameter(self, name: str, value: Array) -> None:
        self.params[name] = value
        self.grads[name] = array_namespace(value).zeros_like(value)
