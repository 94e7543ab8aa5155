"""What an ONNX graph says about modules: calls, sites, and which tensor every consumer reads.

PyTorch's exporter writes the stack of modules into every node (``pkg.torch.onnx.name_scopes`` and
``class_hierarchy``). A new call of a module begins where a scope appears that the previous node did
not have; what the call returns is the first output of its last node, and whatever else leaves it.
A file without this metadata has a site for every node that depends on an input.

A value passes boundaries on its way from producer to consumer: it leaves calls (sites of kind
``activation``) and enters others (kind ``input``). `Structure.way` lists them. A replacement at one
of them is seen by everything behind it and by nothing before it, as with taps in eager code.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import onnx

from crosscheck.adapters.base import input_site
from crosscheck.adapters.onnx.scopes import Frame, frames_of
from crosscheck.observers import Key
from crosscheck.taps import Kind

__all__ = ["Call", "Event", "Structure", "graph_inputs", "reads", "subgraphs"]

_NO_CONSTANTS = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"}
)
_FLOATS = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
    }
)


@dataclass(frozen=True)
class Call:
    """One call of a module. Call 0 is the model itself.

    Attributes:
        site: the name of its site (``cell#2``).
        path: the module's path (``cell``).
        layer: name of the module's class, or the operator.
        stack: the calls it happened in, outermost first, itself last.
    """

    site: str
    path: str
    layer: str
    stack: tuple[int, ...]


@dataclass(frozen=True)
class Event:
    """One value to show: ``value`` as it stands at (``kind``, ``site``) of ``call``."""

    kind: Kind
    site: str
    value: str
    call: int

    @property
    def key(self) -> Key:
        return self.kind, self.site


@dataclass
class Structure:
    """See the module. Sites of the model's inputs carry the names in the file.

    Attributes:
        annotated: whether the exporter's scopes were found.
        stacks: node index -> the calls it belongs to.
        events: in the order in which an eager run would show them; without the model's inputs.
    """

    graph: onnx.GraphProto
    root: str = "output"
    annotated: bool = True
    calls: list[Call] = field(default_factory=list)
    stacks: list[tuple[int, ...]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    producers: dict[str, int] = field(default_factory=dict)
    _leaving: dict[tuple[int, str], str] = field(default_factory=dict)
    _entering: dict[tuple[int, str], str] = field(default_factory=dict)
    _ways: dict[tuple[str, tuple[int, ...]], list[Key]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> Structure:
        """Read the graph."""
        found = cls(graph)
        found.producers = {o: i for i, n in enumerate(graph.node) for o in n.output if o}
        known = _Dataflow(graph)
        frames, found.annotated = frames_of(graph, known.static)
        if any(f.path == found.root for fs in frames for f in fs):
            found.root = "model_output"
        found._make_calls(frames)
        found._make_sites(known)
        return found

    @property
    def layers(self) -> dict[str, str]:
        return {call.site: call.layer for call in self.calls}

    @property
    def parents(self) -> dict[str, str]:
        return {call.site: self.calls[call.stack[-2]].site for call in self.calls[1:]}

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(e.site for e in self.events if e.call == 0)

    def site_of(self, node: int) -> str:
        """The innermost call that a node belongs to."""
        return self.calls[self.stacks[node][-1]].site

    def way(self, value: str, stack: tuple[int, ...]) -> list[Key]:
        """The sites that ``value`` passes from its producer to a consumer inside ``stack``; not to
        be changed."""
        if (value, stack) not in self._ways:  # every forced run asks for all of them
            self._ways[value, stack] = self._way(value, stack)
        return self._ways[value, stack]

    def _way(self, value: str, stack: tuple[int, ...]) -> list[Key]:
        keys: list[Key] = []
        if value in self.producers:
            start = self.stacks[self.producers[value]]
        else:
            start = stack[:1]
            keys.append(("activation", input_site(value)))
        common = _common(start, stack)
        left = [self._leaving.get((call, value)) for call in reversed(start[common:])]
        entered = [self._entering.get((call, value)) for call in stack[common:]]
        keys += [("activation", site) for site in left if site is not None]
        keys += [("input", site) for site in entered if site is not None]
        return keys

    def before(self, event: Event) -> list[Key]:
        """The sites that the value shown at ``event`` has passed before it."""
        stack = self.calls[event.call].stack
        outside = stack[:-1] or stack  # nothing is outside of the model
        way = self.way(event.value, stack if event.kind == "input" else outside)
        return way[: way.index(event.key)] if event.key in way else way

    # -- details -----------------------------------------------------------------------------------

    def _make_calls(self, frames: Sequence[tuple[Frame, ...]]) -> None:
        """Walk the nodes; `frames` holds the model itself at least."""
        layer = next((fs[0].layer for fs in frames if fs), "Model")
        self.calls = [Call(self.root, "", layer, (0,))]
        counts: Counter[str] = Counter()
        known: dict[tuple[int, str, int], int] = {}  # calls that the file numbers may be resumed
        previous: tuple[Frame, ...] = ()
        stack: tuple[int, ...] = (0,)
        for node, now in zip(self.graph.node, frames, strict=True):
            if node.op_type == "Constant" or not now:
                self.stacks.append((0,))  # belongs to nobody, and interrupts nothing
                continue
            same = _common(previous, now)
            stack = stack[: max(same, 1)]
            for frame in now[max(same, 1) :]:
                key = (stack[-1], frame.path, frame.number or 0)
                index = known.get(key) if frame.number is not None else None
                if index is None:
                    index = known[key] = self._new_call(frame, stack, counts)
                stack = (*stack, index)
            self.stacks.append(stack)
            previous = now

    def _new_call(self, frame: Frame, stack: tuple[int, ...], counts: Counter[str]) -> int:
        counts[frame.path] += 1
        number = counts[frame.path] if frame.number is None else frame.number + 1
        site = frame.path if number == 1 else f"{frame.path}#{number}"
        index = len(self.calls)
        self.calls.append(Call(site, frame.path, frame.layer, (*stack, index)))
        return index

    def _make_sites(self, known: _Dataflow) -> None:
        leaving: defaultdict[int, dict[str, None]] = defaultdict(dict)
        entering: defaultdict[int, dict[str, None]] = defaultdict(dict)
        for j, node in enumerate(self.graph.node):
            for value in reads(node):
                if known.visible(value):
                    self._cross(value, self.stacks[j], leaving, entering)
        for output in self.graph.output:
            if output.name in self.producers:
                self._cross(output.name, (0,), leaving, entering)
        first, last = self._extents()
        returned = {c: self._returned(c, last[c], leaving[c]) for c in last if c}
        for c, values in returned.items():
            for value, site in _numbered(self.calls[c].site, values):
                self._leaving[c, value] = site
            for value, site in _numbered(self.calls[c].site, entering[c]):
                self._entering[c, value] = site
        self.events = list(self._walk(first, last, returned, entering))
        self.sources = {e.site: s for e in self.events if (s := self._source(e)) is not None}

    def _cross(
        self,
        value: str,
        reader: tuple[int, ...],
        leaving: dict[int, dict[str, None]],
        entering: dict[int, dict[str, None]],
    ) -> None:
        """Note every boundary between a producer and one reader."""
        start = self.stacks[self.producers[value]] if value in self.producers else (0,)
        for call in set(start) - set(reader):
            leaving[call][value] = None
        for call in reader:
            if call not in start:
                entering[call][value] = None

    def _extents(self) -> tuple[dict[int, int], dict[int, int]]:
        """call -> its first node, its last node."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for i, stack in enumerate(self.stacks):
            for call in stack:
                first.setdefault(call, i)
                last[call] = i
        return first, last

    def _returned(self, call: int, last: int, leaving: Iterable[str]) -> list[str]:
        """The call's outputs: that of its last node, then what else is read outside."""
        produced = sorted(leaving, key=self.producers.__getitem__)
        final = self.graph.node[last].output[0]
        if not self.annotated:
            main = final
        else:
            main = produced[-1] if produced and final not in produced else final
        return [main, *(v for v in produced if v != main)]

    def _walk(
        self,
        first: dict[int, int],
        last: dict[int, int],
        returned: dict[int, list[str]],
        entering: dict[int, dict[str, None]],
    ) -> Iterator[Event]:
        for i, stack in enumerate(self.stacks):
            for c in stack[1:]:
                if first[c] == i:
                    named = _numbered(self.calls[c].site, entering[c])
                    yield from (Event("input", site, value, c) for value, site in named)
            for c in reversed(stack[1:]):
                if last[c] == i:
                    named = _numbered(self.calls[c].site, returned[c])
                    yield from (Event("activation", site, value, c) for value, site in named)
        for value, site in _numbered(self.root, [o.name for o in self.graph.output]):
            yield Event("activation", site, value, 0)

    def _source(self, event: Event) -> str | None:
        """The activation that an input is: the last site of that kind on the value's way."""
        if event.kind != "input":
            return None
        passed = self.way(event.value, self.calls[event.call].stack)
        return next((s for kind, s in reversed(passed) if kind == "activation"), None)


class _Dataflow:
    """Which values are constants of the file, and which follow from those and from shapes alone."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {t.name for t in graph.initializer}
        self.constants |= {t.values.name for t in graph.sparse_initializer}
        self.constants |= {o for n in graph.node if n.op_type == "Constant" for o in n.output}
        self.static = set(self.constants)
        for node in graph.node:
            if node.op_type in _NO_CONSTANTS:
                continue
            # Of some inputs it is the shape or the type that counts, not the values.
            used = {"Shape": [], "Size": [], "CastLike": list(node.input[:1])}.get(node.op_type)
            if all(v in self.static for v in (reads(node) if used is None else used)):
                self.static.update(node.output)
        self._floats = {v.name for v in graph.value_info if v.type.tensor_type.elem_type in _FLOATS}

    def visible(self, value: str) -> bool:
        """Whether eager code would pass this between modules: no constant, no shape arithmetic."""
        return value not in self.constants and (value not in self.static or value in self._floats)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of If, Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def reads(node: onnx.NodeProto) -> list[str]:
    """The values that a node reads, those that its bodies take from outside included."""
    found = [value for value in node.input if value]
    for body in subgraphs(node):
        own = {v.name for v in body.input} | {t.name for t in body.initializer}
        own |= {o for inner in body.node for o in inner.output}
        inside = [v for inner in body.node for v in reads(inner)]
        inside += [o.name for o in body.output]
        found += [v for v in inside if v not in own]
    return list(dict.fromkeys(found))


def graph_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The model's inputs; old files list their initializers among them."""
    constants = {t.name for t in graph.initializer}
    return [v for v in graph.input if v.name not in constants]


def _common(a: Sequence[object], b: Sequence[object]) -> int:
    """How long the beginning is that both share."""
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count


def _numbered(site: str, values: Iterable[str]) -> list[tuple[str, str]]:
    """``site``, ``site:1``, ``site:2``: one for each value."""
    return [(v, site if i == 0 else f"{site}:{i}") for i, v in enumerate(values)]
