"""Query, key and value: three layers on one side, one array on the other.

Slots: ``q.weight`` (out, in), ``q.bias`` (out,), and so for ``k`` and ``v``. The packed kernel
holds the three one after the other, or head by head; which, where the number of heads is known, is
tried by running. Projections that are three on both sides, or one on both, are ordinary layers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from crosscheck.adapters.base import Parameter
from crosscheck.weights.expressions import Applied, Joined, Node, Reshape, Source, Transpose
from crosscheck.weights.layers import Layer
from crosscheck.weights.layouts import normal_form
from crosscheck.weights.readings import Reading, Unit

__all__ = ["bridge", "fused_units", "mixed_units", "triple_units"]

_QKV = "qkv"
_ONE = re.compile(
    r"(?:w_?|to_?|c_?)?(q|query|k|key|v|value)s?_?(?:proj|projection|lin|linear|dense|kernel)?"
    r"(?:_proj_weight)?$",
    re.IGNORECASE,
)
_FUSED = re.compile(r"c_attn|qkv|in_proj|query_key_value|kqv", re.IGNORECASE)


def triple_units(layers: Sequence[Layer]) -> list[Unit]:
    """Siblings named after query, key and value."""
    groups: defaultdict[str, dict[str, Layer]] = defaultdict(dict)
    for layer in layers:
        parent, name = _split(layer.path)
        match = _ONE.match(name)
        if match and "weight" in layer.parameters:
            groups[parent].setdefault(match[1][0].lower(), layer)
    found = []
    for path, members in groups.items():
        readings = [r for turned in (False, True) if (r := _triple(members, turned)) is not None]
        readings = readings[:1] if readings[1:] == readings[:1] else readings
        if readings:
            parameters = [p for k in _QKV for p in members[k].parameters.values()]
            used = tuple(p for p in parameters if p.name in readings[0].made)
            found.append(Unit(path, used, tuple(readings)))
    return found


def _triple(members: Mapping[str, Layer], turned: bool) -> Reading | None:
    """The reading of three projections; None where one is missing or has another form.

    Args:
        turned: kernels without named axes are (in, out), else (out, in).
    """
    made: dict[str, Node] = {}
    for letter, layer in members.items():
        for role, parameter in layer.parameters.items():
            node = _single(f"{letter}.{role}", parameter, turned)
            if node is not None:
                made[parameter.name] = node
    reading = Reading("qkv", made, "in first" if turned else "out first")
    complete = all(f"{letter}.weight" in reading.slots for letter in _QKV)
    return reading if complete else None


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


def fused_units(layers: Sequence[Layer], triples: Sequence[Unit]) -> list[Unit]:
    """Layers that may hold what one of the other side's triples holds, by shape."""
    found = []
    for layer in layers:
        weight = layer.parameters.get("weight")
        if weight is None or weight.value.ndim != 2:
            continue
        readings = {
            str(reading.made): reading
            for triple in triples
            for other in triple.readings
            for reading in _fused_readings(layer, other, triple.parameters)
        }
        if readings:
            made = next(iter(readings.values())).made
            used = tuple(p for p in layer.parameters.values() if p.name in made)
            found.append(Unit(layer.path, used, tuple(readings.values())))
    named = [u for u in found if _FUSED.search(u.path + u.parameters[0].name)]
    return named or found


def _fused_readings(
    layer: Layer, triple: Reading, parameters: Sequence[Parameter]
) -> Iterator[Reading]:
    weight, bias = layer.parameters["weight"], layer.parameters.get("bias")
    slots = triple.slots
    shapes = [slots[f"{k}.weight"].shape for k in _QKV]
    if len({s[1] for s in shapes}) != 1:
        return
    rows, columns = sum(s[0] for s in shapes), shapes[0][1]
    known: dict[tuple[str, ...], list[bool]] = {("out", "in"): [False], ("in", "out"): [True]}
    for turned in known.get(weight.axes or (), [False, True]):
        if weight.value.shape != ((columns, rows) if turned else (rows, columns)):
            continue
        for heads in (None, *_heads(parameters)):
            if heads and len(set(shapes)) > 1:
                continue
            node = _packed(
                [Source(f"{k}.weight", s) for k, s in zip(_QKV, shapes, strict=True)], heads
            )
            made = {weight.name: Applied(Transpose((1, 0)), node) if turned else node}
            if bias is not None and bias.value.shape == (rows,):
                parts = [Source(f"{k}.bias", s[:1]) for k, s in zip(_QKV, shapes, strict=True)]
                made[bias.name] = _packed(parts, heads)
            label = "q k v" if heads is None else f"q k v for each of {heads} heads"
            yield Reading("qkv", made, label)


def mixed_units(parameters: Sequence[Parameter]) -> list[Unit]:
    """Three kernels with their biases in one array, as PyTorch has it where sizes differ."""
    layers: defaultdict[str, dict[str, Parameter]] = defaultdict(dict)
    for p in parameters:
        layers[p.layer][re.split(r"[./]", p.name)[-1]] = p
    found = []
    for path, own in layers.items():
        kernels = [own.get(f"{letter}_proj_weight") for letter in _QKV]
        made: dict[str, Node] = {}
        parts = []
        for letter, kernel in zip(_QKV, kernels, strict=True):
            if kernel is not None:
                made[kernel.name] = Source(f"{letter}.weight", kernel.value.shape)
                parts.append(Source(f"{letter}.bias", kernel.value.shape[:1]))
        if len(made) == len(_QKV):
            bias = own.get("in_proj_bias")
            if bias is not None:
                made[bias.name] = Joined("concat", 0, tuple(parts))
            used = tuple(p for p in own.values() if p.name in made)
            found.append(Unit(path, used, (Reading("qkv", made),)))
    return found


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
    """Query, key and value one after the other, or head by head."""
    if heads is None:
        return Joined("concat", 0, tuple(parts))
    size = parts[0].shape[0] // heads
    rest = parts[0].shape[1:]
    split: list[Node] = [Applied(Reshape((heads, 1, size, *rest)), p) for p in parts]
    whole = Joined("concat", 1, tuple(split))
    return Applied(Reshape((3 * heads * size, *rest)), whole)


def bridge(slot: str, ours: Mapping[str, Source]) -> Node | None:
    """Slots of projections have one counterpart."""
    return ours.get(slot)
