"""The stack of modules that every node of an ONNX graph was exported from, and what it gives away.

PyTorch's exporter writes, for the first ReLU in the block ``b`` of a model ``Net``::

    pkg.torch.onnx.name_scopes      ['', 'b', 'b.act', 'relu']
    pkg.torch.onnx.class_hierarchy  ['net.Net', 'net.Block', 'torch.nn...ReLU', 'aten.relu.default']

The last item is the operation; the others are the modules. It does not write which call of a module
this was: calls that follow each other without another module between them are told apart only
where the module is a leaf that does the same thing, on the same parameters, again and again. Where
we export ourselves (`crosscheck.adapters.onnx.export`) the calls are numbered in `CALLS`.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import onnx

__all__ = ["CALLS", "Frame", "exporter_notes", "frames_of", "is_folded", "operation", "scopes"]

SCOPES = "pkg.torch.onnx.name_scopes"
CLASSES = "pkg.torch.onnx.class_hierarchy"
CALLS = "crosscheck.calls"
_FOLDING = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class Frame:
    """One module in the stack of a node.

    Attributes:
        path: of the module; ``""`` for the model.
        layer: name of its class, or the operator where there are no modules.
        number: which call of the module this is, from 0; None where the file does not say.
        part: tells calls apart that the file runs together.
    """

    path: str
    layer: str = field(compare=False)
    number: int | None = None
    part: int = 0


def _metadata(node: onnx.NodeProto, key: str) -> tuple[str, ...]:
    return next((_listed(entry.value) for entry in node.metadata_props if entry.key == key), ())


@lru_cache(1 << 14)
def _listed(text: str) -> tuple[str, ...]:
    """The items of a list in Python's notation; nodes of one module have the same, and both sides
    may be made from one file."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return ()
    return tuple(str(v) for v in value) if isinstance(value, list) else ()


def scopes(node: onnx.NodeProto) -> list[str]:
    """Module paths, outermost first, and the operation's name; empty where the file has none."""
    return [*_metadata(node, SCOPES)]


def operation(node: onnx.NodeProto) -> str:
    """The operation that the node was made from (``aten.relu.default``), or ``""``."""
    classes = _metadata(node, CLASSES)
    return classes[-1] if classes else ""


def is_folded(node: onnx.NodeProto) -> bool:
    """Whether a BatchNorm was folded into this node's weights."""
    return node.op_type in _FOLDING and "batch_norm" in operation(node)


def frames_of(
    graph: onnx.GraphProto, static: Collection[str]
) -> tuple[list[tuple[Frame, ...]], bool]:
    """The stack of every node, and whether the exporter's metadata was there.

    Args:
        static: values that do not depend on the inputs' values; without metadata, nodes that
            compute them have an empty stack and are no sites.
    """
    if not any(scopes(node) for node in graph.node):
        return list(_without_metadata(graph, static)), False
    stacks = [_modules(node) for node in graph.node]
    for i, node in enumerate(graph.node):
        if not stacks[i] and node.op_type != "Constant":  # put in by a tool: inside what is around
            before = next((s for s in reversed(stacks[:i]) if s), ())
            after = next((s for s in stacks[i + 1 :] if s), ())
            shared = [a for a, b in zip(before, after, strict=False) if a == b]
            stacks[i] = tuple(shared) or (Frame("", "Model"),)
    if not any(_metadata(node, CALLS) for node in graph.node):
        _split_repeats(graph, stacks)
    return stacks, True


def _modules(node: onnx.NodeProto) -> tuple[Frame, ...]:
    paths, classes, calls = scopes(node)[:-1], _metadata(node, CLASSES), _metadata(node, CALLS)
    numbers = [int(c) for c in calls] if len(calls) == len(paths) else [None] * len(paths)
    return tuple(
        Frame(path, classes[i].rpartition(".")[2] if i < len(classes) else "", numbers[i])
        for i, path in enumerate(paths)
    )


def _without_metadata(
    graph: onnx.GraphProto, static: Collection[str]
) -> Iterator[tuple[Frame, ...]]:
    used = {"output"}
    for node in graph.node:
        if not node.output or node.output[0] in static:
            yield ()
            continue
        # ":" and "#" separate the parts of a site's name.
        name = node.output[0].replace(":", "_").replace("#", "_")
        if name in used:
            name = (node.name or f"{name}_{node.op_type}").replace(":", "_").replace("#", "_")
        while name in used:
            name += "_"
        used.add(name)
        yield Frame("", "Model"), Frame(name, node.op_type)


# -- calls that follow each other ------------------------------------------------------------------


def _split_repeats(graph: onnx.GraphProto, stacks: list[tuple[Frame, ...]]) -> None:
    """Number the parts of a leaf module's nodes that repeat operations and parameters."""
    constants = {t.name for t in graph.initializer}
    containers = {frame.path for stack in stacks for frame in stack[:-1]}
    start = 0
    indices = [i for i, node in enumerate(graph.node) if node.op_type != "Constant"]
    while start < len(indices):
        end = start + 1
        while end < len(indices) and stacks[indices[end]] == stacks[indices[start]]:
            end += 1
        run, stack = indices[start:end], stacks[indices[start]]
        if len(stack) > 1 and stack[-1].path not in containers:
            for i, part in zip(run, _parts(graph, run, constants), strict=True):
                stacks[i] = (*stack[:-1], replace(stack[-1], part=part))
        start = end


def _parts(graph: onnx.GraphProto, run: Sequence[int], constants: Collection[str]) -> list[int]:
    """Which repetition every node of a run belongs to."""
    names = [scopes(graph.node[i])[-1:] for i in run]  # several nodes may make up one operation
    starts = [k for k in range(len(run)) if k == 0 or names[k] != names[k - 1]]
    steps = [
        (operation(graph.node[run[a]]), _read(graph, run[a:b], constants))
        for a, b in zip(starts, [*starts[1:], len(run)], strict=True)
    ]
    for period in range(1, len(steps) // 2 + 1):
        repeats = all(steps[k] == steps[k % period] for k in range(len(steps)))
        if repeats and len(steps) % period == 0 and any(used for _, used in steps[:period]):
            step_of = [sum(s <= k for s in starts) - 1 for k in range(len(run))]
            return [step // period for step in step_of]
    return [0] * len(run)


def _read(
    graph: onnx.GraphProto, nodes: Sequence[int], constants: Collection[str]
) -> frozenset[str]:
    return frozenset(v for i in nodes for v in graph.node[i].input if v in constants)


# -- what the exporter did -------------------------------------------------------------------------


def exporter_notes(graph: onnx.GraphProto, *, annotated: bool) -> list[str]:
    """What the reader of a report should know about how this file came about."""
    notes = []
    if not annotated:
        notes.append(
            "the file has no module paths (PyTorch's exporter writes them with dynamo=True): "
            "every node is a site, named by its value"
        )
    folded, switched, training = [], [], []
    for node in graph.node:
        made_from, paths = operation(node), scopes(node)
        where = paths[-2] if len(paths) > 1 else node.name or node.output[0]
        if is_folded(node):
            folded.append(where)
        in_train_mode = "batch_norm" in made_from and "no_training" not in made_from
        if in_train_mode and node.op_type in (*_FOLDING, "BatchNormalization"):
            switched.append(where)
        if node.op_type == "BatchNormalization" and any(
            a.name == "training_mode" and a.i for a in node.attribute
        ):
            training.append(where)
    for places, text in (
        (
            folded,
            "folded into the layer before it, whose own output is gone (optimize=False keeps)",
        ),
        (switched, "exported from a model in train mode, but it uses the running statistics"),
        (training, "computing with batch statistics (training_mode=1)"),
    ):
        if places:
            more = f" and {len(places) - 1} more" if len(places) > 1 else ""
            notes.append(f"BatchNorm `{places[0]}`{more}: {text}")
    bodies = [n.name or n.op_type for n in graph.node if n.op_type in ("If", "Loop", "Scan")]
    if bodies:
        notes.append(f"what happens inside {bodies[0]} ({len(bodies)} in all) is no site")
    return notes
