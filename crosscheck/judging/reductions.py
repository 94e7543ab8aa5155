"""How long the sums behind a value are, and how large their terms: n and scale of the noise floor.

Known from shapes: a parameter's axes say over what a layer sums, forward and backward; an output
smaller than its input was reduced by the difference.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from crosscheck.adapters.base import Parameter
from crosscheck.compare import root_mean_squares
from crosscheck.comparisons import Item
from crosscheck.observers import Key
from crosscheck.trace import Trace, owner

__all__ = ["Reductions"]

_KEPT_FORWARD = {"out", "channel", "row", "mult"}  # axes that a layer's output keeps
_SUMMED = ("forward", "backward", "parameter_gradient")  # phases whose values are sums


@dataclass
class Reductions:
    """Lengths and scales for the comparisons of one check.

    Args:
        parameters: of the reference.
        trace: the reference's free run.
        aligned: the reference sites that are forced; what lies between them is one stretch.
    """

    parameters: Sequence[Parameter]
    trace: Trace
    aligned: frozenset[str]
    _owned: dict[str, list[Parameter]] = field(default_factory=dict)
    _named: dict[str, Parameter] = field(default_factory=dict)
    _sizes: dict[Key, float] = field(default_factory=dict)
    _lengths: dict[Key, float] = field(default_factory=dict)
    _scales: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._named = {p.name: p for p in self.parameters}
        layers = set(self.trace.info.layers)
        owned: defaultdict[str, list[Parameter]] = defaultdict(list)
        for parameter in self.parameters:
            owned[self._stretch(parameter.layer, layers)].append(parameter)
        self._owned = dict(owned)

    def _stretch(self, layer: str, layers: set[str]) -> str:
        """The innermost aligned site that contains a layer: where its rounding is seen."""
        path = layer
        while path:
            if path in self.aligned and path in layers:
                return path
            path = path.rpartition(".")[0] or path.rpartition("/")[0]
        return ""

    def length(self, item: Item) -> float:
        """n: number of terms summed into one element of the value."""
        if item.kind == "cotangent":
            return 4.0  # a sum over the few consumers of the value
        if item.kind == "input" or item.phase not in _SUMMED:
            return 1.0
        key = item.reference_key
        if key not in self._lengths:
            of_gradient = item.phase == "parameter_gradient"
            made = self._gradient_length(item.reference) if of_gradient else self._site_length(key)
            self._lengths[key] = made
        return self._lengths[key]

    def _site_length(self, key: Key) -> float:
        kind, reference = key
        parameters = self._owned.get(owner(reference).partition("#")[0], [])
        if kind == "activation":
            return max([self._shrinkage(reference), *map(_forward_length, parameters)])
        return max([1.0, *map(_backward_length, parameters)])

    def scale(self, item: Item) -> float:
        """Size (2-norm) of a gradient whose terms did not cancel; 0 where nothing is known.

        √numel·√n·rms(dy)·rms(x): n terms of random sign in every element.
        """
        if item.phase != "parameter_gradient":
            return 0.0
        if item.reference not in self._scales:
            self.ahead([item])
        return self._scales[item.reference]

    def _factors(self, parameter: Parameter) -> list[Key]:
        """Keys of the values whose products are summed in a gradient, as far as they are known."""
        dy: Key = ("cotangent", parameter.layer)
        if dy not in self.trace.values or parameter.kind == "embedding":
            return []
        x: Key = ("input", parameter.layer)
        dense = parameter.role == "weight" and parameter.kind in ("dense", "conv")
        return [dy, x] if dense and x in self.trace.values else [dy]

    def ahead(self, items: Iterable[Item]) -> None:
        """The `scale` of these items is going to be asked for: look at their values in one call."""
        gradients = (i for i in items if i.phase == "parameter_gradient")
        new = [i for i in gradients if i.reference not in self._scales]
        factors = [self._factors(self._named[item.reference]) for item in new]
        keys = [key for key in dict.fromkeys(chain(*factors)) if key not in self._sizes]
        values = [self.trace.values[key] for key in keys]
        self._sizes |= zip(keys, root_mean_squares(values), strict=True)
        for item, found in zip(new, factors, strict=True):
            size = self._named[item.reference].value.size
            sizes = [self._sizes[key] for key in found]
            scale = math.prod(sizes, start=math.sqrt(size * self.length(item)))
            self._scales[item.reference] = scale if found else 0.0

    @cached_property
    def _largest(self) -> int:
        """Elements of the largest activation."""
        return max((math.prod(shape) for shape in self.trace.shapes().values()), default=1)

    def _shrinkage(self, site: str) -> float:
        value = self.trace.values["activation", site]
        inputs = [self.trace.values["input", s].size for s in self.trace.inputs_of(owner(site))]
        return max([1.0, *(float(size / max(value.size, 1)) for size in inputs)])

    def _gradient_length(self, name: str) -> float:
        parameter = self._named[name]
        value = self.trace.values.get(("activation", parameter.layer))
        if value is None:
            return max(1.0, self._largest / max(parameter.value.size, 1))
        kept = _kept(parameter, value.shape)
        return max(1.0, float(value.size / max(kept, 1)))


def _kept(parameter: Parameter, shape: tuple[int, ...]) -> int:
    """How many elements of an output of ``shape`` one term of a gradient sum is shared among."""
    if parameter.axes is None:  # then the largest axis that the output has as well
        return max((n for n in parameter.value.shape if n in shape[1:]), default=1)
    return math.prod(
        n // _gates(axis)
        for n, axis in zip(parameter.value.shape, parameter.axes, strict=True)
        if _bare(axis) in _KEPT_FORWARD
    )


def _bare(axis: str) -> str:
    """The name of an axis without its marks: split, read backwards, or made of gates."""
    return "out" if axis.startswith("gates:") else axis.lstrip("-").partition("/")[0]


def _gates(axis: str) -> int:
    """How many gates share an axis: each makes its own part of what the layer keeps."""
    return len(axis.partition(":")[2]) or 1


def _forward_length(parameter: Parameter) -> float:
    """Terms behind one output element: the product of the axes that the output does not keep."""
    if parameter.role != "weight" or parameter.kind in ("embedding", "norm"):
        return 1.0  # a norm's sums make statistics, in whose error they largely cancel
    if parameter.axes is None:
        return float(parameter.value.size / max(1, min(parameter.value.shape, default=1)))
    return float(_product(parameter, lambda axis: _bare(axis) not in _KEPT_FORWARD))


def _backward_length(parameter: Parameter) -> float:
    """Terms behind one element of the input's cotangent: the axes that the input does not have."""
    if parameter.role != "weight" or parameter.kind in ("embedding", "norm"):
        return 1.0
    if parameter.axes is None:
        return float(parameter.value.size / max(1, min(parameter.value.shape, default=1)))
    return float(_product(parameter, lambda axis: _bare(axis) not in ("in", "channel")))


def _product(parameter: Parameter, chosen) -> int:  # type: ignore[no-untyped-def]
    assert parameter.axes is not None
    return math.prod(
        n for n, axis in zip(parameter.value.shape, parameter.axes, strict=True) if chosen(axis)
    )
