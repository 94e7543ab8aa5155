"""LSTM, GRU and simple recurrent layers: gates, packed or apart, and one bias or two.

Slots: ``ih.GATE`` (hidden, in) and ``hh.GATE`` (hidden, hidden), ``GATE`` in ``i f g o`` (LSTM),
``r z n`` (GRU) or ``h`` (simple); biases ``b.GATE`` where one is added to the sum of both products,
``b_ih.GATE`` and ``b_hh.GATE`` where each product has its own. For ``n``, the new state of a GRU,
the two are different functions: the reset gate acts on the second alone.

An adapter that knows the order of the gates names the axis ``gates:ifgo``. Elsewhere the names of
the parameters and their shapes decide as far as they can; what stays open (the order of packed
gates, square matrices, ``[x, h]`` or ``[h, x]``) are further readings, tried by running.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from crosscheck.adapters.base import Parameter
from crosscheck.weights.expressions import (
    Applied,
    Joined,
    Node,
    Reshape,
    Source,
    Transpose,
    Zeros,
)
from crosscheck.weights.readings import Reading, Unit

__all__ = ["bridge", "units"]

_GATES = {"lstm": "ifgo", "gru": "rzn", "rnn": "h"}
_KIND = {4: "lstm", 3: "gru", 1: "rnn"}
_USUAL = {"lstm": ("ifgo", "ifog", "iofg", "figo", "fiog", "igfo"), "gru": ("rzn", "zrn")}
_SAME_GATE = {"c": "g", "a": "g", "h": "n"}  # cell, activation; the new state of a GRU
_GATE_LETTERS = frozenset("ifgcaorznh")
_SIDES = {
    **dict.fromkeys(("x", "i", "ih", "xh", "ix", "in", "input", "i2h"), "ih"),
    **dict.fromkeys(("h", "hh", "hx", "rec", "recurrent", "hidden", "h2h"), "hh"),
}
_TORCH = re.compile(r"(weight|bias)_(ih|hh)(?:_l(\d+))?(_reverse)?$")
_FLAX_LAYER = re.compile(r"(dense_)?([ih])([ifgorzn]?)_?$")
_BY_HAND = re.compile(r"(weights?|bias|w|u|r|b)_?(\w*)$")


@dataclass(frozen=True)
class _Entry:
    """One parameter of a cell, as far as its name tells."""

    parameter: Parameter
    what: str  # "weight" | "bias"
    side: str | None  # "ih", "hh", or None: both (a concatenated kernel), or nothing said
    gate: str | None  # None: all, packed
    order: str | None = None  # of the packed gates, if the adapter knows


@dataclass(frozen=True)
class _Style:
    """How a cell's names are built; the letters i and h are gates in some, sides in others.

    Attributes:
        by_gate: ``W_f, b_o``: the gate is all that a name says.
        side_at: where, in two letters, the side stands: ``W_xf`` (0), ``W_fx`` (1).
    """

    by_gate: bool
    side_at: int | None

    @classmethod
    def of(cls, tails: set[str]) -> _Style:
        by_gate = {"f", "o"} <= tails or {"r", "z"} <= tails
        sure = [t for t in tails if len(t) == 2 and set(t) & set("forz") and set(t) & set("xih")]
        places = {1 if t[0] in "forz" else 0 for t in sure}
        return cls(by_gate, places.pop() if len(places) == 1 else None)


def units(parameters: Sequence[Parameter]) -> list[Unit]:
    """The recurrent cells among a side's parameters; one unit per layer and direction."""
    groups: defaultdict[str, list[tuple[str, Parameter]]] = defaultdict(list)
    for parameter in parameters:
        path, leaf = _place(parameter)
        groups[path].append((leaf, parameter))
    found = []
    others: set[tuple[object, ...]] = set()  # what layers hold that are no cells; most are not
    for path, members in groups.items():
        make = tuple((leaf, p.kind, p.axes, p.value.shape) for leaf, p in members)
        if make in others:
            continue
        entries = _entries(members)
        readings = sorted(
            _readings(entries, {p.kind for _, p in members}), key=lambda r: -len(r.made)
        )
        if not readings:
            others.add(make)
        else:
            named = {name for reading in readings for name in reading.made}
            used = tuple(e.parameter for e in entries if e.parameter.name in named)
            found.append(
                Unit(path, used, tuple(readings), bool(re.search("reverse|backward", path)))
            )
    return found


def _place(parameter: Parameter) -> tuple[str, str]:
    """(path of the cell, the parameter's name in it)."""
    leaf = re.split(r"[./]", parameter.name)[-1]
    torch = _TORCH.match(leaf)
    if torch is not None and torch[3] is not None:  # a module of several layers and directions
        way = "backward" if torch[4] else "forward"
        return f"{parameter.home}.{way}.l{torch[3]}", leaf
    parent, _, last = parameter.home.rpartition(".")
    if leaf in ("kernel", "bias") and _FLAX_LAYER.match(last):
        return parent, f"{last}.{leaf}"
    return parameter.home, leaf


# -- names -----------------------------------------------------------------------------------------


def _entries(members: Sequence[tuple[str, Parameter]]) -> list[_Entry]:
    tails = {m[2].replace("_", "").lower() for leaf, _ in members if (m := _hand(leaf))}
    style = _Style.of(tails)
    named = {leaf for leaf, _ in members}
    entries = []
    for leaf, parameter in members:
        found = _known(leaf, named) or _by_hand(leaf, style)
        if found is not None:
            order = next(
                (a.partition(":")[2] for a in parameter.axes or () if a.startswith("gates:")), None
            )
            entries.append(_Entry(parameter, *found, order))
    return entries


def _known(leaf: str, named: set[str]) -> tuple[str, str | None, str | None] | None:
    """(what, side, gate) of a name that PyTorch, Keras, Flax or Equinox gives."""
    if torch := _TORCH.match(leaf):
        return torch[1], torch[2], None
    if leaf == "bias_n" and "weight_hh" in named:
        return "bias", "hh", "n"
    if "recurrent_kernel" in named:
        side = {"kernel": "ih", "recurrent_kernel": "hh"}.get(leaf)
        if side:
            return "weight", side, None
    layer, dot, end = leaf.partition(".")
    if dot and (flax := _FLAX_LAYER.match(layer)):
        what = "weight" if end == "kernel" else "bias"
        return what, f"{flax[2]}h" if flax[2] == "i" else "hh", flax[3] or None
    return None


def _hand(leaf: str) -> re.Match[str] | None:
    return _BY_HAND.match(leaf[:1].lower() + leaf[1:])


def _by_hand(leaf: str, style: _Style) -> tuple[str, str | None, str | None] | None:
    match = _hand(leaf)
    if match is None:
        return None
    head, tail = match[1].lower(), match[2].replace("_", "").lower()
    what = "bias" if head in ("b", "bias") else "weight"
    side = "hh" if head in ("u", "r") else None
    if not tail:
        return what, side, None
    if style.by_gate and tail in _GATE_LETTERS:
        return what, side, _gate(tail)
    if len(tail) == 2 and style.side_at is not None:
        letter, gate = tail[style.side_at], tail[1 - style.side_at]
        if letter in "xih" and gate in _GATE_LETTERS:
            return what, "hh" if letter == "h" else "ih", _gate(gate)
    return (what, _SIDES[tail], None) if tail in _SIDES else None


def _gate(letter: str) -> str:
    return _SAME_GATE.get(letter, letter)


# -- shapes ----------------------------------------------------------------------------------------


def _readings(entries: Sequence[_Entry], kinds: set[str]) -> Iterator[Reading]:
    """Everything that names and shapes allow, the likeliest first."""
    weights = [e for e in entries if e.what == "weight"]
    if len(weights) > 1 and not any(e.side == "hh" for e in weights):
        weights = [e for e in weights if e.gate is not None]
    for entry in weights:
        if entry.side is None and any(e.side == "hh" and e.gate == entry.gate for e in weights):
            weights = [_with_side(e) if e.side is None else e for e in weights]
            break
    biases = [e for e in entries if e.what == "bias"]
    for hidden, kind in _sizes(weights, kinds):
        for order in _orders(kind, [*weights, *biases]):
            for out_first in (True, False) if _torch_like(weights) else (False, True):
                for x_first in (True, False) if _concatenated(weights) else (True,):
                    made = _made(weights, biases, kind, hidden, order, out_first, x_first)
                    if made is not None:
                        label = f"gates {' '.join(order)}"
                        label += "" if x_first else ", [h, x]"
                        label += ", out first" if out_first else ", in first"
                        yield Reading(kind, made, label)


def _with_side(entry: _Entry) -> _Entry:
    return _Entry(entry.parameter, entry.what, "ih", entry.gate, entry.order)


def _torch_like(weights: Sequence[_Entry]) -> bool:
    return any("_ih" in e.parameter.name for e in weights)


def _concatenated(weights: Sequence[_Entry]) -> bool:
    return any(e.side is None for e in weights)


def _sizes(weights: Sequence[_Entry], kinds: set[str]) -> Iterator[tuple[int, str]]:
    """(hidden units, kind) that the recurrent (or concatenated) weights allow."""
    tail = [e for e in weights if e.side == "hh"] or [e for e in weights if e.side is None]
    if not tail or any(e.parameter.value.ndim != 2 for e in weights):
        return
    known = kinds & set(_GATES)
    short, long = sorted(tail[0].parameter.value.shape)
    gates = {e.gate for e in weights}
    if None not in gates:
        kind = next((k for k, g in _GATES.items() if gates == set(g)), None)
        if kind is not None:
            yield short, kind
        return
    for count, kind in _KIND.items():
        if known and kind not in known:
            continue
        if tail[0].side == "hh":
            if long == count * short and (kind != "rnn" or len(weights) == 2):
                yield short, kind
        elif known:  # else any dense layer could be one, [x, h] concatenated
            yield from ((n // count, kind) for n in (short, long) if n % count == 0)


def _orders(kind: str, entries: Sequence[_Entry]) -> Iterator[str]:
    packed = [e for e in entries if e.gate is None]
    known = {e.order for e in packed if e.order}
    if known or not packed or kind == "rnn":
        yield from known or (_GATES[kind],)
        return
    usual = _USUAL[kind]
    if any(e.parameter.name.endswith("recurrent_kernel") for e in packed) and kind == "gru":
        usual = usual[::-1]
    yield from usual
    yield from ("".join(p) for p in itertools.permutations(_GATES[kind]) if "".join(p) not in usual)


def _made(
    weights: Sequence[_Entry],
    biases: Sequence[_Entry],
    kind: str,
    hidden: int,
    order: str,
    out_first: bool,
    x_first: bool,
) -> dict[str, Node] | None:
    """How every parameter is put together, or None where a shape does not fit."""
    made: dict[str, Node] = {}
    width: int | None = None
    for e in weights:
        rows, columns = e.parameter.value.shape if out_first else e.parameter.value.shape[::-1]
        gates = e.gate or order
        if rows != hidden * len(gates):
            return None
        n_in = hidden if e.side == "hh" else columns if e.side == "ih" else columns - hidden
        if (
            n_in <= 0
            or columns != n_in + hidden * (e.side is None)
            or e.gate
            not in (
                None,
                *_GATES[kind],
            )
        ):
            return None
        if e.side != "hh":
            if width not in (None, n_in):
                return None
            width = n_in
        sides = [e.side] if e.side else ["ih", "hh"] if x_first else ["hh", "ih"]
        shapes = {"ih": (hidden, n_in), "hh": (hidden, hidden)}
        blocks = [_concat(0, [Source(f"{s}.{g}", shapes[s]) for g in gates]) for s in sides]
        node = _concat(1, blocks)
        made[e.parameter.name] = node if out_first else Applied(Transpose((1, 0)), node)
    found = _biases(biases, kind, hidden, order)
    slots = [s for n in made.values() for s in _names(n)]
    complete = width is not None and len(slots) == len(set(slots)) == 2 * len(_GATES[kind])
    return made | found if complete and found is not None else None


def _names(node: Node) -> list[str]:
    if isinstance(node, Source):
        return [node.name]
    if isinstance(node, Applied):
        return _names(node.node)
    return [n for child in node.nodes for n in _names(child)] if isinstance(node, Joined) else []


def _concat(axis: int, nodes: Sequence[Node]) -> Node:
    return nodes[0] if len(nodes) == 1 else Joined("concat", axis, tuple(nodes))


def _biases(biases: Sequence[_Entry], kind: str, hidden: int, order: str) -> dict[str, Node] | None:
    """Biases; those of another size belong to something else and are left out."""
    total = hidden * len(order)
    both = [e for e in biases if e.gate is None and e.parameter.value.shape == (2, total)]
    if both and kind == "gru":
        sides = [_packed(f"b_{side}", order, hidden) for side in ("ih", "hh")]
        return {both[0].parameter.name: Joined("stack", 0, (sides[0], sides[1]))}
    fitting = [e for e in biases if e.parameter.value.size == hidden * len(e.gate or order)]
    sides_of: defaultdict[str, list[str | None]] = defaultdict(list)
    for e in fitting:
        for gate in e.gate or order:
            sides_of[gate].append(e.side)
    if any(len(sides) > 2 or len(set(sides)) < len(sides) for sides in sides_of.values()):
        return None
    made: dict[str, Node] = {}
    for e in fitting:
        slots = [_bias_slot(g, e.side, len(sides_of[g])) for g in e.gate or order]
        node = _concat(0, [Source(slot, (hidden,)) for slot in slots])
        shape = e.parameter.value.shape
        made[e.parameter.name] = node if len(shape) == 1 else Applied(Reshape(shape), node)
    return made


def _packed(name: str, order: str, hidden: int) -> Node:
    return _concat(0, [Source(f"{name}.{g}", (hidden,)) for g in order])


def _bias_slot(gate: str, side: str | None, of_gate: int) -> str:
    if of_gate == 2:
        return f"b_{side or 'ih'}.{gate}"
    return f"b_{side}.n" if gate == "n" and side else f"b.{gate}"


# -- between two readings --------------------------------------------------------------------------


def bridge(slot: str, ours: Mapping[str, Source]) -> Node | None:
    """A slot of the candidate, made of the reference's.

    Two biases become one by their sum, and one becomes two with zeros for the second; not so for
    the new state of a GRU, whose second bias has no place in a first.
    """
    if slot in ours:
        return ours[slot]
    name, _, gate = slot.partition(".")
    if gate == "n":
        first = ours.get("b_ih.n") or ours.get("b.n")
        return Zeros(first.shape) if name == "b_hh" and first is not None else first
    pair = [ours[s] for s in (f"b_ih.{gate}", f"b_hh.{gate}") if s in ours]
    if name == "b" and pair:
        return Joined("sum", 0, tuple(pair))
    single = ours.get(f"b.{gate}")
    if name == "b_ih":
        return single
    return Zeros(single.shape) if name == "b_hh" and single is not None else None
