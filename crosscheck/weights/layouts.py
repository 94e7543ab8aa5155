"""The layouts that map one parameter onto another: by the names of the axes, else by shape.

Names of axes: ``out``, ``in``, ``d h w``, ``channel``, ``row``, ``dim``. An axis that was split is
named ``out/0, out/1, ...`` (heads and head size; the others likewise). ``in`` with ``mult`` are the
two halves of a depthwise kernel's output axis. A spatial axis that runs the other way, in a
transposed convolution that does not turn its kernel, is ``-h``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from crosscheck.adapters.base import Parameter
from crosscheck.weights.expressions import (
    Applied,
    Flip,
    Node,
    Reshape,
    Shape,
    Source,
    Transpose,
)
from crosscheck.weights.transform import Transform

__all__ = ["NormalForm", "normal_form", "transforms"]

Axes = tuple[str, ...] | None
_ORDER = ("out", "in", "d", "h", "w", "channel", "row", "dim")
_SPACE = frozenset("dhw")


@dataclass(frozen=True)
class NormalForm:
    """A parameter with named axes in the one order that all agree on, split axes merged.

    Attributes:
        axes, shape: in normal form.
        order: normal form = parameter.transpose(order), then merged, then flipped.
        split: the shape between the two.
        flipped: axes of the normal form that the parameter stores backwards.
    """

    axes: tuple[str, ...]
    shape: Shape
    order: tuple[int, ...]
    split: Shape
    flipped: tuple[int, ...]

    def node(self, whole: Node) -> Node:
        """The normal form of a parameter."""
        merged = Applied(Reshape(self.shape), Applied(Transpose(self.order), whole))
        return Applied(Flip(self.flipped), merged) if self.flipped else merged

    def stored(self, normal: Node) -> Node:
        """The parameter, from its normal form."""
        if self.flipped:
            normal = Applied(Flip(self.flipped), normal)
        back = tuple(self.order.index(a) for a in range(len(self.order)))
        return Applied(Transpose(back), Applied(Reshape(self.split), normal))


def normal_form(parameter: Parameter) -> NormalForm | None:
    """The normal form; None where the axes have no names, or names that are not known here."""
    return _normal_form(parameter.axes, parameter.value.shape)


@lru_cache(maxsize=1 << 12)
def _normal_form(axes: Axes, shape: Shape) -> NormalForm | None:
    if axes is None or len(axes) != len(shape):
        return None
    names = _with_split(axes)
    bare = [n.lstrip("-").partition("/")[0] for n in names]
    if any(b not in _ORDER for b in bare):
        return None
    order = sorted(range(len(names)), key=lambda a: (_ORDER.index(bare[a]), names[a]))
    merged: dict[str, int] = {}
    for a in order:
        merged[bare[a]] = merged.get(bare[a], 1) * shape[a]
    if "mult" in axes:  # one input channel for each of its kernels
        merged = {"out": merged.pop("out"), "in": 1, **merged}
    back = {n.lstrip("-") for n in names if n.startswith("-")}
    return NormalForm(
        axes=tuple(merged),
        shape=tuple(merged.values()),
        order=tuple(order),
        split=tuple(shape[a] for a in order),
        flipped=tuple(i for i, n in enumerate(merged) if n in back),
    )


def _with_split(axes: tuple[str, ...]) -> tuple[str, ...]:
    if "mult" not in axes:
        return axes
    return tuple({"in": "out/0", "mult": "out/1"}.get(a, a) for a in axes)


def transforms(reference: Parameter, candidate: Parameter) -> list[Transform]:
    """The layouts that map one parameter onto the other, most likely first; empty if none does."""
    shapes = reference.value.shape, candidate.value.shape
    found: list[Transform] = []
    for ours, theirs in _readings(reference.axes, candidate.axes):
        made_of = ours, shapes[0], theirs, shapes[1]
        some = _alike("", *made_of)
        if any(t.expression is not None for t in some):  # an expression names its source
            some = _transforms(reference.name, *made_of)
        found += [one for one in some if one not in found]
    return found


def _readings(ours: Axes, theirs: Axes) -> list[tuple[Axes, Axes]]:
    """What the axes of two parameters may be. A kernel of Linen is named alike whether its layer is
    a transposed convolution, which need not turn it, or not: its counterpart tells."""
    if _is_transposed(ours) and _is_plain(theirs):
        return [(ours, axes) for axes in _of_transposed(theirs)]
    if _is_transposed(theirs) and _is_plain(ours):
        return [(axes, theirs) for axes in _of_transposed(ours)]
    return [(ours, theirs)]


def _is_transposed(axes: Axes) -> bool:
    """Whether these are of the kernel of a transposed convolution that turns it."""
    spatial = axes is not None and bool(_SPACE.intersection(axes))
    return (
        spatial and axes is not None and (axes[:2] == ("in", "out") or axes[-2:] == ("out", "in"))
    )


def _is_plain(axes: Axes) -> bool:
    """Whether these are the axes that Flax gives every kernel of a convolution."""
    return axes is not None and bool(_SPACE.intersection(axes)) and axes[-2:] == ("in", "out")


def _of_transposed(axes: Axes) -> list[Axes]:
    """Those of a transposed convolution: that does not turn its kernel, or does; or of none."""
    assert axes is not None
    return [(*(f"-{name}" for name in axes[:-2]), "in", "out"), (*axes[:-2], "out", "in"), axes]


def _transforms(
    name: str, our_axes: Axes, r: Shape, their_axes: Axes, c: Shape
) -> tuple[Transform, ...]:
    if math.prod(r) != math.prod(c):
        return ()
    ours, theirs = _normal_form(our_axes, r), _normal_form(their_axes, c)
    source = Source(name, r)
    if ours is not None and theirs is not None:
        return _named(source, ours, theirs)
    if sorted(r) != sorted(c):
        return _split(source, c)
    if our_axes is not None and their_axes is not None:
        if sorted(our_axes) != sorted(their_axes):
            return (Transform(),) if len(r) == 1 else ()
        order = tuple(our_axes.index(name) for name in their_axes)
        return (_permuted(order),) if tuple(r[a] for a in order) == c else ()
    return tuple(_permuted(order) for order in _orders(len(r)) if tuple(r[a] for a in order) == c)


_alike = lru_cache(maxsize=1 << 12)(_transforms)
"""The layers of a model are of few makes."""


def _named(source: Source, ours: NormalForm, theirs: NormalForm) -> tuple[Transform, ...]:
    normal = ours.node(source)
    if patches := _of_patches(normal, ours, theirs):
        return tuple(Transform.of(theirs.stored(node)) for node in patches)
    if ours.shape == theirs.shape:
        alike = ours.axes == theirs.axes or len(ours.shape) == 1
    else:  # a convolution with windows of one pixel is a dense layer
        alike = _of_one_pixel(ours, theirs) or _of_one_pixel(theirs, ours)
        normal = Applied(Reshape(theirs.shape), normal)
    return (Transform.of(theirs.stored(normal)),) if alike else ()


def _of_one_pixel(conv: NormalForm, dense: NormalForm) -> bool:
    """Whether a kernel is the other one but for spatial axes of length 1."""
    axes = [(name, n) for name, n in zip(conv.axes, conv.shape, strict=True) if name not in _SPACE]
    sizes = {n for name, n in zip(conv.axes, conv.shape, strict=True) if name in _SPACE}
    return sizes == {1} and axes == list(zip(dense.axes, dense.shape, strict=True))


def _of_patches(normal: Node, ours: NormalForm, theirs: NormalForm) -> list[Node]:
    """A convolution whose windows lie side by side, as a dense layer on patches, or the other way
    round: a patch holds its channels first, as PyTorch unfolds an image, or last."""
    conv, dense = (ours, theirs) if len(ours.axes) > len(theirs.axes) else (theirs, ours)
    space = len(conv.axes) - 2
    if dense.axes != ("out", "in") or conv.axes[:2] != ("out", "in") or _of_one_pixel(conv, dense):
        return []
    if space < 1 or (conv.shape[0], math.prod(conv.shape[1:])) != dense.shape:
        return []
    last = (0, *range(2, space + 2), 1)
    if conv is ours:
        turned = Applied(Transpose(last), normal)
        return [Applied(Reshape(dense.shape), node) for node in (normal, turned)]
    whole = Applied(Reshape(tuple(conv.shape[a] for a in last)), normal)
    back = tuple(last.index(a) for a in range(len(last)))
    return [Applied(Reshape(conv.shape), normal), Applied(Transpose(back), whole)]


def _split(source: Source, c: Shape) -> tuple[Transform, ...]:
    """A matrix or bias that one side stores with an axis split, or with axes of size 1 more.

    The side with the named axes fixes the order; without any, a row-major reshape of the matrix or
    of its transpose.
    """
    r = source.shape
    ones = tuple(n for n in r if n > 1) == tuple(n for n in c if n > 1)
    if ones or min(len(r), len(c)) == 1:
        found = [Transform.of(Applied(Reshape(c), source))]
        wide = tuple(n for n in r if n > 1)
        if len(r) != len(c) and len(wide) == 2 and wide[0] == wide[1]:  # turned, it fits as well
            matrix_t = Applied(Transpose((1, 0)), Applied(Reshape(wide), source))
            found.append(Transform.of(Applied(Reshape(c), matrix_t)))
        return tuple(found)
    if len(r) == len(c) or min(len(r), len(c)) != 2:
        return ()
    found = []
    for turned in (False, True):
        matrix = (r if len(r) == 2 else c)[::-1] if turned else (r if len(r) == 2 else c)
        long = c if len(r) == 2 else r
        if not _merges(long, matrix):
            continue
        if len(r) == 2:
            node: Node = Applied(Transpose((1, 0)), source) if turned else source
            found.append(Transform.of(Applied(Reshape(c), node)))
        else:
            node = Applied(Reshape(matrix), source)
            found.append(Transform.of(Applied(Transpose((1, 0)), node) if turned else node))
    return tuple(found)


def _merges(long: Shape, short: Shape) -> bool:
    """Whether neighbouring axes of one shape multiply to the two of the other."""
    return any((math.prod(long[:k]), math.prod(long[k:])) == short for k in range(1, len(long)))


def _permuted(order: tuple[int, ...]) -> Transform:
    return Transform() if order == tuple(range(len(order))) else Transform(axes=order)


def _orders(ndim: int) -> list[tuple[int, ...]]:
    """Orders of axes in use: same, transposed, and those of convolution kernels."""
    same = tuple(range(ndim))
    if ndim < 2:
        return [same]
    space = same[2:]
    orders = [same, (1, 0, *space)]
    if ndim > 2:
        orders += [(*space, 1, 0), (0, *space, 1), (1, *space, 0), (*space, 0, 1)]
    return orders
