"""Layers that are several on one side and one on the other: query, key and value; the gate of a
feed-forward block and what it multiplies.

Slots: ``q.weight`` (out, in), ``q.bias`` (out,), and so for every member of a `Family`. The packed
kernel holds them one after the other, or head by head; which, and in what order where that is open,
is tried by running. Layers that are several on both sides, or one on both, are ordinary ones.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from crosscheck.adapters.base import Parameter
from crosscheck.weights.expressions import Applied, Joined, Node, Reshape, Source, Transpose
from crosscheck.weights.layers import Layer
from crosscheck.weights.layouts import normal_form
from crosscheck.weights.readings import Reading, Unit

__all__ = ["Family", "bridge", "packed_units", "several_units"]


@dataclass(frozen=True)
class Family:
    """Layers that are packed together.

    Attributes:
        kind: of the readings.
        names: words for a layer, in lower case -> the member that it is.
        orders: those in which members are packed, the likeliest first.
        packed: matches names of the packed layer; without such a name the shapes decide.
        by_head: they may lie head by head.
        alike: all members have one shape.
    """

    kind: str
    names: Mapping[str, str]
    orders: tuple[tuple[str, ...], ...]
    packed: re.Pattern[str]
    by_head: bool = False
    alike: bool = False

    @property
    def members(self) -> tuple[str, ...]:
        """In the likeliest order."""
        return self.orders[0]

    def member(self, name: str) -> tuple[str, str] | None:
        """The member that a layer's name, the last part of its path, stands for, behind words that
        all of its members have before it."""
        match = self._one.fullmatch(name)
        return (match["before"] or "", self.names[match["one"].lower()]) if match else None

    @cached_property
    def _one(self) -> re.Pattern[str]:
        words = "|".join(sorted(self.names, key=len, reverse=True))
        kind = "(?:proj|projection|lin|linear|dense|kernel)"
        one = (
            rf"(?P<before>\w+_)??(?:w_?|to_?|c_?|fc_?)?(?P<one>{words})s?_?{kind}?(?:_proj_weight)?"
        )
        return re.compile(one, re.IGNORECASE)


def several_units(family: Family, layers: Sequence[Layer]) -> list[Unit]:
    """Siblings named after the members of a family."""
    groups: defaultdict[tuple[str, str], dict[str, Layer]] = defaultdict(dict)
    for layer in layers:
        parent, name = _split(layer.path)
        known = family.member(name)
        if known is not None and _kernel(layer) is not None:
            before, member = known
            groups[parent, before].setdefault(member, layer)
    found = []
    for (path, _), members in groups.items():
        options = (_several(family, members, turned) for turned in (False, True))
        readings = [reading for reading in options if reading is not None]
        readings = readings[:1] if readings[1:] == readings[:1] else readings
        if readings:
            parameters = [p for m in family.members for p in members[m].parameters.values()]
            used = tuple(p for p in parameters if p.name in readings[0].made)
            found.append(Unit(path, used, tuple(readings)))
    return found


def _several(family: Family, members: Mapping[str, Layer], turned: bool) -> Reading | None:
    """The reading of all members; None where one is missing or has another form.

    Args:
        turned: kernels without named axes are (in, out), else (out, in).
    """
    made: dict[str, Node] = {}
    for member, layer in members.items():
        for role, parameter in layer.parameters.items():
            slot = f"{member}.{'weight' if role == 'other' else role}"
            node = _single(slot, parameter, turned)
            if node is not None:
                made[parameter.name] = node
    reading = Reading(family.kind, made, "in first" if turned else "out first")
    kernels = [reading.slots.get(f"{member}.weight") for member in family.members]
    if None in kernels or (family.alike and len({k.shape for k in kernels if k}) > 1):
        return None
    return reading


def _kernel(layer: Layer) -> Parameter | None:
    """Its weight; of a bare array that is a layer by its name alone, that."""
    lone = layer.parameters.get("other") if len(layer.parameters) == 1 else None
    return layer.parameters.get("weight", lone)


def _split(path: str) -> tuple[str, str]:
    parts = re.split(r"([./ ])", path)
    return "".join(parts[:-2]), parts[-1]


def _single(slot: str, parameter: Parameter, turned: bool) -> Node | None:
    """A kernel or bias of one projection, from its slot."""
    if slot.endswith("bias"):
        source = Source(slot, (parameter.value.size,))
        shape = parameter.value.shape
        return source if len(shape) == 1 else Applied(Reshape(shape), source)
    form = normal_form(parameter) if parameter.axes else None
    if form is not None:
        return form.stored(Source(slot, form.shape))
    if parameter.value.ndim != 2:
        return None
    if turned:
        return Applied(Transpose((1, 0)), Source(slot, parameter.value.shape[::-1]))
    return Source(slot, parameter.value.shape)


def packed_units(family: Family, layers: Sequence[Layer], several: Sequence[Unit]) -> list[Unit]:
    """Layers that may hold what one of the other side's ``several`` holds, by shape."""
    if not several:
        return []
    found = []
    for layer in layers:
        weight = _kernel(layer)
        if weight is None or weight.value.ndim != 2:
            continue
        readings = {
            str(reading.made): reading
            for unit in several
            for other in unit.readings
            for reading in _packed_readings(family, weight, layer, other, unit.parameters)
        }
        if readings:
            made = next(iter(readings.values())).made
            used = tuple(p for p in layer.parameters.values() if p.name in made)
            found.append(Unit(layer.path, used, tuple(readings.values())))
    named = [u for u in found if family.packed.search(u.path + u.parameters[0].name)]
    return named or found


def _packed_readings(
    family: Family,
    weight: Parameter,
    layer: Layer,
    several: Reading,
    parameters: Sequence[Parameter],
) -> Iterator[Reading]:
    bias = layer.parameters.get("bias")
    shapes = {m: several.slots[f"{m}.weight"].shape for m in family.members}
    if len({s[1] for s in shapes.values()}) != 1:
        return
    rows, columns = sum(s[0] for s in shapes.values()), shapes[family.members[0]][1]
    known: dict[tuple[str, ...], list[bool]] = {("out", "in"): [False], ("in", "out"): [True]}
    for turned in known.get(weight.axes or (), [False, True]):
        if weight.value.shape != ((columns, rows) if turned else (rows, columns)):
            continue
        heads = (None, *(_heads(parameters) if family.by_head else ()))
        for order, count in ((order, count) for count in heads for order in family.orders):
            if count and len(set(shapes.values())) > 1:
                continue
            node = _packed([Source(f"{m}.weight", shapes[m]) for m in order], count)
            made = {weight.name: Applied(Transpose((1, 0)), node) if turned else node}
            if bias is not None and bias.value.shape == (rows,):
                parts = [Source(f"{m}.bias", shapes[m][:1]) for m in order]
                made[bias.name] = _packed(parts, count)
            label = " ".join(order) + ("" if count is None else f" for each of {count} heads")
            yield Reading(family.kind, made, label)


def _heads(parameters: Sequence[Parameter]) -> list[int]:
    """Numbers of heads that a kernel's split axes tell."""
    return sorted(
        {
            n
            for p in parameters
            for n, axis in zip(p.value.shape, p.axes or (), strict=False)
            if axis == "out/0"
        }
    )


def _packed(parts: Sequence[Node], heads: int | None) -> Node:
    """Members one after the other, or head by head."""
    if heads is None:
        return Joined("concat", 0, tuple(parts))
    size = parts[0].shape[0] // heads
    rest = parts[0].shape[1:]
    split: list[Node] = [Applied(Reshape((heads, 1, size, *rest)), p) for p in parts]
    whole = Joined("concat", 1, tuple(split))
    return Applied(Reshape((len(parts) * heads * size, *rest)), whole)


def bridge(slot: str, ours: Mapping[str, Source]) -> Node | None:
    """Slots of packed layers have one counterpart."""
    return ours.get(slot)
