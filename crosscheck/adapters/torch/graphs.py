"""Exported PyTorch programs (``torch.export``): their operations, run one by one with taps.

The modules that a program was made of are gone, but each operation still names the calls that it
was part of (``nn_module_stack``). Consecutive operations of one call are a region; what enters and
leaves a region is tapped just as at a module's boundary, under the module's path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from crosscheck.adapters.torch.hooks import Boundaries
from crosscheck.adapters.torch.state import raised
from crosscheck.adapters.torch.taps import TorchSession, is_tensor
from crosscheck.errors import InvalidArgument, capped

__all__ = ["GraphRun", "is_exported", "layer_types", "names_of_inputs"]

_OUTSIDE = ("placeholder", "get_attr", "output")
_GUARDS = "_guards_fn"


def is_exported(model: fx.GraphModule) -> bool:
    """Whether this is a graph of operations without modules that hooks could be put on."""
    calls = [node for node in model.graph.nodes if node.op == "call_module"]
    if any(node.target != _GUARDS for node in calls):
        return False
    return any("nn_module_stack" in node.meta for node in model.graph.nodes)


@dataclass(frozen=True)
class _Call:
    """One call of a module, as an operation remembers it."""

    key: str
    path: str
    layer: str


def _calls(node: fx.Node) -> tuple[_Call, ...] | None:
    """The module calls that a node was part of, outermost first; None where it does not say."""
    if node.op in _OUTSIDE or node.target == _GUARDS:
        return ()
    stack = node.meta.get("nn_module_stack")
    if stack is None:
        return None
    found = []
    for key, (path, kind) in stack.items():
        name = kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__
        path = path.partition("@")[0].removeprefix("L['self']").removeprefix(".")
        if path:  # the model itself is not a call of its own
            found.append(_Call(key, path, name))
    return tuple(found)


def layer_types(graph: fx.Graph) -> dict[str, str]:
    """Module path -> full name of its class, as far as operations remember it."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        for path, kind in node.meta.get("nn_module_stack", {}).values():
            name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
            found.setdefault(path.partition("@")[0], name)
    return found


@dataclass
class _Region:
    """The operations of one module call."""

    call: _Call
    nodes: dict[fx.Node, None] = field(default_factory=dict)

    def inputs(self) -> list[fx.Node]:
        """The values that it takes from outside, parameters left out, in order of use."""
        found: dict[fx.Node, None] = {}
        for node in self.nodes:
            for used in node.all_input_nodes:
                if used not in self.nodes and used.op != "get_attr":
                    found.setdefault(used)
        return list(found)

    def outputs(self) -> list[fx.Node]:
        """Its values that are used outside."""
        return [n for n in self.nodes if any(user not in self.nodes for user in n.users)]


def _plan(graph: fx.Graph) -> list[tuple[fx.Node, tuple[_Region, ...]]]:
    """Every node with the regions that it lies in, outermost first."""
    nodes = list(graph.nodes)
    calls = [_calls(node) for node in nodes]
    plan, open_ = [], []  # type: ignore[var-annotated]
    for index, node in enumerate(nodes):
        here = calls[index]
        if here is None:  # made by a pass: it lies where both of its neighbours lie
            after = next((c for c in calls[index:] if c is not None), ())
            here = _common(tuple(region.call for region in open_), after)
        if node.op not in ("placeholder", "get_attr") and node.target != _GUARDS:
            kept = len(_common(tuple(region.call for region in open_), here))
            open_ = open_[:kept] + [_Region(call) for call in here[kept:]]
            for region in open_:
                region.nodes[node] = None
        plan.append((node, tuple(open_)))
    return plan


def _common(a: Sequence[_Call], b: Sequence[_Call]) -> tuple[_Call, ...]:
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return tuple(a[:length])


def names_of_inputs(graph: fx.Graph) -> list[str]:
    """The names of the placeholders that a caller fills."""
    return [n.name for n in graph.nodes if n.op == "placeholder" and _constant(n) is _NOTHING]


_NOTHING = object()


def _constant(node: fx.Node) -> Any:
    """What the program was specialised to at an input that was no tensor."""
    value = node.meta.get("val", _NOTHING)
    return _NOTHING if value is _NOTHING or is_tensor(value) else value


class GraphRun(Boundaries):
    """One run of an exported program.

    Args:
        fetch: name of a parameter, buffer or constant -> its value in this run.
        float64: casts to lower precision inside the program become casts to float64.
    """

    def __init__(
        self, session: TorchSession, model: fx.GraphModule, fetch: Callable[[str], Any]
    ) -> None:
        super().__init__(session)
        self.float64 = False
        self._model = model
        self._fetch = fetch

    def arguments(self, given: Mapping[str, Any]) -> list[Any]:
        """Values for all placeholders: by name where all names are known, else in order."""
        graph = self._model.graph
        names = names_of_inputs(graph)
        if set(given) != set(names):
            if len(given) != len(names):
                raise InvalidArgument(
                    f"the exported program takes {len(names)} inputs, {capped(names)}; got "
                    f"{len(given)}: {capped(given)}"
                )
            given = dict(zip(names, given.values(), strict=True))
        return [
            given[node.name] if node.name in given else _constant(node)
            for node in graph.nodes
            if node.op == "placeholder"
        ]

    def forward(self, *args: Any) -> Any:
        """Run every operation in order; gives what the original module returned."""
        graph = self._model.graph
        feed: Iterator[Any] = iter(args)
        scopes: list[dict[fx.Node, Any]] = [{}]
        open_: list[_Region] = []
        for node, regions in _plan(graph):
            while open_ and (len(open_) > len(regions) or open_[-1] is not regions[len(open_) - 1]):
                self._close(open_.pop(), scopes)
            for region in regions[len(open_) :]:
                self._begin(region, scopes)
                open_.append(region)
            if node.op == "placeholder":
                scopes[0][node] = next(feed)
            elif node.op == "get_attr":
                scopes[0][node] = self._fetch(str(node.target))
            elif node.op == "output":
                flat = fx.map_arg(node.args[0], lambda n: _look_up(scopes, n))
                return graph.process_outputs(flat)
            else:
                scopes[-1][node] = self._compute(node, scopes)
        raise AssertionError("a graph ends with its output")

    def _compute(self, node: fx.Node, scopes: list[dict[fx.Node, Any]]) -> Any:
        args = fx.map_arg(node.args, lambda n: _look_up(scopes, n))
        kwargs = fx.map_arg(node.kwargs, lambda n: _look_up(scopes, n))
        if self.float64:
            args = tuple(raised(a) for a in args)
            kwargs = {name: raised(value) for name, value in kwargs.items()}
        if node.op == "call_module":
            return self._model.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _begin(self, region: _Region, scopes: list[dict[fx.Node, Any]]) -> None:
        given = [(node, _look_up(scopes, node)) for node in region.inputs()]
        site = self.enter(region.call.path, region.call.layer)
        scope: dict[fx.Node, Any] = {}
        tensors = [(node, value) for node, value in given if is_tensor(value)]
        for index, (node, value) in enumerate(tensors):
            scope[node] = self.tap_input(f"{site}:{index}" if index else site, value)
        scopes.append(scope)

    def _close(self, region: _Region, scopes: list[dict[fx.Node, Any]]) -> None:
        inner = scopes.pop()
        made = {node: inner[node] for node in region.outputs() if node in inner}
        tapped = self.leave(tuple(made.values()))
        scopes[-1].update(zip(made, tapped, strict=True))


def _look_up(scopes: list[dict[fx.Node, Any]], node: fx.Node) -> Any:
    """A value as the innermost open call sees it."""
    for scope in reversed(scopes):
        if node in scope:
            return scope[node]
    raise KeyError(node.name)


def constant_in(model: torch.nn.Module, name: str) -> Any:
    """A parameter, buffer or constant by its dotted name."""
    value: Any = model
    for part in name.split("."):
        value = getattr(value, part)
    return value
